"""`torchrun -m segbench run`: the first process executes the suite, and the others help it.

The others wait to be told. Where the first one comes to what takes long (`stages.led`), it tells them which part of
which run that is, and all of them do it at once: they train on their part of each batch, or predict their part of the
images. Everything else is the first one's alone: what has been done before, records, checkpoints, profiles, progress.
Only the data is read by each.

A process that fails alone leaves the others in the middle of something, and torch has no way back from there. The first
one to fail writes the record, with its reason, and the job ends with exit code 1: the others notice that the connection
is closed, or are ended by torchrun. The same command goes on; `torchrun --max-restarts N` gives it by itself. What all
processes agree on, such as a loss that is not finite, is a record like any other, and the next run follows.

Ctrl-C and SIGTERM, which torchrun hands on to everyone, are for the first process. It tells the others when to stop.
"""

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from segbench.data.batches import Frames
from segbench.engine.distributed import Ended, ended, first_to_end, rank, told
from segbench.pipeline import blank, kept_files, reason
from segbench.preparation import Prepared
from segbench.store.files import Results, Work
from segbench.store.record import Record


@contextmanager
def leading(prepared: Prepared) -> Iterator[None]:
    """Around the execution at the first process: tell the others what was prepared, and at the end that it is over."""
    told(prepared)
    try:
        yield
    finally:
        if not ended():
            told(None)


def follow(device: torch.device, work: Work, results: Results) -> Record | None:
    """Do at another process what the first one leads, on `device`, until it is over.

    Returns the record of a run that failed here, alone; raises `Ended` where another process has left.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    prepared: Prepared = replace(heard(), device=device)
    frames = {split: Frames(dataset) for split, dataset in prepared.datasets.items()}
    while order := heard():
        part, run, keys, *rest = order
        try:
            for _ in part(run, keys, *rest, prepared, frames, work):
                pass
        except Exception as error:
            if not first_to_end():
                raise Ended from error
            words = f"process {rank()}: {reason(error)}"
            # Scores that an earlier try recorded stay.
            before = results.find(run.suite, keys.record) or blank(run, keys, prepared)
            record = replace(before, status="failed", reason=words, traceback=traceback.format_exc())
            results.write(run.suite, record, kept_files(record, keys, work))
            return record
    return None


def heard() -> Any:
    """What the first process says; `Ended` where it has gone without a word."""
    try:
        return told(None)
    except RuntimeError as error:
        raise Ended from error
