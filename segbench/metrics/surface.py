"""Normalised surface distance: the share of both contours that lies within a tolerance of the other.

Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy for radiotherapy",
arXiv:1809.04430 (2018), who call it the surface Dice at a tolerance. Of a class, one against the rest, it is
(tp_pred + tp_gt) / (n_pred + n_gt), read from the boundary counts of the "distance" rule. Boundary F1 under that rule
is the harmonic mean of the two shares; this one weighs them by length.

A class without a boundary in truth and prediction is NaN and left out; a class with one on one side only scores 0.

Departures, so that one boundary map serves all scores:

- DeepMind's `surface-distance` weighs each element by its length (surfels), in millimetres by the spacing of voxels,
  and closes contours along the image's frame. Here a boundary pixel counts 1, distances are in pixels, and the frame is
  no boundary.
- MONAI (without `use_subvoxels`) and MetricsReloaded count pixels too, but those of a mask's inner contour, the mask
  less its erosion; here they are those of the 2x2 rule of `boundary.py`.

Averages, by name:

- "classes-then-images" (the default, and MONAI's reduction "mean"): over the classes of each image, then over the
  images that have one;
- "images-then-classes": of each class over the images that have it (as Nikolov et al. report organs), then over
  classes.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64, Int64, Real

from segbench.metrics.averages import mean_defined, mean_facts, ratio, read_means

Average = Literal["classes-then-images", "images-then-classes"]
Counts = Int64[np.ndarray, "n k 4"]


def surface_distance(counts: Counts, *, average: Average = "classes-then-images") -> float:
    """Normalised surface distance of a set of images from (n_pred, tp_pred, n_gt, tp_gt), in [0, 1], 1 the best.

    The counts are those of the "distance" rule: under "bsds" it would be another score. NaN where no image has a class.
    """
    return float(read(facts(counts, average).sum(0), average))


def surface_distance_per_class(counts: Counts) -> Float64[np.ndarray, " k"]:
    """Mean of each class over the images that have a boundary of it; NaN where none has."""
    return read_means(facts(counts, "images-then-classes").sum(0))


def surface_distance_of_classes(counts: Real[np.ndarray, "*batch 4"]) -> Float64[np.ndarray, "*batch"]:
    """The share of boundary pixels, of both maps together, that are found; NaN without any."""
    return np.asarray(ratio(counts[..., 1] + counts[..., 3], counts[..., 0] + counts[..., 2]))


def facts(counts: Counts, average: Average = "classes-then-images") -> Float64[np.ndarray, "n m"]:
    """What adds up over images to what `read` reads: [n, 2], or [n, 2k] for "images-then-classes"."""
    assert average in get_args(Average), average
    values = surface_distance_of_classes(counts)
    return mean_facts(np.asarray(mean_defined(values))[:, None] if average == "classes-then-images" else values)


def read(
    sums: Float64[np.ndarray, "*batch m"], average: Average = "classes-then-images"
) -> float | Float64[np.ndarray, "*batch"]:
    """The score of sums over images of `facts`. Those of "images-then-classes" hold the classes: `read_means`."""
    means = read_means(sums)
    return means[..., 0] if average == "classes-then-images" else mean_defined(means)
