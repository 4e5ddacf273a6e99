"""Label maps in, counts out: what is stored of a prediction, and under which convention. No torch.

Of each image are kept the confusion counts `[K+1, K+1]` (row: truth, the last one void; column: prediction, the
last one void or out of range) and, for every boundary rule and tolerance asked for, `[K, 4]` counts of
(n_pred, tp_pred, n_gt, tp_gt). Means are computed when a report reads them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from pydantic import BeforeValidator, Field, PlainValidator

from segbench.metrics.boundary import boundary_counts, tolerance_squared
from segbench.metrics.confusion import confusion
from segbench.spec import Spec, one_or_more

EVALUATE_VERSION = 2
"""Part of every evaluation's key: raised when a change changes what is counted."""

TOLERANCE = re.compile(r"(\d+(?:\.\d+)?)\s*(%|px)")


def _check_tolerance(text: Any) -> str:
    match = TOLERANCE.fullmatch(str(text).strip())
    if not match:
        raise ValueError(f'"{text}" is not a tolerance; write a share of the diagonal (0.75%) or pixels (4px)')
    number = match[1].rstrip("0").rstrip(".") if "." in match[1] else match[1]  # 0.750% is 0.75%
    return number + match[2]


Tolerance = Annotated[str, BeforeValidator(_check_tolerance)]
"""`0.75%` of the image diagonal, or `4px`: text, so that the comparison can be exact."""

Rule = Literal["bsds", "distance"]


def _check_checkpoint(value: Any) -> int | str:
    if value in ("best", "last") or (type(value) is int and value > 0):
        return value
    raise ValueError(f'"{value}" is not a checkpoint; write an iteration (5000), best or last')


Checkpoint = Annotated[int | str, PlainValidator(_check_checkpoint)]


class BoundarySpec(Spec):
    """Which boundary counts are made; the defaults are the SegNet authors' script (`computeBFmeasure.m`)."""

    rules: Annotated[tuple[Rule, ...], BeforeValidator(one_or_more), Field(min_length=1)] = ("bsds",)
    tolerances: Annotated[tuple[Tolerance, ...], BeforeValidator(one_or_more), Field(min_length=1)] = ("0.75%",)


class ScoreSpec(Spec):
    """What is counted, and after which iterations (`best`: the checkpoint that the recipe's `select_by` chose)."""

    at: Annotated[tuple[Checkpoint, ...], BeforeValidator(one_or_more), Field(min_length=1)] = ("last",)
    boundary: BoundarySpec | None = BoundarySpec()


class ImageCounts(NamedTuple):
    """The counts of one image."""

    confusion: Int64[np.ndarray, "k1 k1"]
    boundary: dict[str, Int64[np.ndarray, "k 4"]]


@dataclass(frozen=True)
class Counts:
    """The counts of a split, image by image; the keys of `boundary` name rule and tolerance: `bsds@0.75%`."""

    names: tuple[str, ...]
    confusion: Int64[np.ndarray, "n k1 k1"]
    boundary: dict[str, Int64[np.ndarray, "n k 4"]]

    def save(self, path: Path) -> None:
        """One compressed .npz; the file is whole only when this returns."""
        maps: dict[str, Any] = {f"boundary/{key}": value for key, value in self.boundary.items()}
        with path.open("wb") as file:
            np.savez_compressed(file, names=np.array(self.names), confusion=self.confusion, **maps)

    @staticmethod
    def load(path: Path) -> "Counts":
        with np.load(path, allow_pickle=False) as data:
            boundary = {k.removeprefix("boundary/"): data[k] for k in data.files if k.startswith("boundary/")}
            return Counts(tuple(data["names"].tolist()), data["confusion"], boundary)


def squared(tolerance: str, size: tuple[int, int]) -> int:
    """The largest integer squared distance within a tolerance: distances between pixels are compared in integers."""
    match = TOLERANCE.fullmatch(tolerance)
    assert match, tolerance
    number = Fraction(match[1])
    if match[2] == "%":
        return tolerance_squared(size, number / 100)
    return int(number * number)


def count(
    truth: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], num_classes: int, spec: ScoreSpec
) -> ImageCounts:
    """Everything that `spec` asks of one image. Truth holds 0..K-1 and K for void."""
    boundary = {}
    if spec.boundary:
        size = (truth.shape[0], truth.shape[1])
        for rule in spec.boundary.rules:
            for tolerance in spec.boundary.tolerances:
                limit = squared(tolerance, size)
                boundary[f"{rule}@{tolerance}"] = boundary_counts(truth, prediction, num_classes, rule, limit)
    return ImageCounts(confusion(truth, prediction, num_classes), boundary)


def gather(images: Iterable[tuple[str, ImageCounts]]) -> Counts:
    """Stack the counts of images, in the order given."""
    names, counts = zip(*images, strict=True)
    keys = counts[0].boundary
    return Counts(
        tuple(names),
        np.stack([c.confusion for c in counts]),
        {key: np.stack([c.boundary[key] for c in counts]) for key in keys},
    )
