"""What a person sees while a suite runs: a live line on a terminal, plain lines in a file or pipe."""

import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segbench import together
from segbench.engine.distributed import Ended
from segbench.engine.evaluate import Scored
from segbench.engine.train import Step, Validation
from segbench.fanout import Waiting
from segbench.pipeline import Event, Finished, Started, execute
from segbench.preparation import Prepared
from segbench.stages import LOCAL, Profiling, Stages
from segbench.store.files import Results, Work

LINE_EVERY_S = 30.0


class Stop:
    """Ctrl-C or SIGTERM. In training it waits for the step to end, so that nothing is lost; a second one does not."""

    def __init__(self) -> None:
        self.asked = False
        self.gentle = False

    def __call__(self, number: int, _: FrameType | None) -> None:
        if self.asked or not self.gentle:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def signals(stop: Stop) -> Iterator[None]:
    """Hand SIGINT and SIGTERM to `stop` for a while."""
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(prepared: Prepared, work: Work, results: Results, stages: Stages = LOCAL) -> bool:
    """Execute and show; whether every run has a record that is done. Exits with 130 when interrupted."""
    stop, console = Stop(), Console(stderr=True, highlight=False)
    show = Live(console) if console.is_terminal else Lines(console)
    try:
        with signals(stop), closing(execute(prepared, work, results, stages)) as events, show:  # type: ignore[type-var]
            failed = False
            for event in events:
                failed |= isinstance(event, Finished) and event.record.status == "failed"
                show.event(event)
                stop.gentle = isinstance(event, Step | Validation)
                if stop.asked:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here", style="yellow")
        raise typer.Exit(130) from None
    except Ended:
        words = "a process failed, and its record says why; this job ends, and the same command goes on"
        console.print(words, style="yellow", soft_wrap=True)
        raise typer.Exit(1) from None
    return not failed


def help_first(device: torch.device, work: Work, results: Results) -> None:
    """What a process does that is not the first one of several. Exits with 1 when it cannot go on."""
    try:
        record = together.follow(device, work, results)
    except Ended:
        raise typer.Exit(1) from None
    if record is not None:
        Console(stderr=True).print(f"{record.run['label']}: failed: {record.reason}", soft_wrap=True, markup=False)
        raise typer.Exit(1)


class Lines:
    """One line when a run starts, is validated or ends, and every half minute between."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run = ""
        self.iterations = 0
        self.first: int | None = None
        self.began = self.spoken = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, event: Event | Waiting) -> None:
        """Print what is worth a line."""
        match event:
            case Started():
                self.run = f"[{event.number}/{event.total}] {event.run.name}"
                self.iterations = (event.run.recipe and event.run.recipe.iterations) or 0
                self.first = None
                self.say("has a record already" if event.skipped else "started")
            case Validation():
                self.say(f"iteration {event.iteration}: validation {event.score * 100:.2f}" + " (best)" * event.best)
            case Profiling():
                self.say("profiling")
            case Finished():
                failed = event.record.status == "failed"
                self.say(f"failed: {event.record.reason}" if failed else f"done: {event.folder}")
            case Step() if self.first is None:
                self.first, self.began = event.iteration, time.monotonic()
            case Step() if self.silent():
                pace = (time.monotonic() - self.began) / (event.iteration - (self.first or 0))
                left = (self.iterations - event.iteration) * pace
                self.say(
                    f"iteration {event.iteration}/{self.iterations}, loss {event.loss:.3f}, "
                    f"{event.images_per_s:.1f} images/s, about {left / 60:.0f} min left"
                )
            case Scored() if self.silent():
                self.say(f"scored {event.number}/{event.total}")
            case Waiting() if self.silent():
                self.say(f"waiting; {event.done} of {event.total} stages are done")

    def silent(self) -> bool:
        return time.monotonic() - self.spoken > LINE_EVERY_S

    def say(self, words: str) -> None:
        self.spoken = time.monotonic()
        self.console.print(f"{self.run}: {words}", soft_wrap=True)


class Live(Lines):
    """The same lines above a bar of the stage in progress."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.stage = ""
        self.task: TaskID | None = None

    def __enter__(self) -> "Live":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def silent(self) -> bool:
        return False

    def event(self, event: Event | Waiting) -> None:
        """Move the bar; the rest is a line above it."""
        match event:
            case Step():
                self.move(
                    "train",
                    event.iteration,
                    self.iterations,
                    f"loss {event.loss:.3f}, {event.images_per_s:.1f} images/s",
                )
            case Scored():
                self.move("score", event.number, event.total, event.name)
            case Waiting():
                self.move("waiting", event.done, event.total, "stages done")
            case _:
                if self.task is not None:
                    self.bar.remove_task(self.task)
                self.task, self.stage = None, ""
        super().event(event)

    def move(self, stage: str, done: int, total: int, words: str) -> None:
        """Advance the bar of this stage, or begin one."""
        if self.task is None or stage != self.stage:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task, self.stage = self.bar.add_task("", total=total), stage
        self.bar.update(self.task, completed=done, description=f"{self.run} {stage}: {words}")
