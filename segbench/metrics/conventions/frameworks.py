"""The evaluators of three training frameworks, which all divide areas summed over the dataset.

Read were: mmsegmentation's `mmseg/evaluation/metrics/iou_metric.py` (release 1.2.2, compared number by number),
torchvision's `references/segmentation/utils.py` (44c1739, the same in 058f331) and detectron2's
`detectron2/evaluation/sem_seg_evaluation.py` in two versions, 027099d and the earlier 9bd60d3, which differ in mIoU.

They differ in the classes of the mean, in predictions that are no class, and in arithmetic: mmsegmentation keeps areas,
and torchvision the confusion matrix that it divides, as float32.
"""

import numpy as np
from jaxtyping import Float32

from segbench.metrics.conventions.convention import (
    SAME,
    Confusion,
    Convention,
    Library,
    Scalar,
    counted_by_histc,
    nan_mean,
    predicts_no_class,
    ratio,
    without_answer,
)
from segbench.metrics.region import areas

MMSEGMENTATION = Library("mmsegmentation", "1.2.2", "compared with the release")
TORCHVISION = Library("torchvision references", "segmentation/utils.py at 44c1739", "source read")
DETECTRON2 = Library("detectron2", "sem_seg_evaluation.py at 027099d", "source read")
EARLIER_DETECTRON2 = Library("detectron2", "sem_seg_evaluation.py at 9bd60d3", "source read")


def mmsegmentation(confusion: Confusion) -> list[Convention]:
    """`IoUMetric(iou_metrics=["mIoU", "mDice"])` with its default nan_to_num=None: means leave out NaN.

    The text is of the line that mmengine logs: percent rounded to two digits, then printed with four.
    """
    counts = areas(confusion).astype(np.float32)
    truth, predicted, correct = (_add_in_turn(counts[:, i]) for i in range(3))
    union = _add_in_turn(counts[:, 1] + counts[:, 0] - counts[:, 2])
    same = f"{SAME}, in float32"
    rows = [
        _mmseg("aAcc", np.atleast_1d(ratio(correct.sum(), truth.sum())), "global_accuracy", same),
        _mmseg("mIoU", ratio(correct, union), "mean_iou", same),
        _mmseg("mAcc", ratio(correct, truth), "class_accuracy", same),
        _mmseg("mDice", ratio(2 * correct, predicted + truth), "mean_dice", same),
    ]
    return counted_by_histc(rows, confusion)


def _mmseg(name: str, scores: Float32[np.ndarray, " k"], ours: str, why: str) -> Convention:
    value = np.float32(nan_mean(scores))
    return MMSEGMENTATION.row(name, float(value), f"{np.round(value * np.float32(100), 2):.4f}", ours, why)


def _add_in_turn(values: Float32[np.ndarray, "n k"]) -> Float32[np.ndarray, " k"]:
    """The sum over images one after the other, whose rounding in float32 is not that of a pairwise sum."""
    return np.add.accumulate(values, axis=0)[-1]


def torchvision(confusion: Confusion) -> list[Convention]:
    """`ConfusionMatrix`, printed in percent with one digit; its accuracy of each class is a list and is left out."""
    counts = confusion.sum(0)[:-1, :-1].astype(np.float32)
    correct = np.diagonal(counts)
    iou = ratio(correct, counts.sum(1) + counts.sum(0) - correct)
    absent = "the same, but NaN as soon as a class is in neither truth nor prediction"
    rows = [
        _torchvision("global correct", ratio(correct.sum(), counts.sum()), "global_accuracy", f"{SAME}, in float32"),
        _torchvision("mean IoU", iou.mean(), "mean_iou", absent),
    ]
    wraps = "adds a label of K or above to the next class's count, or raises: it expects predictions to be classes"
    return without_answer(rows, wraps) if predicts_no_class(confusion) else rows


def _torchvision(name: str, value: Scalar, ours: str, why: str) -> Convention:
    return TORCHVISION.row(name, float(value), f"{float(value) * 100:.1f}", ours, why)


def detectron2(confusion: Confusion) -> list[Convention]:
    """`SemSegEvaluator`, in percent with four digits as in its "copypaste" line. Its boundary IoU is not in our counts.

    Both versions: a class without truth has no IoU. The earlier one still counted it in the number of classes.
    """
    counts = confusion.sum(0)[:-1, :-1].astype(np.float64)
    correct, truth, predicted = np.diagonal(counts), counts.sum(1), counts.sum(0)
    known, union = truth > 0, truth + predicted - correct
    iou, recall = ratio(correct[known], union[known]), ratio(correct[known], truth[known])
    weighted = (iou * ratio(truth, truth.sum())[known]).sum() if known.any() else np.nan
    only = "leaves out every class without truth pixels; here one that is predicted anywhere counts as 0"
    rows = [
        _detectron2("mIoU", ratio(iou.sum(), known.sum()), "mean_iou", only),
        _detectron2("mIoU", ratio(iou.sum(), (truth + predicted > 0).sum()), "mean_iou", SAME, EARLIER_DETECTRON2),
        _detectron2("fwIoU", weighted, "frequency_weighted_iou", SAME),
        _detectron2("mACC", ratio(recall.sum(), known.sum()), "class_accuracy", SAME),
        _detectron2("pACC", ratio(correct.sum(), truth.sum()), "global_accuracy", SAME),
    ]
    argmax = "takes the argmax of scores, so its predictions are always classes; there is no number for others"
    return without_answer(rows, argmax) if predicts_no_class(confusion) else rows


def _detectron2(name: str, value: Scalar, ours: str, why: str, library: Library = DETECTRON2) -> Convention:
    return library.row(name, float(value), f"{100 * float(value):.4f}", ours, why)
