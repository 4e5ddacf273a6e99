"""FCN-32s, FCN-16s and FCN-8s: class scores at strides 32, 16 and 8, upsampled by deconvolution and added.

Long, Shelhamer & Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, arXiv:1411.4038; layers
and offsets as in the reference of 2016, `voc-fcn32s`, `-16s` and `-8s`. conv1_1 pads the image by 100, so that fc6, a
7x7 convolution without padding, fits on any image; what the padding adds is cropped again, at an offset that each
network has of its own. Poolings round up: the offsets hold for no other sizes. Dropout follows fc6 and fc7.

`deconvolution`, for the upsampling kernels (K x K, starting bilinear on the diagonal):
- "learnt", the default: all are trained. "fixed": none is, as in the reference. SegNet's tables have a row for each.
  Kernels that are fixed are saved with the model and counted in its size, but not as trainable.
- "released-2015": the last is fixed and the others are trained, the first with a bias. This is the release of 2015 for
  FCN-8s; here the same rule makes of FCN-16s one trained kernel with a bias and of FCN-32s none ("fixed").

`at_once`, of FCN-8s: pool4 is multiplied by 0.01 and pool3 by 0.0001 before they are scored, as in `voc-fcn8s-atonce`,
so that it trains without FCN-32s and FCN-16s before it. That is for features of VGG16's range, without normalisation.

Score layers start at zero as in the reference: above normalised features they learn from the first step, and the rest
from the second. Batch normalisation after each of the 15 convolutions below the scores is of SegNet's benchmark, the
default here; the papers and both releases have none (`batch_norm=False`). Its shifts do not decay, as in SegNet;
`shift_decay` decays them. Which FCN the benchmark used, with which padding, is not stated; the 539 MB of its table fit
FCN-8s with 37 classes, as the sizes of its other networks do, but FCN-32s with 11 as well.

Input: BGR minus the reference's means.

Departures: He's initialisation below the scores, where the reference starts from VGG16's weights, fc6 and fc7 included
(a suite's `weights: imagenet` does), and trains FCN-16s from FCN-32s and FCN-8s from FCN-16s.
"""

from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from segbench.models import vgg
from segbench.models.input import Input
from segbench.models.layers import (
    Multiplier,
    Probability,
    bilinear_initialised,
    cropped,
    he_initialised,
    pool,
    scaled,
    split_parameters,
)

Deconvolution = Literal["learnt", "fixed", "released-2015"]


class Side(NamedTuple):
    """A pooling that is scored: `doubling` brings the coarser scores to its stride, its own are cropped at `offset`."""

    pool: int
    doubling: str
    offset: int
    scale_at_once: float

    @property
    def score(self) -> str:
        return f"score_pool{self.pool}"


class Last(NamedTuple):
    """The deconvolution to the image's resolution, and where the image begins in what it puts out."""

    name: str
    stride: int
    offset: int


POOL4 = Side(4, "upscore2", offset=5, scale_at_once=1e-2)
POOL3 = Side(3, "upscore_pool4", offset=9, scale_at_once=1e-4)


class FCN(nn.Module):
    """What the three share; each says which poolings it scores besides fc7, from the coarsest, and how it ends."""

    input = Input(order="bgr", mean=(104.00699, 116.66877, 122.67892))
    sides: tuple[Side, ...]
    last: Last
    at_once = False

    def __init__(
        self,
        num_classes: int,
        *,
        width: Multiplier = 1.0,
        dropout: Probability = 0.5,
        batch_norm: bool = True,
        deconvolution: Deconvolution = "learnt",
        shift_decay: bool = False,
    ) -> None:
        super().__init__()
        self.shift_decay = shift_decay
        self.encoder = vgg.stages(width, batch_norm=batch_norm, image_padding=100)
        self.fc = vgg.fully_connected(nn.Conv2d(scaled(512, width), scaled(4096, width), 7), dropout, batch_norm)
        self.score_fr = nn.Conv2d(scaled(4096, width), num_classes, 1)
        for side in self.sides:
            channels = scaled(vgg.CHANNELS[side.pool - 1], width)
            self.add_module(side.score, nn.Conv2d(channels, num_classes, 1))
        for side in self.sides:
            bias = deconvolution == "released-2015" and side is self.sides[0]
            self.add_module(side.doubling, _upsampling(num_classes, 2, bias))
        self.add_module(self.last.name, _upsampling(num_classes, self.last.stride))
        self._initialise(deconvolution)

    def _initialise(self, deconvolution: Deconvolution) -> None:
        he_initialised(self)
        for score in ("score_fr", *(side.score for side in self.sides)):
            nn.init.zeros_(getattr(self, score).weight)
        for name in (*(side.doubling for side in self.sides), self.last.name):
            bilinear_initialised(getattr(self, name))
            trained = deconvolution == "learnt" or (deconvolution == "released-2015" and name != self.last.name)
            getattr(self, name).weight.requires_grad_(trained)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        pooled = [images]
        for stage in self.encoder:
            # 360x480 is 558x678 with its padding, then 279, 140, 70, 35 and 18 rows.
            pooled.append(pool(stage(pooled[-1])))
        scores = self.score_fr(self.fc(pooled[5]))
        for side in self.sides:
            scores = getattr(self, side.doubling)(scores)
            features = side.scale_at_once * pooled[side.pool] if self.at_once else pooled[side.pool]
            scores = scores + cropped(getattr(self, side.score)(features), scores.shape[-2:], side.offset)
        return cropped(getattr(self, self.last.name)(scores), images.shape[-2:], self.last.offset)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases at twice the rate without decay; the shifts of batch normalisation as `shift_decay` says."""
        return split_parameters(self, shift_decay=float(self.shift_decay))


class FCN32s(FCN):
    """K=11: 134,826,059 parameters, 134,330,443 of them trainable when "fixed"; 139.416 GMAC at 360x480."""

    sides = ()
    last = Last("upscore", stride=32, offset=19)


class FCN16s(FCN):
    """K=11: 134,461,926 parameters, 134,336,086 of them trainable when "fixed"; 139.440 GMAC at 360x480."""

    sides = (POOL4,)
    last = Last("upscore16", stride=16, offset=27)


class FCN8s(FCN):
    """K=11: 134,373,761 parameters, 134,338,913 of them trainable when "fixed"; 139.466 GMAC at 360x480."""

    sides = (POOL4, POOL3)
    last = Last("upscore8", stride=8, offset=31)

    def __init__(
        self,
        num_classes: int,
        *,
        width: Multiplier = 1.0,
        dropout: Probability = 0.5,
        batch_norm: bool = True,
        deconvolution: Deconvolution = "learnt",
        shift_decay: bool = False,
        at_once: bool = False,
    ) -> None:
        super().__init__(
            num_classes,
            width=width,
            dropout=dropout,
            batch_norm=batch_norm,
            deconvolution=deconvolution,
            shift_decay=shift_decay,
        )
        self.at_once = at_once


def _upsampling(num_classes: int, stride: int, bias: bool = False) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(num_classes, num_classes, 2 * stride, stride=stride, bias=bias)
