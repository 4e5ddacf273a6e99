"""How the learning rate goes over a training: pure functions of progress. No torch here.

A schedule says what the rate of every parameter group is multiplied by in the update that follows `done` of `total`
updates. `step` is Caffe's (one factor each `every` updates), `poly` is Caffe's and DeepLab's (1 - done / total) **
power, `cosine` that of Loshchilov & Hutter (arXiv:1608.03983) without restarts. In the first `warmup` updates that
factor is itself multiplied by 1, 2, ... of `warmup` + 1 parts (Goyal et al., arXiv:1706.02677): a straight climb to
`fixed`, which shifts no schedule.
"""

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from segbench.spec import Spec, name_alone

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Warmup(Spec):
    """What every schedule may begin with."""

    warmup: NonNegativeInt = 0


class Fixed(Warmup):
    name: Literal["fixed"] = "fixed"


class Step(Warmup):
    """`factor` once every `every` updates."""

    name: Literal["step"]
    every: PositiveInt
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1


class Poly(Warmup):
    name: Literal["poly"]
    power: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.9


class Cosine(Warmup):
    """From 1 to `end`."""

    name: Literal["cosine"]
    end: Share = 0.0


Schedule = Annotated[Annotated[Fixed | Step | Poly | Cosine, Field(discriminator="name")], BeforeValidator(name_alone)]


def factor(schedule: Fixed | Step | Poly | Cosine, done: int, total: int) -> float:
    """What the rates are multiplied by in the update after `done` of `total` (0 <= done < total)."""
    assert 0 <= done < total, f"update {done} of {total}"
    climb = min(1.0, (done + 1) / (schedule.warmup + 1))
    match schedule:
        case Step():
            return climb * schedule.factor ** (done // schedule.every)
        case Poly():
            return climb * (1 - done / total) ** schedule.power
        case Cosine():
            return climb * (schedule.end + (1 - schedule.end) * (1 + math.cos(math.pi * done / total)) / 2)
    return climb
