"""One pair of label maps -> everything that a `ScoreSpec` asks of it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from segbench.metrics.boundary import Matching, boundary_counts_of
from segbench.metrics.boundary_iou import band_counts
from segbench.metrics.confusion import confusion
from segbench.metrics.label_maps import Labels, prediction_labels, truth_labels
from segbench.scoring.spec import BoundarySpec, ScoreSpec, band_width, squared


class ImageCounts(NamedTuple):
    """The counts of one image; the keys are those of `Counts`."""

    confusion: Int64[np.ndarray, "k1 k1"]
    boundary: dict[str, Int64[np.ndarray, "k 4"]]
    bands: dict[str, Int64[np.ndarray, "k 3"]]


def count(labels_of_truth: Labels, labels_predicted: Labels, num_classes: int, spec: ScoreSpec) -> ImageCounts:
    """Everything that `spec` asks of one image, of maps of any integer type.

    Truth holds 0..K-1, and K or 255 for void; `ValueError` for anything else. What a prediction holds beside 0..K-1 is
    void there, an error on every pixel whose truth is a class.
    """
    truth = truth_labels(labels_of_truth, num_classes)
    prediction = prediction_labels(labels_predicted, num_classes)
    boundary, bands = {}, {}
    if spec.boundary:
        size = (truth.shape[0], truth.shape[1])
        asked = matchings(spec.boundary, size)
        boundary = dict(
            zip(asked, boundary_counts_of(truth, prediction, num_classes, list(asked.values())), strict=True)
        )
        bands = {
            width: band_counts(truth, prediction, num_classes, band_width(width, size)) for width in spec.boundary.iou
        }
    return ImageCounts(confusion(truth, prediction, num_classes), boundary, bands)


def matchings(spec: BoundarySpec, size: tuple[int, int]) -> dict[str, Matching]:
    """Each rule at each tolerance under each void policy, by its key: `bsds@0.75%`, `distance@2px/copied`."""
    return {
        key(rule, tolerance, void): Matching(rule, squared(tolerance, size), void)
        for rule in spec.rules
        for tolerance in spec.tolerances
        for void in spec.void
    }


def key(rule: str, tolerance: str, void: str) -> str:
    """What the counts of a matching are called; the authors' void policy goes unsaid."""
    return f"{rule}@{tolerance}" + ("" if void == "script" else f"/{void}")
