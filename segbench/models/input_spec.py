"""What a suite may change of a network's input. No torch here: a recipe holds it and is read before torch is imported.

Only what is set replaces the model's own; `overridden` in input.py does it. Mean and std are in the network's channel
order and after `scale`, as everywhere.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, FiniteFloat

from segbench.spec import Spec

Order = Literal["rgb", "bgr"]
LocalNormalisation = Literal["none", "lrn", "lcn"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class InputSpec(Spec):
    """Each field is one of `Input`'s; None leaves the model's."""

    order: Order | None = None
    scale: Positive | None = None
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    local_normalisation: LocalNormalisation | None = None


def _nothing_set_is_none(spec: InputSpec | None) -> InputSpec | None:
    return None if spec == InputSpec() else spec


OwnInput = Annotated[InputSpec | None, AfterValidator(_nothing_set_is_none)]
"""The setting `input`; one that sets nothing is None, so that it makes no key of its own."""
