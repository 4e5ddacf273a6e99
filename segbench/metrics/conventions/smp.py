"""segmentation_models.pytorch 0.6.0, `metrics/functional.py`: three scores in six reductions.

Read and tested were the release's `get_stats(mode="multiclass", ignore_index=void, num_classes=K)` and the scores with
their default zero_division=1.0: 0/0 counts as 1, so a class in neither map raises every mean over classes ("micro"
alone keeps NaN). `accuracy` counts true negatives, K - 1 classes of them at a right pixel. A prediction that is no
class is an error of the pixel's class, as it is here.

The "weighted" reductions ask for class weights; here they are the shares of truth pixels. All is in float32; texts are
as PyTorch prints a tensor.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from segbench.metrics.conventions.convention import (
    Array,
    Confusion,
    Convention,
    Library,
    counted_by_histc,
    ratio,
    tensor_text,
)
from segbench.metrics.region import areas

SMP = Library("segmentation-models-pytorch", "0.6.0", "tested against the library")


class Stats(NamedTuple):
    """Pixels of each image and class."""

    tp: Int64[np.ndarray, "*batch"]
    fp: Int64[np.ndarray, "*batch"]
    fn: Int64[np.ndarray, "*batch"]
    tn: Int64[np.ndarray, "*batch"]

    def sum(self, axis: int | tuple[int, ...]) -> "Stats":
        return Stats(*(counts.sum(axis) for counts in self))


Formula = Callable[[Stats], np.ndarray]
Shares = Float32[np.ndarray, " k"]


def segmentation_models_pytorch(confusion: Confusion) -> list[Convention]:
    """`iou_score`, `f1_score` and `accuracy` in every reduction."""
    truth, predicted, correct = (areas(confusion)[:, i] for i in range(3))
    scored = confusion[:, :-1].sum((1, 2))[:, None]
    union = truth + predicted - correct
    stats = Stats(correct, predicted - correct, truth - correct, scored - union)
    shares = ratio(truth.sum(0), truth.sum()).astype(np.float32)
    rows = [
        _row(name, reduction, reduce(formula, stats, shares / shares.sum()), ours, why)
        for name, (formula, ours) in FORMULAS.items()
        for reduction, (reduce, why) in REDUCTIONS.items()
    ]
    return counted_by_histc(rows, confusion)


def _iou(stats: Stats) -> np.ndarray:
    return ratio(_float(stats.tp), _float(stats.tp + stats.fp + stats.fn))


def _f1(stats: Stats) -> np.ndarray:
    twice = np.float32(2) * _float(stats.tp)
    return ratio(twice, twice + _float(stats.fn) + _float(stats.fp))


def _accuracy(stats: Stats) -> np.ndarray:
    return ratio(_float(stats.tp + stats.tn), _float(stats.tp + stats.fp + stats.fn + stats.tn))


FORMULAS: dict[str, tuple[Formula, str]] = {
    "iou_score": (_iou, "mean_iou"),
    "f1_score": (_f1, "mean_dice"),
    "accuracy": (_accuracy, "global_accuracy"),
}


def _float(counts: Array) -> np.ndarray:
    return np.asarray(counts, np.float32)


def _micro(formula: Formula, stats: Stats, shares: Shares) -> Array:
    return formula(stats.sum((0, 1)))


def _macro(formula: Formula, stats: Stats, shares: Shares) -> Array:
    return _or_one(formula(stats.sum(0))).mean()


def _weighted(formula: Formula, stats: Stats, shares: Shares) -> Array:
    return (_or_one(formula(stats.sum(0))) * shares).sum()


def _micro_imagewise(formula: Formula, stats: Stats, shares: Shares) -> Array:
    return _or_one(formula(stats.sum(1))).mean()


def _macro_imagewise(formula: Formula, stats: Stats, shares: Shares) -> Array:
    return _or_one(formula(stats)).mean(0).mean()


def _weighted_imagewise(formula: Formula, stats: Stats, shares: Shares) -> Array:
    return (_or_one(formula(stats)).mean(0) * shares).mean()


def _or_one(scores: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(scores), np.float32(1), scores)


Reduce = Callable[[Formula, Stats, Shares], Array]
REDUCTIONS: dict[str, tuple[Reduce, str]] = {
    "micro": (_micro, "one ratio of areas summed over classes too"),
    "macro": (_macro, "the same, but a class in neither truth nor prediction counts as 1"),
    "weighted": (_weighted, "classes weighted by their truth pixels, as we chose the weights that it asks for"),
    "micro-imagewise": (_micro_imagewise, "mean over images of one ratio of areas summed over classes"),
    "macro-imagewise": (_macro_imagewise, "mean over images, where a class in neither map of an image counts as 1"),
    "weighted-imagewise": (
        _weighted_imagewise,
        "weights that sum to 1 are averaged over the K classes again, so a perfect score is 1/K",
    ),
}


def _row(score: str, reduction: str, value: Array, ours: str, why: str) -> Convention:
    if score == "accuracy":
        why = f"counts true negatives; {why}"
    if (score, reduction) == ("iou_score", "weighted"):
        ours = "frequency_weighted_iou"
    return SMP.row(f'{score}(reduction="{reduction}")', float(value), tensor_text(float(value)), ours, why)
