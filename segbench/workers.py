"""Processes that work for this one: deaf to Ctrl-C, which it handles for them, and gone when it is killed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Literal


def processors() -> int:
    """Those that this process may use, which is fewer than the machine's under a batch system."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_processes(number: int, start: Literal["fork", "spawn"]) -> ProcessPoolExecutor:
    """A pool of processes. They are started at a `submit`, which belongs under `interrupts_later`.

    Forked ones begin at once with all that is loaded here, and only Linux forks safely; CUDA does not survive it.
    Spawned ones import it all again, and the program that calls must guard its own lines by `__name__`.
    """
    return ProcessPoolExecutor(number, multiprocessing.get_context(start), initializer=_follow_parent)


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until the end. Processes that are started meanwhile stay deaf to it: the mask is inherited, and one
    that is still starting would print a traceback of its own."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, which ends its processes in order; end alone where the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
