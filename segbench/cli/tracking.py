"""Progress of work that counts up to a known number: a bar on a terminal, else a line every ten seconds."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from threading import Timer
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0
DRAW_EVERY_S = 0.1
PATIENCE_S = 2.0
Result = TypeVar("Result")


class Step(Protocol):
    """How far the work is."""

    @property
    def number(self) -> int: ...
    @property
    def total(self) -> int: ...


@contextmanager
def said_if_slow(words: str, console: Console) -> Iterator[None]:
    """Say what is being done if it takes longer than anybody expects."""
    timer = Timer(PATIENCE_S, lambda: console.print(f"segbench: {words}", soft_wrap=True, markup=False))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # the work that follows may fork


def track(steps: Generator[Step, None, Result], words: str, console: Console) -> Result:
    """Do the work, show how far it is, and return its result."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    spoken = time.monotonic()
    # Without a thread of its own to draw it: the work may fork, and a forked thread's locks stay shut.
    drawn = Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    with drawn as bar, closing(steps):
        task = bar.add_task(words, total=None)
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            if time.monotonic() - spoken < (DRAW_EVERY_S if console.is_terminal else LINE_EVERY_S):
                continue
            spoken = time.monotonic()
            bar.update(task, completed=step.number, total=step.total, refresh=True)
            if not console.is_terminal:
                console.print(f"{words}: {step.number}/{step.total}", soft_wrap=True, markup=False)
