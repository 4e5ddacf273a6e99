"""Region scores, read from the areas of classes summed over a dataset.

A region score needs three numbers a class: its pixels in truth, in prediction, and those where both agree. `areas`
takes them from confusion counts. The scores sum over the dataset first and divide once (Long et al., CVPR 2015,
section 5, and Badrinarayanan et al., arXiv:1511.00561, section 4), with these conventions:

- void truth (row K of the counts) is left out of every score: it is neither an error nor part of a union;
- a prediction of void or out of range on a scored pixel is an error of that pixel's class;
- a class that a mean is not defined for is left out of the mean; 0/0 is NaN, never 0 or 1.

Every score takes areas with any leading axes (images, resamples) and keeps them. Departures: none known.
"""

import numpy as np
from jaxtyping import Float64, Int64, Real

from segbench.metrics.averages import mean_defined, ratio

Areas = Real[np.ndarray, "*batch 3 k"]
PerClass = Float64[np.ndarray, "*batch k"]
Score = float | Float64[np.ndarray, "*batch"]


def areas(counts: Int64[np.ndarray, "*batch k1 k1"]) -> Int64[np.ndarray, "*batch 3 k1-1"]:
    """(truth, predicted, correct) pixels of each class, where truth is not void. They add up over images."""
    scored = counts[..., :-1, :]
    correct = np.diagonal(scored, axis1=-2, axis2=-1)
    return np.stack([scored.sum(-1), scored[..., :-1].sum(-2), correct], axis=-2)


def global_accuracy(areas: Areas) -> Score:
    """Correct pixels over all pixels with a class (the papers' G)."""
    truth, _, correct = _parts(areas)
    return ratio(correct.sum(-1), truth.sum(-1))


def per_class_accuracy(areas: Areas) -> PerClass:
    """Correct pixels of a class over its truth pixels (its recall); NaN for a class without truth."""
    truth, _, correct = _parts(areas)
    return np.asarray(ratio(correct, truth))


def per_class_precision(areas: Areas) -> PerClass:
    """Correct pixels of a class over the pixels predicted as it; NaN for a class never predicted."""
    _, predicted, correct = _parts(areas)
    return np.asarray(ratio(correct, predicted))


def per_class_iou(areas: Areas) -> PerClass:
    """Intersection over union, both counted where truth is not void; NaN for a class with an empty union."""
    truth, predicted, correct = _parts(areas)
    return np.asarray(ratio(correct, truth + predicted - correct))


def per_class_dice(areas: Areas) -> PerClass:
    """Twice the intersection over the sum of both areas (the F1 of pixels); NaN for a class with neither."""
    truth, predicted, correct = _parts(areas)
    return np.asarray(ratio(2 * correct, truth + predicted))


def class_accuracy(areas: Areas) -> Score:
    """Mean of `per_class_accuracy` over the classes that have truth pixels (the papers' C)."""
    return mean_defined(per_class_accuracy(areas))


def mean_iou(areas: Areas) -> Score:
    """Mean of `per_class_iou` over the classes with a non-empty union, so a class only ever predicted counts as 0."""
    return mean_defined(per_class_iou(areas))


def mean_dice(areas: Areas) -> Score:
    """Mean of `per_class_dice` over the classes in truth or prediction."""
    return mean_defined(per_class_dice(areas))


def frequency_weighted_iou(areas: Areas) -> Score:
    """Mean of `per_class_iou` weighted by truth pixels, so a class only ever predicted has no weight."""
    truth, _, _ = _parts(areas)
    weighted = np.where(truth > 0, truth * np.nan_to_num(per_class_iou(areas)), 0.0)
    return ratio(weighted.sum(-1), truth.sum(-1))


def _parts(areas: Areas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return areas[..., 0, :], areas[..., 1, :], areas[..., 2, :]
