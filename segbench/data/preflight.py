"""Reads every sample once before a GPU starts: all that is wrong, and the class counts of the same pass."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from segbench.data.class_weights import ClassCounts, count, no_counts
from segbench.data.dataset import Dataset
from segbench.data.labels import FileProblem, Finding, resize_labels
from segbench.errors import DataError


class Survey(NamedTuple):
    """Every finding in the order of the samples, and the counts of the samples without one."""

    findings: list[Finding]
    counts: ClassCounts


def check(dataset: Dataset) -> list[Finding]:
    """All that is wrong with a split; an empty list is a split that can be used."""
    return survey(dataset).findings


def require(dataset: Dataset) -> ClassCounts:
    """The class counts of a split, or a `DataError` on one line with the first finding and how many more there are."""
    findings, counts = survey(dataset)
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise DataError(f"{findings[0]}{more}")
    return counts


def survey(dataset: Dataset) -> Survey:
    """One pass over a split: findings and counts."""
    findings = _of_names(dataset)
    total = no_counts(len(dataset.classes))
    for found, counts in examine(dataset):
        findings += found
        if counts is not None:
            total = total.plus(counts)
    return Survey(findings, total)


def examine(dataset: Dataset) -> Iterator[tuple[list[Finding], ClassCounts | None]]:
    """Sample by sample, in order: what is wrong, or else its counts. Threads help: Pillow decodes outside the GIL."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(lambda index: _of_sample(dataset, index), range(len(dataset)))


def _of_names(dataset: Dataset) -> list[Finding]:
    where = f"{dataset.name} {dataset.split}"
    if not dataset.names:
        return [Finding(where, "the split is empty", "at least one image", "complete the dataset, or its list")]
    return [
        Finding(f"{where}: {name}", f"listed {times} times", "once", "take the repetitions off the list")
        for name, times in Counter(dataset.names).items()
        if times > 1
    ]


def _of_sample(dataset: Dataset, index: int) -> tuple[list[Finding], ClassCounts | None]:
    findings, image, labels = [], None, None
    try:
        image = dataset.read_image(index)
    except FileProblem as problem:
        findings.append(problem.finding)
    try:
        labels = dataset.read_labels(index)
    except FileProblem as problem:
        findings.append(problem.finding)
    if image is None or labels is None:
        return findings, None
    try:
        dataset.check_sizes(index, image.shape[:2], labels.shape)
    except FileProblem as problem:
        return [problem.finding], None
    return [], count(resize_labels(labels, dataset.size), len(dataset.classes))
