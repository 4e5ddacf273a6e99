"""Boundary IoU: the intersection over union of the bands along both maps' contours.

Cheng, Girshick, Dollár, Berg & Kirillov, "Boundary IoU", CVPR 2021. The band of a class is the part of its mask within
d pixels of the mask's contour: in the authors' `mask_to_boundary` the mask less its erosion, d times by a 3x3 square,
of a mask that is 0 outside of the image. So a pixel of class c is in the band of c iff the (2d+1) x (2d+1) window
around it holds anything but c or leaves the image: a mask that runs out of the frame has a band along it.

A pixel can only be in the band of its own label. So one map holds the bands of all classes, whatever their number: the
labels where windows are mixed, void elsewhere. The counts are the confusion counts of two such maps.

Void is only "not c", as in the SegNet authors' script for boundary F1: it gives its neighbours a band, has none
itself, and what is predicted inside it is scored.

The paper scores instances and segments, not semantic maps; its authors advise to change mIoU accordingly (their
repository's issue 4). That is "pooled-per-class", the default here: counts summed over images, one IoU a class, the
mean over the classes with a band. detectron2's `SemSegEvaluator` pools so too, but it erodes the map of labels as if
these were grey values, so its bands are not those of the classes. Also by name:

- "images-then-classes": the mean IoU of each class over the images with a band of it, then over classes;
- "classes-then-images": the mean over the classes of each image, then over the images that have one.

Departures: none known, beyond the pooling that the paper leaves open.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int64, Real, UInt8

from segbench.metrics.averages import mean_defined, mean_facts, ratio, read_means
from segbench.metrics.compiled import kernels
from segbench.metrics.confusion import confusion

Average = Literal["pooled-per-class", "images-then-classes", "classes-then-images"]
Maps = UInt8[np.ndarray, "h w"]
Counts = Int64[np.ndarray, "n k 3"]

STRIP_PIXELS = 1 << 16  # of NumPy's temporary maps: larger ones leave the cache, and are mapped anew at each step


def band_counts(truth: Maps, prediction: Maps, num_classes: int, width_px: int) -> Int64[np.ndarray, "k 3"]:
    """(n_pred, n_gt, n_both) of each class: pixels in its band in the prediction, in the truth, and in both.

    Labels of num_classes (1 to 254) and above are void. `width_px`, at least 1, is the paper's d.
    """
    # The compiled kernel trusts both: another shape or type would have it read beyond the maps.
    assert truth.shape == prediction.shape, f"truth of shape {truth.shape}, prediction of {prediction.shape}"
    assert truth.dtype == prediction.dtype == np.uint8, f"maps of {truth.dtype} and {prediction.dtype}, not uint8"
    assert 1 <= num_classes <= 254
    assert width_px >= 1
    pairs = confusion(band_map(truth, num_classes, width_px), band_map(prediction, num_classes, width_px), num_classes)
    n_pred, n_gt, n_both = pairs.sum(0), pairs.sum(1), np.diagonal(pairs)
    return np.stack([n_pred, n_gt, n_both], axis=1)[:num_classes]


def band_map(labels: Maps, num_classes: int, width_px: int) -> Maps:
    """The label of each pixel that is in its class's band; num_classes for all others and for void."""
    # numba compiles once more for read-only arrays; a copy takes microseconds and is rarely needed.
    labels = np.require(labels, requirements=["C", "W"])
    fast = kernels()
    return (
        _band_map_numpy(labels, num_classes, width_px) if fast is None else fast.band_map(labels, num_classes, width_px)
    )


def boundary_iou(counts: Counts, *, average: Average = "pooled-per-class") -> float:
    """Mean Boundary IoU of a set of images, in [0, 1]; NaN where no class has a band."""
    return float(read(facts(counts, average).sum(0), average))


def boundary_iou_per_class(
    counts: Counts, *, average: Literal["pooled-per-class", "images-then-classes"] = "pooled-per-class"
) -> Float64[np.ndarray, " k"]:
    """Boundary IoU of each class; NaN where it has no band in any image."""
    return read_classes(facts(counts, average).sum(0), average)


def band_iou(counts: Real[np.ndarray, "*batch 3"]) -> Float64[np.ndarray, "*batch"]:
    """n_both / (n_pred + n_gt - n_both); NaN where both bands are empty."""
    n_pred, n_gt, n_both = counts[..., 0], counts[..., 1], counts[..., 2]
    return np.asarray(ratio(n_both, n_pred + n_gt - n_both))


def facts(counts: Counts, average: Average = "pooled-per-class") -> Float64[np.ndarray, "n m"]:
    """What adds up over images to what `read` reads: the counts [n, 3k], or means, [n, 2k] and [n, 2]."""
    assert average in get_args(Average), average
    if average == "pooled-per-class":
        return counts.reshape(len(counts), 3 * counts.shape[1]).astype(np.float64)
    if average == "images-then-classes":
        return mean_facts(band_iou(counts))
    return mean_facts(np.asarray(mean_defined(band_iou(counts)))[:, None])


def read(
    sums: Float64[np.ndarray, "*batch m"], average: Average = "pooled-per-class"
) -> float | Float64[np.ndarray, "*batch"]:
    """The score of sums over images of `facts`, with any leading axes."""
    return read_means(sums)[..., 0] if average == "classes-then-images" else mean_defined(read_classes(sums, average))


def read_classes(
    sums: Float64[np.ndarray, "*batch m"], average: Literal["pooled-per-class", "images-then-classes"]
) -> Float64[np.ndarray, "*batch k"]:
    """The score of each class, of sums over images of `facts`."""
    return band_iou(sums.reshape(*sums.shape[:-1], -1, 3)) if average == "pooled-per-class" else read_means(sums)


def _band_map_numpy(labels: Maps, num_classes: int, width_px: int) -> Maps:
    band = np.minimum(labels, np.uint8(num_classes))
    height, width = labels.shape
    if min(height, width) <= 2 * width_px:  # every window leaves the image
        return band
    flat = band.reshape(-1)
    rows = max(STRIP_PIXELS // width, 4 * width_px)
    for top in range(0, height - 2 * width_px, rows):
        void = _is_inner(labels[top : top + rows + 2 * width_px], width_px).view(np.uint8) * np.uint8(num_classes)
        place = (top + width_px) * width + width_px
        np.maximum(flat[place : place + void.size], void, out=flat[place : place + void.size])
    return band


def _is_inner(labels: Maps, width_px: int) -> Bool[np.ndarray, " n"]:
    """Of each pixel in the order of the flat map: is the window whose upper left corner it is constant and inside?

    Ends with the last window. A window is constant iff each row of it is, and neighbouring rows agree at one pixel.
    """
    flat, width = labels.reshape(-1), labels.shape[1]
    same_beside = flat[1:] == flat[:-1]
    same_beside[width - 1 :: width] = False  # a step from one row's end to the next row's start
    constant = _all_of(same_beside, 2 * width_px, 1)
    below = flat[width : width + constant.size - width] == flat[: constant.size - width]
    return _all_of(below & constant[width:] & constant[:-width], 2 * width_px, width)


def _all_of(flags: Bool[np.ndarray, " n"], count: int, stride: int) -> Bool[np.ndarray, " m"]:
    """[i] = all of flags[i + j * stride] for j < count, in about log2(count) steps: each doubles what is covered."""
    covered = 1
    while covered < count:
        step = min(covered, count - covered)
        flags = flags[: -step * stride] & flags[step * stride :]
        covered += step
    return flags
