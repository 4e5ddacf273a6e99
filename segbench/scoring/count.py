"""One pair of label maps -> everything that a `ScoreSpec` asks of it."""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

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


def count(truth: Labels, prediction: Labels, num_classes: int, spec: ScoreSpec) -> ImageCounts:
    """Everything that `spec` asks of one image, of maps of any integer type.

    Truth holds 0..K-1, and K or 255 for void; `ValueError` for anything else. What a prediction holds beside 0..K-1 is
    void there, an error on every pixel whose truth is a class.
    """
    return count_canonical(
        truth_labels(truth, num_classes), prediction_labels(prediction, num_classes), num_classes, spec
    )


def count_canonical(
    truth: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], num_classes: int, spec: ScoreSpec
) -> ImageCounts:
    """The same of canonical maps: uint8, truth 0..K; K and above in the prediction are void."""
    boundary, bands = {}, {}
    if spec.boundary:
        size = (truth.shape[0], truth.shape[1])
        asked = matchings(spec.boundary, size)
        counted = boundary_counts_of(truth, prediction, num_classes, list(asked.values()))
        boundary = dict(zip(asked, counted, strict=True))
        bands = {
            width: band_counts(truth, prediction, num_classes, band_width(width, size)) for width in spec.boundary.iou
        }
    return ImageCounts(confusion(truth, prediction, num_classes), boundary, bands)


@lru_cache(64)
def matchings(spec: BoundarySpec, size: tuple[int, int]) -> Mapping[str, Matching]:
    """Each rule at each tolerance under each void policy, by its key: `bsds@0.75%`, `distance@2px/copied`."""
    return MappingProxyType(
        {
            key(rule, tolerance, void): Matching(rule, squared(tolerance, size), void)
            for rule in spec.rules
            for tolerance in spec.tolerances
            for void in spec.void
        }
    )


def key(rule: str, tolerance: str, void: str) -> str:
    """What the counts of a matching are called; the authors' void policy goes unsaid."""
    return f"{rule}@{tolerance}" + ("" if void == "script" else f"/{void}")
