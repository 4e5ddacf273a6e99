"""Counts of a split -> its scores, each as facts that add up over images and a reading of their sum.

Names are keys for tables and JSON: `mean_iou`, `boundary_f1 bsds@0.75%`, `surface_distance distance@0.75%`,
`boundary_iou 2%`. A score that was not counted is not there. Conventions stand in `metrics/region.py`,
`boundary_f1.py`, `surface.py` and `boundary_iou.py`; what is taken here is each one's default.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from segbench.errors import SettingError
from segbench.metrics import boundary_f1, boundary_iou, region, surface
from segbench.metrics.averages import read_means
from segbench.metrics.score import Score
from segbench.registry import did_you_mean
from segbench.scoring.count import matchings
from segbench.scoring.counts import Counts
from segbench.scoring.spec import ScoreSpec

OVERALL = {
    "global_accuracy": region.global_accuracy,
    "class_accuracy": region.class_accuracy,
    "mean_iou": region.mean_iou,
    "frequency_weighted_iou": region.frequency_weighted_iou,
    "mean_dice": region.mean_dice,
}
OF_CLASSES = {
    "iou": region.per_class_iou,
    "accuracy": region.per_class_accuracy,
    "precision": region.per_class_precision,
    "dice": region.per_class_dice,
}


class Scores(NamedTuple):
    """`overall` have one value, `of_classes` one a class."""

    overall: dict[str, Score]
    of_classes: dict[str, Score]

    @property
    def every(self) -> dict[str, Score]:
        """All of them, those of classes under `per_class NAME`."""
        return self.overall | {f"per_class {name}": score for name, score in self.of_classes.items()}


def scores(seeds: Sequence[Counts]) -> Scores:
    """The scores of one set of images, from the counts under each seed, which all have the same images and keys."""
    areas = np.stack([region.areas(counts.confusion).reshape(len(counts.names), -1) for counts in seeds])
    areas = areas.astype(np.float64)
    overall = {name: Score(areas, partial(read_areas, score)) for name, score in OVERALL.items()}
    of_classes = {name: Score(areas, partial(read_areas, score)) for name, score in OF_CLASSES.items()}
    for key in seeds[0].boundary:
        given = [counts.boundary[key] for counts in seeds]
        overall[f"boundary_f1 {key}"] = Score(np.stack([*map(boundary_f1.facts, given)]), boundary_f1.read)
        of_classes[f"boundary_f1 {key}"] = Score(np.stack([*map(boundary_f1.class_facts, given)]), read_means)
        if key.startswith("distance"):
            overall[f"surface_distance {key}"] = Score(np.stack([*map(surface.facts, given)]), surface.read)
    for width in seeds[0].bands:
        facts = np.stack([boundary_iou.facts(counts.bands[width]) for counts in seeds])
        overall[f"boundary_iou {width}"] = Score(facts, boundary_iou.read)
        of_classes[f"boundary_iou {width}"] = Score(facts, read_bands)
    return Scores(overall, of_classes)


def score_names(spec: ScoreSpec) -> list[str]:
    """The overall scores that `scores` will give of what `spec` counts, in its order."""
    names = list(OVERALL)
    if spec.boundary:
        for matched in matchings(spec.boundary, (1, 1)):
            names += [f"boundary_f1 {matched}"]
            names += [f"surface_distance {matched}"] if matched.startswith("distance") else []
        names += [f"boundary_iou {width}" for width in spec.boundary.iou]
    return names


def resolve_score(name: str, spec: ScoreSpec) -> str:
    """The score of this name; a boundary score may leave its end out, as in `boundary_f1` or `boundary_f1 bsds`.

    Raises `SettingError` for a score that is not counted.
    """
    known = score_names(spec)
    matching = [each for each in known if name in (each, each.partition(" ")[0], each.partition("@")[0])]
    if not matching:
        raise SettingError(f'--by "{name}": is not counted{did_you_mean(name, known)} (counted: {", ".join(known)})')
    return matching[0]


def read_areas(
    score: Callable[..., float | np.ndarray], sums: Float64[np.ndarray, "*batch m"]
) -> float | Float64[np.ndarray, "..."]:
    """A region score of summed areas."""
    return score(sums.reshape(*sums.shape[:-1], 3, -1))


def read_bands(sums: Float64[np.ndarray, "*batch m"]) -> Float64[np.ndarray, "*batch k"]:
    """Boundary IoU of each class, pooled over images."""
    return boundary_iou.read_classes(sums, "pooled-per-class")


def of_images(counts: Counts) -> dict[str, Float64[np.ndarray, " n"]]:
    """Each overall score of every image alone."""
    return {name: np.asarray(score.read(score.facts[0])) for name, score in scores([counts]).overall.items()}
