"""FCN-8s: class scores at strides 32, 16 and 8, upsampled by deconvolution and added.

Long, Shelhamer & Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, arXiv:1411.4038; layers
and offsets as in the reference `voc-fcn8s`. conv1_1 pads the image by 100, so that fc6, a 7x7 convolution without
padding, fits on any image; what the padding adds is cropped again at offsets 5, 9 and 31. Dropout follows fc6 and fc7.

`deconvolution` says whether the three upsampling kernels (K x K, bilinear on the diagonal) are "learnt", or "fixed"
as in the reference of 2016; both rows stand in SegNet's tables. Fixed kernels are saved with the model and counted in
its size, but not trained.

Input: BGR minus the reference's means.

Departures: SegNet's benchmark adds batch normalisation after each of the 15 convolutions below the scores, the default
here; which FCN it used is not stated, and its model sizes favour FCN-8s. He's initialisation, not VGG16's weights, and
all at once, not after FCN-32s and FCN-16s. Score layers start at zero as in the reference: above normalised features
they learn from the first step, and the rest from the second. "learnt" trains all three deconvolutions without bias;
the 2015 release trained the first two, the first with a bias.
"""

from collections import OrderedDict
from typing import Any, Literal

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
    unit,
)


class FCN8s(nn.Module):
    """K=11: 134,373,761 parameters; 139.466 GMAC at 360x480."""

    input = Input(order="bgr", mean=(104.00699, 116.66877, 122.67892))

    def __init__(
        self,
        num_classes: int,
        *,
        width: Multiplier = 1.0,
        dropout: Probability = 0.5,
        batch_norm: bool = True,
        deconvolution: Literal["learnt", "fixed"] = "learnt",
    ) -> None:
        super().__init__()
        self.encoder = vgg.stages(width, batch_norm=batch_norm, image_padding=100)
        self.fc = _fully_connected(width, dropout, batch_norm)
        self.score_fr = nn.Conv2d(scaled(4096, width), num_classes, 1)
        self.score_pool4 = nn.Conv2d(scaled(512, width), num_classes, 1)
        self.score_pool3 = nn.Conv2d(scaled(256, width), num_classes, 1)
        self.upscore2 = _upsampling(num_classes, 2)
        self.upscore_pool4 = _upsampling(num_classes, 2)
        self.upscore8 = _upsampling(num_classes, 8)
        self._initialise(trained=deconvolution == "learnt")

    def _initialise(self, trained: bool) -> None:
        he_initialised(self)
        for score in (self.score_fr, self.score_pool4, self.score_pool3):
            nn.init.zeros_(score.weight)
        for upsampling in (self.upscore2, self.upscore_pool4, self.upscore8):
            bilinear_initialised(upsampling)
            upsampling.weight.requires_grad_(trained)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        pooled = [images]
        for stage in self.encoder:
            pooled.append(pool(stage(pooled[-1])))
        # 360x480 is 558x678 with its padding, then 279, 140, 70, 35, 18 rows: the offsets hold for these ceil sizes.
        scores = self.upscore2(self.score_fr(self.fc(pooled[5])))
        scores = scores + cropped(self.score_pool4(pooled[4]), scores.shape[-2:], offset=5)
        scores = self.upscore_pool4(scores)
        scores = scores + cropped(self.score_pool3(pooled[3]), scores.shape[-2:], offset=9)
        return cropped(self.upscore8(scores), images.shape[-2:], offset=31)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases at twice the rate without decay; the shifts of batch normalisation as in SegNet, without decay."""
        return split_parameters(self, shift_decay=0.0)


def _fully_connected(width: float, dropout: float, batch_norm: bool) -> nn.Sequential:
    """fc6 and fc7 of VGG16 as convolutions, each followed by dropout."""
    channels = scaled(4096, width)
    fc6 = nn.Conv2d(scaled(512, width), channels, 7)
    fc7 = nn.Conv2d(channels, channels, 1)
    layers = OrderedDict[str, nn.Module](
        fc6=unit(fc6, batch_norm=batch_norm),
        drop6=nn.Dropout(dropout),
        fc7=unit(fc7, batch_norm=batch_norm),
        drop7=nn.Dropout(dropout),
    )
    return nn.Sequential(layers)


def _upsampling(num_classes: int, stride: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(num_classes, num_classes, 2 * stride, stride=stride, bias=False)
