"""What is counted of a prediction, and at which checkpoints: the `score` section of a suite."""

import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator

from segbench.metrics.boundary import Rule, VoidPolicy, tolerance_squared
from segbench.spec import Spec, one_or_more

EVALUATE_VERSION = 4
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


def _check_checkpoint(value: Any) -> int | str:
    if value in ("best", "last") or (type(value) is int and value > 0):
        return value
    raise ValueError(f'"{value}" is not a checkpoint; write an iteration (5000), best or last')


Checkpoint = Annotated[int | str, PlainValidator(_check_checkpoint)]


class BoundarySpec(Spec):
    """Which boundary counts are made; the defaults are the SegNet authors' script (`computeBFmeasure.m`).

    Every rule is counted at every tolerance under every void policy. `iou` are the widths of boundary IoU's bands.
    """

    rules: Annotated[tuple[Rule, ...], BeforeValidator(one_or_more), Field(min_length=1)] = ("bsds",)
    tolerances: Annotated[tuple[Tolerance, ...], BeforeValidator(one_or_more), Field(min_length=1)] = ("0.75%",)
    void: Annotated[tuple[VoidPolicy, ...], BeforeValidator(one_or_more), Field(min_length=1)] = ("script",)
    iou: Annotated[tuple[Tolerance, ...], BeforeValidator(one_or_more)] = ()


class ScoreSpec(Spec):
    """What is counted, and after which iterations (`best`: the checkpoint that the recipe's `select_by` chose)."""

    at: Annotated[tuple[Checkpoint, ...], BeforeValidator(one_or_more), Field(min_length=1)] = ("last",)
    boundary: BoundarySpec | None = BoundarySpec()


def squared(tolerance: str, size: tuple[int, int]) -> int:
    """The largest integer squared distance within a tolerance: distances between pixels are compared in integers."""
    match = TOLERANCE.fullmatch(tolerance)
    assert match, tolerance
    number = Fraction(match[1])
    if match[2] == "%":
        return tolerance_squared(size, number / 100)
    return int(number * number)


def band_width(width: str, size: tuple[int, int]) -> int:
    """The width of boundary IoU's band in pixels: rounded to the nearest, half to even, and at least 1 (Cheng et al.,
    CVPR 2021, their `mask_to_boundary`)."""
    match = TOLERANCE.fullmatch(width)
    assert match, width
    number = float(match[1])
    pixels = number / 100 * (size[0] ** 2 + size[1] ** 2) ** 0.5 if match[2] == "%" else number
    return max(1, round(pixels))
