"""Pairs of label files -> counts, in as many processes as there are processors.

Every file is read once. What is wrong with any of them is known only when all have been read, so counts and findings
come together at the end, and it is the caller who decides whether the counts may be used.
"""

import sys
from collections.abc import Generator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from segbench.data.labels import Finding
from segbench.scoring.classes import ClassList
from segbench.scoring.count import ImageCounts, count_canonical
from segbench.scoring.counts import Counts, gather
from segbench.scoring.folder import Pair
from segbench.scoring.maps import Resize, read_pair
from segbench.scoring.spec import ScoreSpec
from segbench.workers import interrupts_later, processors, worker_processes

PAIRS_AT_ONCE = 16
"""Read and counted by a process between two steps of the progress."""


class PairsDone(NamedTuple):
    """The `number`-th of `total` pairs has been read and counted."""

    number: int
    total: int


class PairCounts(NamedTuple):
    """`counts` of the pairs that can be scored, None if there are none; what was wrong with any file."""

    counts: Counts | None
    findings: list[Finding]


def count_pairs(
    pairs: Sequence[Pair], classes: ClassList, spec: ScoreSpec, resize: Resize | None = None
) -> Generator[PairsDone, None, PairCounts]:
    """The counts of all pairs, in their order. Holds a few pairs of maps at a time, whatever their number."""
    classes.sequences([pair.name for pair in pairs])  # raises before the work, not after it
    images: list[tuple[str, ImageCounts]] = []
    findings: list[Finding] = []
    chunks = [pairs[start : start + PAIRS_AT_ONCE] for start in range(0, len(pairs), PAIRS_AT_ONCE)]
    count_chunk = partial(_count_chunk, classes=classes, spec=spec, resize=resize)
    done = 0
    load_counters(len(classes), spec)
    pool = _pool(min(processors(), len(chunks)))
    try:
        with interrupts_later():
            counted = pool.map(count_chunk, chunks)
        for chunk, results in zip(chunks, counted, strict=True):
            for pair, (counts, wrong) in zip(chunk, results, strict=True):
                findings += wrong
                if counts is not None:
                    images.append((pair.name, counts))
            done += len(chunk)
            yield PairsDone(done, len(pairs))
    finally:  # interrupted: what was not begun need not be waited for
        pool.shutdown(cancel_futures=True)
    if not images:
        return PairCounts(None, findings)
    return PairCounts(gather(images, classes.sequences([name for name, _ in images])), findings)


def load_counters(num_classes: int, spec: ScoreSpec) -> None:
    """Load the counters, which numba compiles after an installation: once, and not in each process. Maps of one class
    are counted, and of all of them, for which the kernels may take wider masks."""
    for present in {1, num_classes}:
        labels = np.arange(present, dtype=np.uint8)[None]
        count_canonical(labels, labels, num_classes, spec)


def _pool(number: int) -> Executor:
    """Forked processes, where forking is safe. Elsewhere threads: Pillow decodes and numba counts without Python's
    lock, but what is between holds it, and together they take a sixth longer."""
    if sys.platform != "linux":
        return ThreadPoolExecutor(max(number, 1))
    return worker_processes(max(number, 1), "fork")


def _count_chunk(
    pairs: Sequence[Pair], classes: ClassList, spec: ScoreSpec, resize: Resize | None
) -> list[tuple[ImageCounts | None, tuple[Finding, ...]]]:
    return [_count_pair(pair, classes, spec, resize) for pair in pairs]


def _count_pair(
    pair: Pair, classes: ClassList, spec: ScoreSpec, resize: Resize | None
) -> tuple[ImageCounts | None, tuple[Finding, ...]]:
    maps = read_pair(pair, classes, resize)
    if maps.truth is None or maps.prediction is None:
        return None, maps.findings
    return count_canonical(maps.truth, maps.prediction, len(classes), spec), maps.findings
