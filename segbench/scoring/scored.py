"""Folders of predictions with everything that is read from their counts: scores, intervals, comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass

from segbench.data.labels import Finding
from segbench.errors import DataError
from segbench.metrics.comparison import Comparison, compare_all
from segbench.metrics.intervals import Bootstrap, Interval, intervals
from segbench.metrics.units import Kind, Units, choose_units
from segbench.scoring.classes import ClassList, Doubt, doubt
from segbench.scoring.counts import Counts
from segbench.scoring.pairs import PairCounts
from segbench.scoring.scores import Scores, scores


@dataclass(frozen=True)
class Scored:
    """One folder. `intervals` are keyed as `Scores.every`; `findings` are what was wrong with files and let through;
    `words` are doubts that a reader must know of."""

    name: str
    counts: Counts
    scores: Scores
    units: Units
    intervals: dict[str, Interval]
    findings: tuple[Finding, ...] = ()
    words: tuple[str, ...] = ()


def read_scores(
    names: Sequence[str],
    found: Sequence[PairCounts],
    classes: ClassList,
    bootstrap: Bootstrap,
    kind: Kind | None = None,
    stated: bool = False,
) -> list[Scored]:
    """The scores of each folder, of the images that all of them have: what is compared is compared on the same images.

    Raises `DataError` where no image is left, or where predictions fit another numbering of their labels better than
    the one in use and nobody `stated` that it holds.
    """
    counts = [each.counts for each in found if each.counts]
    sets = [set(c.names) for c in counts]
    common = [name for name in counts[0].names if all(name in names for names in sets)] if counts else []
    if len(counts) < len(found) or not common:
        raise DataError(
            "no image has usable files in the truth and in every folder; nothing is scored; mend what is listed above"
        )
    return [
        _read(name, own.of(common), each.findings, classes, bootstrap, kind, stated)
        for name, own, each in zip(names, counts, found, strict=True)
    ]


def _read(
    name: str,
    counts: Counts,
    findings: Sequence[Finding],
    classes: ClassList,
    bootstrap: Bootstrap,
    kind: Kind | None,
    stated: bool,
) -> Scored:
    doubtful = doubt(classes, counts.confusion.sum(0))
    if doubtful and not stated:
        raise DataError(f"{name}: {doubtful}")
    found = scores([counts])
    units = choose_units(len(counts.names), counts.sequences, kind)
    made = intervals(
        found.every,
        units,
        level=bootstrap.level,
        method=bootstrap.method,
        resamples=bootstrap.resamples,
        seed=bootstrap.seed,
    )
    return Scored(name, counts, found, units, made, tuple(findings), _words(doubtful, counts, classes))


def _words(doubtful: Doubt | None, counts: Counts, classes: ClassList) -> tuple[str, ...]:
    words = [str(doubtful)] if doubtful else []
    if classes.sequence_pattern and not counts.sequences:
        words.append("the names do not tell the video sequences: images are taken as independent")
    return tuple(words)


def compare(all_scored: Sequence[Scored], by: str) -> Comparison:
    """Every pair of folders, tested on one score."""
    first = all_scored[0]
    how = next(iter(first.intervals.values()))
    return compare_all(
        {scored.name: scored.scores.overall[by] for scored in all_scored},
        first.units,
        level=how.level,
        method=how.method,
        resamples=how.resamples,
    )
