"""How a network is trained. No torch here: a recipe is read, merged and hashed before anything heavy is imported.

The defaults are those that the SegNet paper's benchmark shares among its networks (Badrinarayanan et al.,
arXiv:1511.00561, section 4): SGD with momentum 0.9 at a fixed rate. Weight decay 5e-4 stands in every solver file
that was released, and in none of the paper's sentences.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from segbench.models.input_spec import OwnInput
from segbench.spec import Spec

TRAIN_VERSION = 1
"""Part of every training's key: raised when a change of the engine changes what is trained."""


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1)]

LossNormaliser = Literal["valid-pixels", "weights", "none"]
NormStatistics = Literal["running", "training-set"]


class Sgd(Spec):
    """v = momentum * v + grad + weight_decay * w;  w = w - lr * v, as torch.optim.SGD has it.

    Caffe multiplies by the rate before the momentum; with a fixed rate the two are the same.
    """

    name: Literal["sgd"] = "sgd"
    lr: Rate
    momentum: Momentum = 0.9
    weight_decay: Decay = 5e-4


class AdamW(Spec):
    """torch.optim.AdamW, for modern networks (Loshchilov & Hutter, arXiv:1711.05101)."""

    name: Literal["adamw"]
    lr: Rate
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    weight_decay: Decay = 1e-2


class Recipe(Spec):
    """One training. Images are shuffled anew each epoch; the last short batch is filled from the next epoch, as
    Caffe's data layer does. The loss is cross-entropy with a weight for each class; void pixels have no part in it."""

    optimizer: Annotated[Sgd | AdamW, Field(discriminator="name")]
    batch_size: PositiveInt
    iterations: PositiveInt
    class_weights: Literal["natural", "median-frequency", "shipped"] = "natural"
    """`shipped`: the numbers printed in the released SegNet files, for datasets that have some."""
    loss_normaliser: LossNormaliser = "valid-pixels"
    """What the weighted sum over a batch is divided by: the number of valid pixels (caffe-segnet's code), the sum of
    their weights (PyTorch's weighted mean), or nothing (the SegNet paper's words, and the files of FCN, whose rates
    of 1e-10 and below go with it). Without class weights the first two are the same."""
    select_by: Literal["global_accuracy", "mean_iou"] = "global_accuracy"
    validate_every: PositiveInt | None = None
    multipliers: Literal["model", "none"] = "model"
    """`model`: the learning-rate and decay multipliers of the released files; `none`: one rate for every weight."""
    norm_statistics: NormStatistics = "running"
    """What batch normalisation uses outside training: PyTorch's running averages, or those of one pass over the
    training set, as caffe-segnet has them (`batchnorm.py`); the pass comes before each validation and each checkpoint
    that is kept."""
    norm_eps: Rate | None = None
    """What batch normalisation adds to a variance: caffe-segnet's is 1e-9; None leaves the network's own, 1e-5."""
    input: OwnInput = None
    """What is set here replaces what the model's paper fed it."""

    @model_validator(mode="after")
    def _validates_in_time(self) -> "Recipe":
        if self.validate_every and self.validate_every > self.iterations:
            raise ValueError(
                f"validate_every ({self.validate_every}) is more than iterations ({self.iterations}): "
                "no checkpoint would ever be selected; lower validate_every"
            )
        return self
