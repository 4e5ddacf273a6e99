"""The tables of `segbench score`: scores with their intervals, classes, the worst images, other libraries' numbers.

Scores are printed in percent. "n/a" stands where a score is not defined or an interval could not be made.
"""

from collections.abc import Sequence
from math import isfinite

import numpy as np

from segbench.metrics.comparison import Comparison
from segbench.metrics.conventions import Convention
from segbench.metrics.intervals import Interval
from segbench.metrics.units import ENOUGH
from segbench.report.table import Table
from segbench.scoring.scored import Scored
from segbench.scoring.scores import of_images

HEADINGS = {
    "global_accuracy": "G, global accuracy",
    "class_accuracy": "C, class accuracy",
    "mean_iou": "mIoU",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "mean_dice": "mean Dice",
    "boundary_f1": "BF, boundary F1",
    "surface_distance": "normalised surface distance",
    "boundary_iou": "boundary IoU",
    "iou": "IoU",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "dice": "Dice",
}
SHORT = {
    "global_accuracy": "G",
    "class_accuracy": "C",
    "frequency_weighted_iou": "FWIoU",
    "mean_dice": "Dice",
    "boundary_f1": "BF",
    "surface_distance": "NSD",
    "boundary_iou": "BIoU",
}


def overall(scored: Scored, notes: Sequence[str]) -> Table:
    """One folder of predictions: a row a score."""
    rows = [
        [heading(name), percent(float(score.value)), between(scored.intervals[name])]
        for name, score in scored.scores.overall.items()
    ]
    level = next(iter(scored.intervals.values())).level
    return Table(scored.name, ["Score", "%", f"{level * 100:g} % interval"], rows, list(notes), left=1)


def side_by_side(all_scored: Sequence[Scored], comparison: Comparison, by: str, notes: Sequence[str]) -> Table:
    """Several folders: a row a folder, best first; rows that share a letter cannot be told apart."""
    found = {scored.name: scored for scored in all_scored}
    names = list(all_scored[0].scores.overall)
    rows = []
    for place, name in enumerate(comparison.names):
        scored = found[name]
        ranks = f"{comparison.best_rank[place]}-{comparison.worst_rank[place]}"
        cells = [with_interval(scored, key) for key in names]
        rows.append([name, comparison.letters[place], ranks, *cells])
    columns = ["Predictions", "Group", "Rank", *(heading(name, short=True) for name in names)]
    return Table(f"Predictions by {heading(by)}", columns, rows, list(notes), left=1)


def pairs(comparison: Comparison, by: str) -> Table:
    """Every pair of folders: the difference, its interval and how probable it would be without one."""
    rows = [
        [
            f"{pair.better} - {pair.worse}",
            f"{100 * pair.bootstrap.difference:+.2f}",
            f"{100 * pair.bootstrap.interval.low:+.2f} to {100 * pair.bootstrap.interval.high:+.2f}",
            probability(pair.p),
            probability(pair.adjusted_p),
        ]
        for pair in comparison.pairs
    ]
    return Table(f"Differences in {heading(by)}", ["Pair", "Points", "Interval", "p", "p (Holm)"], rows, left=1)


def classes(scored: Scored, names: Sequence[str]) -> Table:
    """A row a class."""
    values = {key: score.value for key, score in scored.scores.of_classes.items()}
    pixels = scored.counts.confusion[:, :-1].sum((0, 2))
    total = max(int(pixels.sum()), 1)
    rows = []
    for index, name in enumerate(names):
        interval = scored.intervals["per_class iou"]
        cells = [percent(float(value[index])) for value in values.values()]
        rows.append([name, percent(pixels[index] / total), cells[0], between(interval, index), *cells[1:]])
    first, *others = (heading(key, short=True) for key in values)
    return Table(
        "Classes", ["Class", "% of truth", first, "Interval", *others], rows, rare_notes(scored, names), left=1
    )


def rare_notes(scored: Scored, names: Sequence[str]) -> list[str]:
    """Which classes' own intervals say less than their level, for too few images have them in the truth."""
    images = (scored.counts.confusion[:, :-1].sum(2) > 0).sum(0)
    rare = [name for name, number in zip(names, images, strict=True) if 0 < number < ENOUGH["images"]]
    few = f"fewer than {ENOUGH['images']} images have them"
    return [f"Intervals of {', '.join(rare)} alone: {few}, and their intervals are too narrow."] if rare else []


def worst(scored: Scored, by: str, number: int) -> Table:
    """The images of the lowest scores, worst first; those without a score are not among them."""
    counts = scored.counts
    found = of_images(counts)
    order = [i for i in np.argsort(found[by], kind="stable").tolist() if isfinite(found[by][i])][:number]
    rows = [[counts.names[i], *(percent(float(values[i])) for values in found.values())] for i in order]
    columns = ["Image", *(heading(name, short=True) for name in found)]
    return Table(f"{scored.name}: worst images by {heading(by)}", columns, rows, left=1)


def others(name: str, rows: Sequence[Convention]) -> Table:
    """What other libraries would print, and how each library was checked."""
    cells = [[row.library, row.name, row.text, row.why] for row in rows]
    checked: dict[str, dict[str, None]] = {}
    for row in rows:
        checked.setdefault(row.checked, {})[f"{row.library} {row.version}"] = None
    notes = [f"{how[0].upper()}{how[1:]}: {', '.join(libraries)}." for how, libraries in checked.items()]
    columns = ["Library", "Number", "Prints", "Beside segbench's own"]
    return Table(f"{name}: what other libraries would print", columns, cells, notes, left=len(columns))


def heading(name: str, short: bool = False) -> str:
    """`boundary_f1 bsds@0.75%` -> `BF, boundary F1 (bsds@0.75%)`."""
    kind, _, key = name.partition(" ")
    words = SHORT.get(kind, HEADINGS[kind]) if short else HEADINGS[kind]
    return f"{words} {key}" if key and short else f"{words} ({key})" if key else words


def percent(value: float) -> str:
    return f"{100 * value:.2f}" if isfinite(value) else "n/a"


def between(interval: Interval, place: int | None = None) -> str:
    """`61.20 to 64.48`"""
    low, high = (float(np.asarray(end)[() if place is None else place]) for end in (interval.low, interval.high))
    return f"{100 * low:.2f} to {100 * high:.2f}" if isfinite(low) and isfinite(high) else "n/a"


def with_interval(scored: Scored, name: str) -> str:
    """`62.31 (61.20 to 64.48)`"""
    return f"{percent(float(scored.scores.overall[name].value))} ({between(scored.intervals[name])})"


def probability(p: float) -> str:
    return "n/a" if not isfinite(p) else f"{p:.4f}" if p >= 0.0001 else "<= 0.0001"


def interval_notes(intervals: Sequence[Interval]) -> list[str]:
    """How the intervals were made, and what they do not say."""
    first = intervals[0]
    seeds = f" and {first.seeds} seeds" if first.seeds > 1 else ""
    words = dict.fromkeys(word for interval in intervals for word in interval.words)
    return [
        f"Intervals: {first.level * 100:g} %, {first.method} bootstrap of {first.units} {first.kind}{seeds}, "
        f"{first.resamples} resamples.",
        *(f"Intervals: {word}." for word in words),
    ]


def comparison_notes(comparison: Comparison) -> list[str]:
    """What groups and ranks mean."""
    return [
        "Groups: folders that share a letter cannot be told apart (paired permutation tests, Holm over all pairs, "
        "5 %); Rank: the best and the worst that cannot be excluded.",
        *(f"Tests: {word}." for word in comparison.words),
    ]
