"""Tools that score label files: cityscapesScripts, PerceptionMetrics, nnU-Net and MATLAB.

Read were: cityscapesScripts 2.3.0, `evaluation/evalPixelLevelSemanticLabeling.py` (and tested, on its own label ids);
PerceptionMetrics 3.1.0, `utils/segmentation_metrics.py` with `models/torch_segmentation.py`, and nnU-Net 2.8.1,
`evaluation/evaluate_predictions.py` (both compared number by number with the files of the release). MATLAB's
source was not at hand: its rows follow the pages of `evaluateSemanticSegmentation` and `semanticSegmentationMetrics`.
What was read there does not say what becomes of undefined pixels, or of classes that do not occur; such numbers are
marked, or "n/a".
"""

import numpy as np
from jaxtyping import Float64, Int64

from segbench.metrics.boundary_f1 import boundary_f1_of_classes
from segbench.metrics.conventions.convention import (
    SAME,
    Confusion,
    Convention,
    Library,
    Scalar,
    nan_mean,
    predicts_no_class,
    ratio,
    without_answer,
)
from segbench.metrics.region import areas

CITYSCAPES = Library("cityscapesScripts", "2.3.0", "tested against the library")
PERCEPTIONMETRICS = Library("PerceptionMetrics", "3.1.0", "compared with the release")
NNUNET = Library("nnU-Net v2", "2.8.1", "compared with the release")
MATLAB = Library("MATLAB", "evaluateSemanticSegmentation", "documentation only")


def cityscapesscripts(confusion: Confusion) -> list[Convention]:
    """The class average of the evaluation script ("Score Average"), printed with three digits.

    Column K stands for its ignored labels, which are errors when predicted; a label outside its 34 raises.
    """
    truth, predicted, correct = areas(confusion.sum(0))
    iou = _iou(truth, predicted, correct)
    known = [float(score) for score in iou if np.isfinite(score)]
    average = sum(known) / len(known) if known else float("nan")
    return [CITYSCAPES.row("averageScoreClasses", average, f"{average:.3f}", "mean_iou", SAME)]


def perceptionmetrics(confusion: Confusion) -> list[Convention]:
    """The macro and micro columns of its table; texts as in its CSV, NaN where the cell is empty."""
    truth, predicted, correct = areas(confusion.sum(0))
    union, pixels = truth + predicted - correct, truth.sum()
    recall, precision, dice = ratio(correct, truth), ratio(correct, predicted), ratio(2 * correct, truth + predicted)
    f1 = ratio(2 * (precision * recall), precision + recall)
    right = correct.sum() + (pixels - union).sum()
    negatives = "counts true negatives, K - 1 classes of them at a right pixel"
    zero = "a class never predicted right is left out, not 0, for its precision + recall is not above 0"
    pooled = "one ratio of areas summed over classes too, so that large classes decide"
    rows = [
        _full(PERCEPTIONMETRICS, "iou, macro", nan_mean(_iou(truth, predicted, correct)), "mean_iou", SAME),
        _full(PERCEPTIONMETRICS, "iou, micro", ratio(correct.sum(), union.sum()), "mean_iou", pooled),
        _full(PERCEPTIONMETRICS, "accuracy, micro", ratio(right, truth.size * pixels), "global_accuracy", negatives),
        _full(PERCEPTIONMETRICS, "recall, macro", nan_mean(recall), "class_accuracy", SAME),
        _full(PERCEPTIONMETRICS, "f1_score, macro", nan_mean(f1), "mean_dice", zero),
        _full(PERCEPTIONMETRICS, "dice_score, macro", nan_mean(dice), "mean_dice", SAME),
    ]
    wraps = "void is one more class where its ontology lists it; else the count moves to another class, or it raises"
    return without_answer(rows, wraps) if predicts_no_class(confusion) else rows


def nnunet(confusion: Confusion, background: str) -> list[Convention]:
    """`foreground_mean` of summary.json, with `ignore_label` void: label 0 is background by design.

    Each class is averaged over the images that have it in either map, then the classes are. A class that no image has
    makes it NaN.
    """
    truth, predicted, correct = (areas(confusion)[:, i] for i in range(3))
    why = f'mean over images first, then over classes without class 0 ("{background}"), its background'
    return [
        _full(NNUNET, f"foreground_mean {name}", _foreground_mean(scores), ours, why)
        for name, scores, ours in (
            ("Dice", ratio(2 * correct, truth + predicted), "mean_dice"),
            ("IoU", _iou(truth, predicted, correct), "mean_iou"),
        )
    ]


def _foreground_mean(scores: Float64[np.ndarray, "n k"]) -> float:
    return float(np.mean([nan_mean(np.ascontiguousarray(of_class)) for of_class in scores.T[1:]]))


def matlab(confusion: Confusion, boundary: Int64[np.ndarray, "n k 4"] | None) -> list[Convention]:
    """`DataSetMetrics`, with five digits as MATLAB shows a table; void taken as undefined pixels."""
    truth, predicted, correct = areas(confusion.sum(0))
    iou, recall = _iou(truth, predicted, correct), ratio(correct, truth)
    rows = [
        _matlab("GlobalAccuracy", ratio(correct.sum(), truth.sum()), "global_accuracy"),
        _matlab("MeanAccuracy", recall.mean(), "class_accuracy"),
        _matlab("MeanIoU", iou.mean(), "mean_iou"),
        _matlab("WeightedIoU", ratio((iou * truth).sum(), truth.sum()), "frequency_weighted_iou"),
    ]
    if confusion[:, -1].any():
        rows = [row._replace(checked="not verified", why=f"{SAME}, if undefined pixels are left out") for row in rows]
    absent = "its documentation does not say how a class that does not occur enters the mean"
    rows = [row if np.isfinite(row.value) else without_answer([row], absent)[0] for row in rows]
    if predicts_no_class(confusion):
        rows = without_answer(rows, "its documentation does not say how an undefined prediction counts")
    return [*rows, _mean_bf_score(boundary)]


def _mean_bf_score(boundary: Int64[np.ndarray, "n k 4"] | None) -> Convention:
    """Of its boundary map, of void and of absent classes nothing is documented; this is the likeliest reading."""
    blank = _matlab("MeanBFScore", np.nan, "boundary_f1")
    if boundary is None:
        return without_answer([blank], "needs boundary counts under the rule distance at 0.75% of the diagonal")[0]
    images = np.array([nan_mean(image) for image in boundary_f1_of_classes(boundary)])
    why = "matches by distance; mean over an image's classes, then over images; its contours may be drawn otherwise"
    row = _matlab("MeanBFScore", nan_mean(images), "boundary_f1")
    return row._replace(checked="not verified", why=why)


def _iou(truth: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> np.ndarray:
    return ratio(correct, truth + predicted - correct)


def _full(library: Library, name: str, value: Scalar, ours: str, why: str) -> Convention:
    """A number printed with all its digits."""
    text = "NaN" if np.isnan(value) else repr(float(value))
    return library.row(name, float(value), text, ours, why)


def _matlab(name: str, value: Scalar, ours: str) -> Convention:
    return MATLAB.row(name, float(value), f"{float(value):.5g}", ours, SAME)
