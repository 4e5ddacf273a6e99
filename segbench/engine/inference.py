"""How label maps are made with a trained network. Settings alone: no torch here.

The largest logit is the rule ("plain"). Bayesian SegNet averages over dropout, and DeepLab-LargeFOV is refined by a
dense CRF; both come after the same training, so runs that differ in them alone share it, and the best checkpoint is
always chosen by the largest logit.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from segbench.engine.dense_crf import DenseCrf
from segbench.spec import Spec, name_alone


class Plain(Spec):
    """The class with the largest logit at every pixel, of one pass in evaluation mode (the first one of equals)."""

    name: Literal["plain"] = "plain"


PLAIN = Plain()


class MonteCarlo(Spec):
    """The class with the largest mean softmax over `samples` passes that each drop other units; the variance of the
    softmax is the uncertainty (Kendall et al., arXiv:1511.02680). Normalisation stays as in evaluation mode."""

    name: Literal["monte-carlo"]
    samples: Annotated[int, Field(ge=2, le=1000)]


Inference = Annotated[
    Annotated[Plain | MonteCarlo | DenseCrf, Field(discriminator="name")], BeforeValidator(name_alone)
]
