"""Boundary counts of two label maps, and the boundary F1 measure read from them.

A pixel is a boundary pixel of class c iff its 2x2 window {(y,x), (y,x+1), (y+1,x), (y+1,x+1)} holds c and something
else: the BSDS benchmark's `seg2bdry(labels == c, 'imageSize')`. The window repeats the last row and column, so the
last row compares only right, the last column only down, and the image's frame is no boundary. Boundaries lie half a
pixel up and left of the crack between regions, in both maps alike. Since the rule does not mix classes, one map of bit
masks holds the boundaries of all of them.

Two rules say when a boundary pixel is found, at a distance d with d**2 <= T:

- "bsds": pixels of prediction and truth are paired one to one, as many as can be (Martin, Fowlkes & Malik, PAMI 2004;
  Csurka et al., BMVC 2013; the SegNet authors' script). Departure: the benchmark's `correspondPixels` draws random
  outlier edges and so now and then misses a pair; this is the maximum that it approaches, the same every time.
- "distance": each pixel looks for any pixel of the other map, alone. It is more lenient: name the rule with the number.

Void policy (`VOID_POLICY`): that of the SegNet authors' script. Void is only "not c": an edge to void is a boundary of
c, void's own outline is not scored, and what is predicted inside void is.
"""

from collections.abc import Iterator
from fractions import Fraction
from math import isqrt
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from segbench.metrics import boundary_numpy
from segbench.metrics.compiled import kernels

Rule = Literal["bsds", "distance"]
VOID_POLICY = "segnet-script"

Maps = UInt8[np.ndarray, "h w"]
Masks = np.ndarray  # uint16 or uint64: one bit per class


def tolerance_squared(size: tuple[int, int], fraction: Fraction) -> int:
    """Largest integer T with sqrt(T) <= fraction of the diagonal of size (h, w), exactly.

    Squared distances are integers, so T decides as the real tolerance would. In floats it does not: at 400x800 and
    0.75 % a distance of just the tolerance is lost.
    """
    height, width = size
    return fraction.numerator**2 * (height**2 + width**2) // fraction.denominator**2


def boundary_counts(
    truth: Maps, prediction: Maps, num_classes: int, rule: Rule, tolerance_sq: int
) -> Int64[np.ndarray, "k 4"]:
    """(n_pred, tp_pred, n_gt, tp_gt) of each class: boundary pixels of a map, and those found in the other.

    Labels of num_classes and above are void. `tolerance_sq` is in squared pixels; a distance equal to the tolerance
    counts. Under "bsds" tp_pred == tp_gt, the number of pairs.
    """
    # The compiled kernels trust both: another shape or type would have them read beyond the maps.
    assert truth.shape == prediction.shape, f"truth of shape {truth.shape}, prediction of {prediction.shape}"
    assert truth.dtype == prediction.dtype == np.uint8, f"maps of {truth.dtype} and {prediction.dtype}, not uint8"
    assert 1 <= num_classes <= 254
    assert tolerance_sq >= 0
    assert rule in ("bsds", "distance")
    counts = np.zeros((num_classes, 4), np.int64)
    if truth.size == 0:
        return counts
    # numba compiles once more for read-only arrays; a copy takes microseconds and is rarely needed.
    truth = np.require(truth, requirements=["C", "W"])
    prediction = np.require(prediction, requirements=["C", "W"])
    half_widths = disk_half_widths(tolerance_sq, truth.shape)
    counters = kernels() or boundary_numpy
    count = counters.bsds_counts if rule == "bsds" else counters.distance_counts
    for classes in _class_groups(truth, prediction, num_classes):
        counts[classes] = count(truth, prediction, _bit_table(classes), half_widths).T[: classes.size]
    return counts


def disk_half_widths(tolerance_sq: int, size: tuple[int, int]) -> Int64[np.ndarray, " rows"]:
    """The disk d**2 <= T as the half width of its rows dy = 0, 1, …; cut to what fits into size (h, w)."""
    height, width = size
    reach = min(isqrt(tolerance_sq), height - 1)
    return np.array([min(isqrt(tolerance_sq - dy * dy), width - 1) for dy in range(reach + 1)], np.int64)


def boundary_f1_of_classes(counts: Int64[np.ndarray, "n k 4"]) -> Float64[np.ndarray, "n k"]:
    """F1 of every class in every image.

    NaN where the class has a boundary neither in truth nor in prediction; where it has one on one side only, F is 0.
    """
    n_pred, tp_pred, n_gt, tp_gt = (counts[..., i].astype(np.float64) for i in range(4))
    precision = np.divide(tp_pred, n_pred, out=np.zeros_like(n_pred), where=n_pred > 0)
    recall = np.divide(tp_gt, n_gt, out=np.zeros_like(n_gt), where=n_gt > 0)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return np.where(n_pred + n_gt > 0, f1, np.nan)


def boundary_f1_of_images(counts: Int64[np.ndarray, "n k 4"]) -> Float64[np.ndarray, " n"]:
    """Mean F1 over the classes that have a boundary in truth or prediction of the image; 0 for an image without any.

    That 0 is the SegNet authors' script's: a pair of constant maps scores 0, even where they agree, and it counts.
    The script's comment says "present in that ground truth image"; its code also counts classes only predicted.
    """
    f1 = boundary_f1_of_classes(counts)
    classes = np.isfinite(f1).sum(axis=1)
    return np.divide(np.nansum(f1, axis=1), classes, out=np.zeros(len(f1)), where=classes > 0)


def boundary_f1(counts: Int64[np.ndarray, "n k 4"]) -> float:
    """The BF of the SegNet paper: mean over images of `boundary_f1_of_images`; NaN without images."""
    return float(boundary_f1_of_images(counts).mean()) if len(counts) else float("nan")


def boundary_f1_per_class(counts: Int64[np.ndarray, "n k 4"]) -> Float64[np.ndarray, " k"]:
    """Mean F1 of each class over the images where it has a boundary in truth or prediction; NaN where it never has.

    Its mean over classes is not `boundary_f1`, which averages over classes first.
    """
    f1 = boundary_f1_of_classes(counts)
    images = np.isfinite(f1).sum(axis=0)
    return np.divide(np.nansum(f1, axis=0), images, out=np.full(f1.shape[1], np.nan), where=images > 0)


def _class_groups(truth: Maps, prediction: Maps, num_classes: int) -> Iterator[Int64[np.ndarray, " group"]]:
    """The classes in groups that fit into one mask: all of them up to 16, else those that occur, by 16 or by 64."""
    if num_classes <= 16:
        yield np.arange(num_classes)
        return
    present = np.zeros(256, np.uint8)
    fast = kernels()
    for labels in (truth, prediction):
        if fast is None:
            present |= np.bincount(labels.reshape(-1), minlength=256) > 0
        else:
            fast.mark_present(labels, present)
    classes = np.flatnonzero(present[:num_classes])
    for start in range(0, classes.size, 64):
        yield classes[start : start + 64]


def _bit_table(classes: Int64[np.ndarray, " group"]) -> Masks:
    """Label -> mask with the class's bit. Void and classes outside the group have none, but still break windows."""
    table = np.zeros(256, np.uint16 if classes.size <= 16 else np.uint64)
    table[classes] = table.dtype.type(1) << np.arange(classes.size, dtype=table.dtype)
    return table
