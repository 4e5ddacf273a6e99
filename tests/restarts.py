"""A program that runs a suite in processes that die, and starts it again, until it has died often enough. For tests.

    python restarts.py killed SUITE ROOT DEATHS     kill -9 at random moments
    python restarts.py power SUITE ROOT DEATHS      the power fails at random operations on the disk

ROOT/whole is a run that nothing interrupts; ROOT/0, ROOT/1, ... were each interrupted until they were whole.

It forks, for a fresh process would import for seconds, and computes nothing itself, for what has run a backward pass
cannot fork.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numba  # noqa: F401  (what a run would import late)
import torch
import torch._dynamo

from segbench.engine import train
from segbench.pipeline import Finished, execute
from segbench.preparation import Prepared, prepare
from segbench.store.files import Results, Work, hold
from segbench.suite.load import load

SAVE_EVERY_S = 0.02
"""About every other step."""


def live(prepared: Prepared, root: Path) -> None:
    """What the command does."""
    train.SAVE_EVERY_S = SAVE_EVERY_S
    work, results = root / "work", root / "results"
    with hold(work, "--work"), hold(results / prepared.runs[0].suite, "--results"):
        for event in execute(prepared, Work(work), Results(results)):
            assert not isinstance(event, Finished) or event.record.status == "done", event.record.traceback


def born(life: Callable[[], None]) -> int:
    """A process of its own; its id."""
    process = os.fork()
    if process == 0:
        try:
            life()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return process


def killed(prepared: Prepared, root: Path, moment: float, longest_s: float) -> int:
    process = born(partial(live, prepared, root))
    time.sleep(moment * longest_s)
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


OPERATIONS = 80
"""More than a whole run asks of the disk."""


def power(prepared: Prepared, root: Path, moment: float, longest_s: float) -> int:
    def life() -> None:
        lose_power(root, int(moment * OPERATIONS))
        live(prepared, root)

    return os.waitpid(born(life), 0)[1]


def lose_power(root: Path, after: int) -> None:
    """End this process before its next operation on the disk but `after`; of the files that it wrote, those whose bytes
    it did not wait for lose their second half."""
    left = after
    on_disk = {seen(path.stat()) for path in files_below(root)}

    def counted(operation: Callable[..., Any], *given: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            for path in files_below(root):
                if seen(path.stat()) not in on_disk:
                    os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        if operation is fsync:
            on_disk.add(seen(os.fstat(given[0])))
        return operation(*given, **named)

    fsync = os.fsync
    for name in ("fsync", "replace", "rename", "unlink"):
        setattr(os, name, partial(counted, getattr(os, name)))


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def seen(found: os.stat_result) -> tuple[int, int, int]:
    """A file as it is: its number may be given to another when it is gone."""
    return found.st_ino, found.st_mtime_ns, found.st_size


def main(how: str, suite: str, root: Path, deaths: int) -> None:
    prepared = prepare(load(Path(suite))[1], torch.device("cpu"))
    began = time.monotonic()
    assert os.waitpid(born(partial(live, prepared, root / "whole")), 0)[1] == 0
    longest_s = time.monotonic() - began
    moments = random.Random(how)
    for number in count():
        place = root / str(number)
        while deaths:
            status = {"killed": killed, "power": power}[how](prepared, place, moments.random(), longest_s)
            if not os.WIFSIGNALED(status):
                assert status == 0, "a run failed by itself"
                break
            deaths -= 1
        else:
            assert os.waitpid(born(partial(live, prepared, place)), 0)[1] == 0
            break
    print(f"{number + 1} runs")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
