"""Boundary F1, read from the boundary counts of images.

The F1 of one class in one image is 2PR / (P + R), where P is the share of predicted boundary pixels found in the truth
and R the share of the truth's found in the prediction (Csurka, Larlus & Perronnin, BMVC 2013). A P, R or F without a
denominator is 0. How it becomes one number of a dataset differs from code to code, by several points. So a reading is
three names (`Averaging`), and each default is what the SegNet authors' script does:

average
- "classes-then-images": the mean over the classes of each image, then over images (the script, and in this order also
  MATLAB's `MeanBFScore` of a dataset).
- "images-then-classes": the mean of each class over the images that score it, then over classes.
- "pooled-per-class": counts of a class summed over images, one F a class, then the mean over classes.
- "pooled-per-image": counts of an image summed over classes, one F an image, then the mean over images.
- "f-of-means": P and R each averaged over all pairs of image and class that are scored, then one F of the two means.

presence: which classes an image scores; the counts of the others are left out under every average.
- "either": those with a boundary in truth or prediction. A class that is only predicted scores 0. (The script's comment
  says "present in that ground truth image"; its code does this.)
- "truth": those with a boundary in the truth; what is predicted of others costs nothing.

empty: what an image is that scores no class, where a mean over images is taken last.
- "zero": it scores 0 and counts, as in the script, even where two constant maps agree.
- "skip": it is left out.

A class that fills the image has no boundary, and is not present by these rules. Departures: none known.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64, Int64, Real

from segbench.metrics.averages import mean_defined, mean_facts, ratio, read_means

Average = Literal["classes-then-images", "images-then-classes", "pooled-per-class", "pooled-per-image", "f-of-means"]
Presence = Literal["either", "truth"]
Empty = Literal["zero", "skip"]
Statistic = Literal["f1", "precision", "recall"]

Counts = Int64[np.ndarray, "n k 4"]
Facts = Float64[np.ndarray, "n m"]


class Averaging(NamedTuple):
    """How counts of images become one F1; the defaults are the SegNet authors' script."""

    average: Average = "classes-then-images"
    presence: Presence = "either"
    empty: Empty = "zero"


SCRIPT = Averaging()


def boundary_f1(
    counts: Counts,
    *,
    average: Average = SCRIPT.average,
    presence: Presence = SCRIPT.presence,
    empty: Empty = SCRIPT.empty,
) -> float:
    """The F1 of a set of images from (n_pred, tp_pred, n_gt, tp_gt) per image and class, in [0, 1].

    By default the BF of the SegNet paper. NaN where there is nothing to average: no images, or none that scores a class
    (but under `empty="zero"` an average that ends over images gives such a set 0).
    """
    averaging = Averaging(average, presence, empty)
    return float(read(facts(counts, averaging).sum(0), averaging))


def facts(counts: Counts, averaging: Averaging = SCRIPT) -> Facts:
    """The numbers of each image that add up over images to what `read` reads; never NaN.

    m is 2 where the mean over images comes last, 2k for "images-then-classes", 4k for "pooled-per-class", and 3 for
    "f-of-means". The facts of one image read as the score of that image alone.
    """
    assert averaging.presence in get_args(Presence) and averaging.empty in get_args(Empty), averaging
    scored = _scored(counts, averaging.presence)
    if averaging.average == "classes-then-images":
        return _facts_of_images(np.asarray(mean_defined(_f1(scored))), averaging.empty)
    if averaging.average == "pooled-per-image":
        return _facts_of_images(_f1(scored.sum(1)), averaging.empty)
    if averaging.average == "images-then-classes":
        return mean_facts(_f1(scored))
    if averaging.average == "pooled-per-class":
        return scored.reshape(len(scored), 4 * scored.shape[1]).astype(np.float64)
    assert averaging.average == "f-of-means", averaging.average
    pairs = np.isfinite(_f1(scored))
    return np.stack([np.nan_to_num(_precision(scored)), np.nan_to_num(_recall(scored)), pairs], axis=-1).sum(1)


def read(sums: Float64[np.ndarray, "*batch m"], averaging: Averaging = SCRIPT) -> float | Float64[np.ndarray, "*batch"]:
    """The F1 of sums over images of `facts`, with any leading axes; NaN where it is not defined."""
    if averaging.average in ("classes-then-images", "pooled-per-image"):
        return read_means(sums)[..., 0]
    if averaging.average == "images-then-classes":
        return mean_defined(read_means(sums))
    if averaging.average == "pooled-per-class":
        return mean_defined(_f1(sums.reshape(*sums.shape[:-1], -1, 4)))
    assert averaging.average == "f-of-means", averaging.average
    precision, recall, pairs = sums[..., 0], sums[..., 1], sums[..., 2]
    return _harmonic(np.asarray(ratio(precision, pairs)), np.asarray(ratio(recall, pairs)))


def class_facts(counts: Counts, statistic: Statistic = "f1", presence: Presence = "either") -> Facts:
    """Facts of the mean of each class over images, [n, 2k]; `averages.read_means` reads their sums, one value a class.

    An image counts for a class where the statistic is defined: precision needs predicted boundary pixels, recall true
    ones, F1 either. So the three are means over different images.
    """
    scored = _scored(counts, presence)
    return mean_facts({"f1": _f1, "precision": _precision, "recall": _recall}[statistic](scored))


def boundary_f1_of_classes(counts: Counts, presence: Presence = "either") -> Float64[np.ndarray, "n k"]:
    """F1 of every class in every image; NaN where the class is not present."""
    return _f1(_scored(counts, presence))


def boundary_f1_per_class(counts: Counts, presence: Presence = "either") -> Float64[np.ndarray, " k"]:
    """Mean F1 of each class over the images where it is present; NaN where it never is.

    Its mean is "images-then-classes", not the default average.
    """
    return read_means(class_facts(counts, presence=presence).sum(0))


def boundary_precision_per_class(counts: Counts, presence: Presence = "either") -> Float64[np.ndarray, " k"]:
    """Mean precision of each class over the images where a boundary of it is predicted; NaN where none is."""
    return read_means(class_facts(counts, "precision", presence).sum(0))


def boundary_recall_per_class(counts: Counts, presence: Presence = "either") -> Float64[np.ndarray, " k"]:
    """Mean recall of each class over the images where the truth has a boundary of it; NaN where none has."""
    return read_means(class_facts(counts, "recall", presence).sum(0))


def _scored(counts: Counts, presence: Presence) -> Counts:
    """The counts of what is scored, elsewhere 0."""
    if presence == "either":
        return counts
    return np.where(counts[..., 2:3] > 0, counts, 0)


def _facts_of_images(f1: Float64[np.ndarray, " n"], empty: Empty) -> Float64[np.ndarray, "n 2"]:
    return mean_facts((np.nan_to_num(f1) if empty == "zero" else f1)[:, None])


def _precision(counts: Real[np.ndarray, "*batch 4"]) -> Float64[np.ndarray, "*batch"]:
    return np.asarray(ratio(counts[..., 1], counts[..., 0]))


def _recall(counts: Real[np.ndarray, "*batch 4"]) -> Float64[np.ndarray, "*batch"]:
    return np.asarray(ratio(counts[..., 3], counts[..., 2]))


def _f1(counts: Real[np.ndarray, "*batch 4"]) -> Float64[np.ndarray, "*batch"]:
    """NaN without any boundary pixel; 0 with boundary pixels on one side only."""
    f1 = _harmonic(np.nan_to_num(_precision(counts)), np.nan_to_num(_recall(counts)))
    return np.where(counts[..., 0] + counts[..., 2] > 0, f1, np.nan)


def _harmonic(
    precision: Float64[np.ndarray, "*batch"], recall: Float64[np.ndarray, "*batch"]
) -> Float64[np.ndarray, "*batch"]:
    """2PR / (P + R); 0 where both are 0, NaN where one is NaN."""
    total = precision + recall
    zero_or_nan = np.where(np.isnan(total), np.nan, 0.0)
    return np.divide(2 * precision * recall, total, out=zero_or_nan, where=total > 0)
