"""torchmetrics 1.9.0: dataset scores in `classification`, means over images in `segmentation`.

Read were the files of the release. `classification` takes `ignore_index` for void. `segmentation` has none: its integer
maps need void as a class of its own (label K of K + 1 classes), which then is scored like any other; the way around it
is one-hot maps in which void pixels of the truth are zero in every channel of both. Both are given. An image's class in
neither map is left out there, so each image counts with the number of its classes.

All divisions are in float32. Texts are as PyTorch prints a tensor, four digits.
"""

import numpy as np
from jaxtyping import Float32, Int64

from segbench.metrics.conventions.convention import (
    SAME,
    Array,
    Confusion,
    Convention,
    Library,
    Scalar,
    nan_mean,
    predicts_no_class,
    ratio,
    tensor_text,
    without_answer,
)
from segbench.metrics.region import areas

TORCHMETRICS = Library("torchmetrics", "1.9.0", "tested against the library")


def torchmetrics(confusion: Confusion) -> list[Convention]:
    """Jaccard index and accuracy in every average, then MeanIoU and DiceScore with void as a class and without void."""
    dataset = _jaccard(confusion) + _accuracy(confusion)
    wraps = "raises, or adds a label of K or above to another class: it expects predictions to be classes"
    if predicts_no_class(confusion):
        dataset = without_answer(dataset, wraps)
    return dataset + _means_over_images(confusion)


def _jaccard(confusion: Confusion) -> list[Convention]:
    """`MulticlassJaccardIndex(num_classes=K, ignore_index=void)`; a mean over no class is NaN, "micro" is 0 there."""
    counts = confusion.sum(0)[:-1, :-1].astype(np.float32)
    correct, truth = np.diagonal(counts), counts.sum(1)
    union = counts.sum(0) + truth - correct
    iou = _safe_ratio(correct, union)
    present = (union > 0).astype(np.float32)
    macro, weighted = ratio(present * iou, present.sum()).sum(), ratio(truth * iou, truth.sum()).sum()
    name, same = 'MulticlassJaccardIndex(average="{}")', f"{SAME}, in float32"
    pooled = "one ratio of areas summed over classes too, so that large classes decide"
    return [
        _row(name.format("macro"), macro, "mean_iou", same),
        _row(name.format("micro"), _safe_ratio(correct.sum(), union.sum()), "mean_iou", pooled),
        _row(name.format("weighted"), weighted, "frequency_weighted_iou", same),
    ]


def _accuracy(confusion: Confusion) -> list[Convention]:
    """`MulticlassAccuracy(num_classes=K, ignore_index=void)`, whose default average is "macro"."""
    truth, predicted, correct = areas(confusion).sum(0)
    recall = _safe_ratio(correct, truth)
    present = (truth + predicted > 0).astype(np.float32)
    name = 'MulticlassAccuracy(average="{}")'
    only_predicted = "a class only ever predicted counts as 0; here it has no accuracy and is left out"
    same = f"{SAME}, but 0 for no scored pixels"
    weighted = _safe_ratio(truth.astype(np.float32) * recall, truth.sum()).sum()
    macro = _safe_ratio(present * recall, present.sum()).sum()
    return [
        _row(name.format("macro"), macro, "class_accuracy", only_predicted),
        _row(name.format("micro"), _safe_ratio(correct.sum(), truth.sum()), "global_accuracy", same),
        _row(name.format("weighted"), weighted, "global_accuracy", same),
    ]


def _means_over_images(confusion: Confusion) -> list[Convention]:
    with_void = np.stack([confusion.sum(-1), confusion.sum(-2), np.diagonal(confusion, axis1=-2, axis2=-1)], axis=-2)
    without = areas(confusion)
    trap = "mean over pairs of image and class; void is one more class, for there is no ignore_index"
    mean = "mean over pairs of image and class, not of the dataset's areas; needs one-hot maps with void set to zero"
    dice_trap = "mean over images of the mean over an image's classes, void one of them, for there is no ignore_index"
    dice = "mean over images of the mean over an image's classes; needs one-hot maps with void set to zero"
    return [
        _row('MeanIoU(K + 1, input_format="index")', _mean_iou(with_void), "mean_iou", trap),
        _row('MeanIoU(K, input_format="one-hot"), void zeroed', _mean_iou(without), "mean_iou", mean),
        _row('DiceScore(K + 1, input_format="index")', _dice_score(with_void), "mean_dice", dice_trap),
        _row('DiceScore(K, input_format="one-hot"), void zeroed', _dice_score(without), "mean_dice", dice),
    ]


def _mean_iou(counts: Int64[np.ndarray, "n 3 c"]) -> float:
    """Scores are added image by image, as batches of one would be."""
    truth, predicted, correct = (counts[:, i] for i in range(3))
    union = truth + predicted - correct
    scores = _safe_ratio(correct, union).sum(1)
    return float(ratio(np.add.accumulate(scores)[-1], np.asarray((union > 0).sum(), np.float32)))


def _dice_score(counts: Int64[np.ndarray, "n 3 c"]) -> float:
    """average="macro" and aggregation_level="samplewise", the defaults; an image without a class is left out."""
    truth, predicted, correct = (counts[:, i] for i in range(3))
    dice = ratio((2 * correct).astype(np.float32), (truth + predicted).astype(np.float32))
    return nan_mean(np.array([nan_mean(image) for image in dice], np.float32))


def _safe_ratio(part: Array, whole: Array) -> Float32[np.ndarray, "..."]:
    """part / whole in float32, 0 for 0/0."""
    return np.asarray(np.nan_to_num(ratio(np.asarray(part, np.float32), np.asarray(whole, np.float32))))


def _row(name: str, value: Scalar, ours: str, why: str) -> Convention:
    return TORCHMETRICS.row(name, float(value), tensor_text(float(np.float32(value))), ours, why)
