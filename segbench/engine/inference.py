"""How label maps are made with a trained network. Settings alone: no torch here.

The largest logit is the rule ("plain"). Bayesian SegNet averages over dropout, and DeepLab-LargeFOV is refined by a
dense CRF; both come after the same training, so runs that differ in them alone share it.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from segbench.engine.dense_crf import DenseCrf
from segbench.spec import Spec


class Plain(Spec):
    """The class with the largest logit at every pixel, of one pass in evaluation mode (the first one of equals)."""

    name: Literal["plain"] = "plain"


PLAIN = Plain()


class MonteCarlo(Spec):
    """The class with the largest mean softmax over `samples` passes that each drop other units; the variance of the
    softmax is the uncertainty (Kendall et al., arXiv:1511.02680). Normalisation stays as in evaluation mode."""

    name: Literal["monte-carlo"]
    samples: Annotated[int, Field(ge=2, le=1000)]


def name_alone(value: Any) -> Any:
    """`inference: plain` is short for `inference: {name: plain}`."""
    return {"name": value} if isinstance(value, str) else value


Inference = Annotated[
    Annotated[Plain | MonteCarlo | DenseCrf, Field(discriminator="name")], BeforeValidator(name_alone)
]
