"""Confusion counts of two label maps, and the region scores read from their sum over a dataset.

`counts[t, p]` is the number of pixels whose truth is t and whose prediction is p, as int64: sums of float32 areas stop
being exact at 2**24. Classes are 0..K-1. Row K is void truth; column K is a prediction of void or out of range.

The scores sum the counts over the dataset first and divide once (Long et al., CVPR 2015, section 5, and
Badrinarayanan et al., arXiv:1511.00561, section 4), with these conventions:

- void truth (row K) is left out of every score: it is neither an error nor part of a union;
- a prediction of void or out of range on a scored pixel is an error of that pixel's class;
- a class that a mean is not defined for is left out of the mean; 0/0 is NaN, never 0 or 1.

Every score takes counts with any leading axes (images, resamples) and keeps them. Departures: none known.
"""

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from segbench.metrics.compiled import kernels

Counts = Int64[np.ndarray, "*batch k1 k1"]
PerClass = Float64[np.ndarray, "*batch k1-1"]
Score = float | Float64[np.ndarray, "*batch"]


def confusion(
    truth: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "k1 k1"]:
    """Exact counts [K+1, K+1] of one pair of maps, 1 <= K <= 254.

    Truth holds 0..K (the readers see to that; a larger label is our bug and fails the assertion). Prediction may hold
    anything: K and above count as void.
    """
    # The compiled kernels trust both: another shape or type would have them read beyond the maps.
    assert truth.shape == prediction.shape, f"truth of shape {truth.shape}, prediction of {prediction.shape}"
    assert truth.dtype == prediction.dtype == np.uint8, f"maps of {truth.dtype} and {prediction.dtype}, not uint8"
    assert 1 <= num_classes <= 254, f"{num_classes} classes do not fit into uint8 labels beside void"
    assert truth.size == 0 or truth.max() <= num_classes, f"truth holds {truth.max()}, above void ({num_classes})"
    fast = kernels()
    if fast is None:
        return _confusion_numpy(truth, prediction, num_classes)
    flat, words = _flat_and_words(truth)
    predicted_flat, predicted_words = _flat_and_words(prediction)
    return fast.count_pairs(flat, words, predicted_flat, predicted_words, num_classes)


def _flat_and_words(labels: UInt8[np.ndarray, "h w"]) -> tuple[UInt8[np.ndarray, " n"], np.ndarray]:
    """The map as bytes and, for its first n // 8 * 8 bytes, as 64-bit words."""
    # numba compiles once more for read-only or unaligned arrays; a copy takes microseconds and is rarely needed.
    flat = np.require(labels, requirements=["C", "W"]).reshape(-1)
    words = flat[: flat.size // 8 * 8].view(np.uint64)
    return flat, np.require(words, requirements=["A"])


def _confusion_numpy(
    truth: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "k1 k1"]:
    """Counts runs of equal pairs, since labels are coherent: a CamVid row has a run every 20 pixels."""
    side = num_classes + 1
    dtype = np.uint8 if side * side <= 256 else np.uint16
    pairs = truth.reshape(-1) * dtype(side) + np.minimum(prediction.reshape(-1), np.uint8(num_classes))
    changes = np.flatnonzero(pairs[1:] != pairs[:-1])
    if changes.size > pairs.size // 6:  # noise: the runs cost more than they save
        return np.bincount(pairs, minlength=side * side).astype(np.int64).reshape(side, side)
    ends = np.concatenate([changes, np.arange(pairs.size)[-1:]])
    lengths = np.diff(ends, prepend=-1)
    # bincount adds its weights as float64, exact below 2**53 pixels.
    return np.bincount(pairs[ends], weights=lengths, minlength=side * side).astype(np.int64).reshape(side, side)


def global_accuracy(counts: Counts) -> Score:
    """Correct pixels over all pixels with a class (the papers' G)."""
    return _ratio(_correct(counts).sum(-1), _truth_pixels(counts).sum(-1))


def per_class_accuracy(counts: Counts) -> PerClass:
    """Correct pixels of a class over its truth pixels; NaN for a class without truth."""
    return np.asarray(_ratio(_correct(counts), _truth_pixels(counts)))


def class_accuracy(counts: Counts) -> Score:
    """Mean of `per_class_accuracy` over the classes that have truth pixels (the papers' C)."""
    return _mean_defined(per_class_accuracy(counts))


def per_class_iou(counts: Counts) -> PerClass:
    """Intersection over union, both counted where truth is not void; NaN for a class with an empty union."""
    return np.asarray(_ratio(_correct(counts), _union(counts)))


def mean_iou(counts: Counts) -> Score:
    """Mean of `per_class_iou` over the classes with a non-empty union, so a class only ever predicted counts as 0."""
    return _mean_defined(per_class_iou(counts))


def frequency_weighted_iou(counts: Counts) -> Score:
    """Mean of `per_class_iou` weighted by truth pixels, so a class only ever predicted has no weight."""
    pixels = _truth_pixels(counts)
    weighted = np.where(pixels > 0, pixels * np.nan_to_num(per_class_iou(counts)), 0.0)
    return _ratio(weighted.sum(-1), pixels.sum(-1))


def _correct(counts: Counts) -> Int64[np.ndarray, "*batch k1-1"]:
    return np.diagonal(counts, axis1=-2, axis2=-1)[..., :-1]


def _truth_pixels(counts: Counts) -> Int64[np.ndarray, "*batch k1-1"]:
    return counts[..., :-1, :].sum(-1)


def _union(counts: Counts) -> Int64[np.ndarray, "*batch k1-1"]:
    return _truth_pixels(counts) + counts[..., :-1, :-1].sum(-2) - _correct(counts)


def _ratio(part: np.ndarray | np.generic, whole: np.ndarray | np.generic) -> Score:
    """part / whole, NaN where whole is 0; a scalar for scalars."""
    defined = np.asarray(whole) > 0
    return np.divide(part, whole, out=np.full(defined.shape, np.nan), where=defined)[()]


def _mean_defined(values: Float64[np.ndarray, "*batch k"]) -> Score:
    """Mean over the last axis without its NaNs; NaN where nothing is left."""
    return _ratio(np.nansum(values, axis=-1), np.isfinite(values).sum(-1))
