"""Scored folders as JSON and as CSV: fractions in [0, 1], null or an empty cell where a score is not defined.

`boundary_f1` holds one score a rule, at the first tolerance and void policy that were asked for; `boundary` holds all.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

import numpy as np

from segbench import __version__
from segbench.metrics.comparison import Comparison
from segbench.metrics.conventions import Convention
from segbench.metrics.intervals import Interval
from segbench.report.score_words import Data, convention_words
from segbench.scoring.classes import ClassList
from segbench.scoring.counts import Counts
from segbench.scoring.scored import Scored
from segbench.scoring.scores import of_images
from segbench.scoring.spec import ScoreSpec

Value = float | int | str | None | list[Any] | dict[str, Any]


def as_json(
    all_scored: Sequence[Scored],
    classes: ClassList,
    spec: ScoreSpec,
    data: Data,
    comparison: Comparison | None,
    by: str,
    others: Sequence[Sequence[Convention]],
    per_image: str | None,
) -> str:
    """One object for one folder; for several a list of them beside their comparison, made `by` one score."""
    convention = {
        "words": ["Fractions in [0, 1].", *convention_words(classes, spec)],
        "classes": list(classes.names),
        "prediction_ids": classes.numbering,
        **spec.model_dump(mode="json", include={"boundary"}),
    }
    documents = [
        document(scored, classes.names, convention, per_image, rows)
        for scored, rows in zip(all_scored, others, strict=True)
    ]
    whole: dict[str, Any] = documents[0]
    if comparison:
        whole = {"predictions": documents, "comparison": compared(comparison, by)}
    return json.dumps({"segbench": __version__, "data": asdict(data), **whole}, indent=1, allow_nan=False) + "\n"


def as_csv(all_scored: Sequence[Scored]) -> str:
    """A row an image and folder."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["predictions", "image", *all_scored[0].scores.overall])
    for scored in all_scored:
        for row in images(scored.counts):
            writer.writerow([scored.name, *("" if value is None else value for value in row.values())])
    return buffer.getvalue()


def document(
    scored: Scored,
    names: Sequence[str],
    convention: Mapping[str, Any],
    per_image: str | None,
    others: Sequence[Convention],
) -> dict[str, Any]:
    """Everything of one folder. `per_image` names the file that holds the images' scores, which else are listed."""
    overall = {name: fraction(score.value) for name, score in scored.scores.overall.items()}
    regions = {name: value for name, value in overall.items() if " " not in name}
    return {
        "predictions": scored.name,
        "images": len(scored.counts.names),
        "convention": dict(convention),
        **regions,
        "boundary_f1": by_rule(overall),
        "boundary": {name: value for name, value in overall.items() if " " in name},
        "per_class": per_class(scored, names),
        "intervals": intervals(scored.intervals, names),
        "confusion": scored.counts.confusion.sum(0).tolist(),
        "per_image": per_image if per_image is not None else images(scored.counts),
        "words": list(scored.words),
        "findings": [finding._asdict() for finding in scored.findings],
        **({"conventions": [other(row) for row in others]} if others else {}),
    }


def by_rule(values: Mapping[str, Value]) -> dict[str, Value]:
    """The first boundary F1 of each rule."""
    found: dict[str, Value] = {}
    for name, value in values.items():
        kind, _, key = name.partition(" ")
        if kind == "boundary_f1":
            found.setdefault(key.partition("@")[0], value)
    return found


def per_class(scored: Scored, names: Sequence[str]) -> dict[str, dict[str, Value]]:
    """The scores of each class, and its pixels in the truth."""
    values = {key: score.value for key, score in scored.scores.of_classes.items()}
    pixels = scored.counts.confusion[:, :-1].sum((0, 2))
    return {
        name: {"truth_pixels": int(pixels[i]), **{key: fraction(value[i]) for key, value in values.items()}}
        for i, name in enumerate(names)
    }


def intervals(found: Mapping[str, Interval], names: Sequence[str]) -> dict[str, Any]:
    """How they were made, and [low, high] of each score."""
    first = next(iter(found.values()))
    overall = {name: ends(interval) for name, interval in found.items() if not name.startswith("per_class ")}
    return {
        "level": first.level,
        "method": first.method,
        "resampled": first.kind,
        "units": first.units,
        "resamples": first.resamples,
        "words": list(dict.fromkeys(word for interval in found.values() for word in interval.words)),
        **{name: value for name, value in overall.items() if " " not in name},
        "boundary_f1": by_rule(overall),
        "boundary": {name: value for name, value in overall.items() if " " in name},
        "per_class": {
            name: {
                key.removeprefix("per_class "): ends(interval, i)
                for key, interval in found.items()
                if key.startswith("per_class ")
            }
            for i, name in enumerate(names)
        },
    }


def images(counts: Counts) -> list[dict[str, Value]]:
    """Every image's scores alone, in the order of the truth."""
    found = of_images(counts)
    return [
        {"image": name, **{key: fraction(values[i]) for key, values in found.items()}}
        for i, name in enumerate(counts.names)
    ]


def compared(found: Comparison, by: str) -> dict[str, Any]:
    """Which folders can be told apart by a score."""
    return {
        "by": by,
        "order": list(found.names),
        "groups": dict(zip(found.names, found.letters, strict=True)),
        "ranks": {
            name: [best, worst]
            for name, best, worst in zip(found.names, found.best_rank, found.worst_rank, strict=True)
        },
        "pairs": [
            {
                "better": pair.better,
                "worse": pair.worse,
                "difference": fraction(pair.bootstrap.difference),
                "interval": [fraction(pair.bootstrap.interval.low), fraction(pair.bootstrap.interval.high)],
                "p": fraction(pair.p),
                "p_holm": fraction(pair.adjusted_p),
            }
            for pair in found.pairs
        ],
        "words": list(found.words),
    }


def other(row: Convention) -> dict[str, Value]:
    return row._asdict() | {"value": fraction(row.value)}


def ends(interval: Interval, place: int | None = None) -> list[Value]:
    at = () if place is None else place
    return [fraction(np.asarray(end)[at]) for end in (interval.low, interval.high)]


def fraction(value: Any) -> float | None:
    """A float, or null for what is not defined."""
    number = float(value)
    return number if isfinite(number) else None
