"""How a network is trained. No torch here: a recipe is read, merged and hashed before anything heavy is imported.

The defaults are those that the SegNet paper's benchmark shares among its networks (Badrinarayanan et al.,
arXiv:1511.00561, section 4): SGD with momentum 0.9 at a fixed rate. Weight decay 5e-4 stands in every solver file
that was released, and in none of the paper's sentences.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from segbench.data.class_weights import ClassWeights
from segbench.engine.schedule import Fixed, Schedule, Share
from segbench.models.input_spec import OwnInput
from segbench.spec import Precision, Size, Spec

TRAIN_VERSION = 2
"""Part of every training's key: raised when a change of the engine changes what is trained."""


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=0.1, le=10, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1)]

LossNormaliser = Literal["valid-pixels", "weights", "none"]
LastBatch = Literal["wrap", "keep", "drop"]
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


class Augmentation(Spec):
    """What is drawn anew each time that an image is fed in training: off in the papers' recipes (`augment.py`)."""

    flip: Share = 0.0
    """Probability of a mirror image, left to right."""
    scale: tuple[Factor, Factor] | None = None
    """Least and largest factor of the image's size."""
    crop: Size | None = None
    """What is cut out at random, after scaling; needed with `scale`, whose images have many sizes."""
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    @model_validator(mode="after")
    def _one_size(self) -> "Augmentation":
        if self.scale and self.scale[0] > self.scale[1]:
            raise ValueError(f"augment.scale is {list(self.scale)}; write the smaller factor first")
        if self.scale and self.crop is None:
            raise ValueError("augment.scale makes images of many sizes; add augment.crop, the size to cut out of them")
        return self


class Recipe(Spec):
    """One training. Images are shuffled anew each epoch (`order.py`). The loss is cross-entropy with a weight for each
    class; void pixels have no part in it. An update is `accumulate` passes of `batch_size` images, and an iteration
    is an update, as in Caffe. On several GPUs `batch_size` is that of all of them together."""

    optimizer: Annotated[Sgd | AdamW, Field(discriminator="name")]
    schedule: Schedule = Fixed()
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    iterations: PositiveInt | None = None
    epochs: PositiveInt | None = None
    """Instead of `iterations`; `with_length` turns them into iterations when the number of images is known."""
    last_batch: LastBatch = "wrap"
    """What becomes of an epoch's last batch where the images run out: `wrap` fills it from the next epoch, as Caffe's
    data layer does; `keep` leaves it short; `drop` leaves it out."""
    class_weights: ClassWeights = "natural"
    """`shipped`: the numbers printed in the released SegNet files, for datasets that have some."""
    loss_normaliser: LossNormaliser = "valid-pixels"
    """What the weighted sum over a batch is divided by: the number of valid pixels (caffe-segnet's code), the sum of
    their weights (PyTorch's weighted mean), or nothing (the SegNet paper's words, and at batch 1 the files of FCN,
    whose rates of 1e-10 and below go with it). Without class weights the first two are the same."""
    augment: Augmentation = Augmentation()
    select_by: Literal["global_accuracy", "mean_iou"] = "global_accuracy"
    validate_every: PositiveInt | None = None
    patience: PositiveInt | None = None
    """Stop when the validation score has not risen for so many iterations; `iterations` is then the most there are."""
    multipliers: Literal["model", "none"] = "model"
    """`model`: the learning-rate and decay multipliers of the released files; `none`: one rate for every weight."""
    norm_statistics: NormStatistics = "running"
    """What batch normalisation uses outside training: PyTorch's running averages, or those of one pass over the
    training set, as caffe-segnet has them (`batchnorm.py`); the pass comes before each validation and each checkpoint
    that is kept."""
    norm_eps: Rate | None = None
    """What batch normalisation adds to a variance: caffe-segnet's is 1e-9; None leaves the network's own, 1e-5."""
    sync_norm: bool = False
    """On several GPUs, batch normalisation over all of their images (torch's SyncBatchNorm) instead of each one's."""
    input: OwnInput = None
    """What is set here replaces what the model's paper fed it."""
    mode: Literal["deterministic", "fast"] = "deterministic"
    """`deterministic`: the same machine, libraries and seed give bit-identical weights. `fast` lets cuDNN try which
    algorithms are fastest, and operators add in any order."""
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    """Record an update's kernels once and replay them (torch.compile's reduce-overhead); needs `compile`."""
    fused: bool = False
    """The optimizer's update in one kernel."""
    activation_checkpointing: bool = False
    """Forget activations in the forward pass and compute them again in the backward pass: larger batches, more time."""

    @model_validator(mode="after")
    def _has_a_length(self) -> "Recipe":
        if self.iterations is None and self.epochs is None:
            raise ValueError("a recipe needs `iterations` or `epochs`; add one of them")
        if self.iterations and self.epochs:
            raise ValueError("iterations and epochs both say how long to train; leave one of them out")
        return self

    @model_validator(mode="after")
    def _validates_in_time(self) -> "Recipe":
        if self.validate_every and self.iterations and self.validate_every > self.iterations:
            raise ValueError(
                f"validate_every ({self.validate_every}) is more than iterations ({self.iterations}): "
                "no checkpoint would ever be selected; lower validate_every"
            )
        if self.iterations and self.schedule.warmup >= self.iterations:
            raise ValueError(
                f"schedule.warmup ({self.schedule.warmup}) is not less than iterations ({self.iterations}): "
                "the full rate would never be reached; lower it"
            )
        if self.patience and not self.validate_every:
            raise ValueError("patience needs validation; set validate_every")
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs are recorded by torch.compile; add compile: true")
        return self
