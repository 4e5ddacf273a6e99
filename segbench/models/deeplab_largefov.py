"""DeepLab-LargeFOV: VGG16 that stops shrinking at 1/8 and looks far instead, through holes.

Chen, Papandreou, Kokkinos, Murphy & Yuille, "Semantic Image Segmentation with Deep Convolutional Nets and Fully
Connected CRFs", ICLR 2015, arXiv:1412.7062, version 1 on VGG16. pool4 and pool5 have stride 1 and stage 5 is dilated by
2; a 3x3 average pooling follows, then fc6, 3x3 with dilation 12 and 1024 channels, fc7, and fc8 to the classes.
Dropout follows fc6 and fc7. The dense CRF is no part of the network.

`geometry`, for the first three poolings and the way back to the image's size:
- "benchmark", the default: poolings 2x2 without padding, 360x480 -> 45x60, the size in SegNet's benchmark. A logit
  stands for 8x8 pixels: logits are enlarged by 8, bilinearly, with pixel centres aligned, and cropped where the size is
  no multiple of 8. How the benchmark enlarged its output is not stated. Its 83 MB are not met: 82.03 here with 11
  classes and 82.14 with 37, to which a 16x16 deconvolution among 37 classes would add what is missing.
- "released": poolings 3x3 with padding 1, 360x480 -> 46x61. A logit stands on every eighth pixel, from the first: n of
  them are enlarged to 8(n - 1) + 1, bilinearly, with the corner logits on the corner pixels, and cropped.

The benchmark reports 45x60 from "max pooling 3 stride to 1". Taken as the third pooling that is 91x121 or 90x120, not
45x60. Counted from zero it is the fourth, whose stride is 1 in the release already, so that three poolings halve, as
here; with the release's padded windows, which round up, they would end at 46x61 all the same.

Batch normalisation after each of the 15 convolutions below fc8 is the benchmark's; the release has none
(`batch_norm=False`). Its shifts do not decay, as in SegNet; `shift_decay` decays them. One rate for all weights, as the
benchmark trained; the release's tenfold fc8 is `fc8_rate=10`.

Input: BGR minus the release's means.

Departures: He's initialisation in place of VGG16's weights, which a suite's `weights: imagenet` loads; fc8 starts from
N(0, 0.01²) as in the release. The loss is taken at the image's size, where the release shrinks the labels by 8.
"""

from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from segbench.models import vgg
from segbench.models.input import Input
from segbench.models.layers import (
    Multiplier,
    Probability,
    cropped,
    he_initialised,
    pool,
    scaled,
    split_parameters,
)

STRIDE = 8


class DeepLabLargeFOV(nn.Module):
    """K=11: 20,507,723 parameters; 82.786 GMAC at 360x480, 85.179 in the released geometry."""

    input = Input(order="bgr", mean=vgg.IMAGENET_MEAN_BGR)

    def __init__(
        self,
        num_classes: int,
        *,
        width: Multiplier = 1.0,
        dropout: Probability = 0.5,
        batch_norm: bool = True,
        geometry: Literal["benchmark", "released"] = "benchmark",
        shift_decay: bool = False,
        fc8_rate: Multiplier = 1.0,
    ) -> None:
        super().__init__()
        self.released_geometry = geometry == "released"
        self.shift_decay = shift_decay
        self.fc8_rate = fc8_rate
        self.encoder = vgg.stages(width, batch_norm=batch_norm, last_dilation=2)
        self.fc = vgg.fully_connected(_fc6(width), dropout, batch_norm)
        self.fc8 = nn.Conv2d(scaled(1024, width), num_classes, 1)
        he_initialised(self)
        nn.init.normal_(self.fc8.weight, std=0.01)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        coarse = self.fc8(self.fc(self.features(images)))
        return cropped(self._enlarged(coarse), images.shape[-2:])

    def features(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c sh sw"]:
        """What fc6 sees, at 1/8 of the image's size: sides of ceil(side / 8), released ceil((side - 1) / 8) + 1."""
        features = images
        for number, stage in enumerate(self.encoder, start=1):
            features = stage(features)
            features = self._halved(features) if number <= 3 else F.max_pool2d(features, 3, stride=1, padding=1)
        # pool5a: the zeros of the padding count in the divisor, as in Caffe and by PyTorch's default.
        return F.avg_pool2d(features, 3, stride=1, padding=1)

    def _halved(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c ph pw"]:
        if self.released_geometry:
            return F.max_pool2d(features, 3, stride=2, padding=1, ceil_mode=True)
        return pool(features)

    def _enlarged(self, coarse: Float[Tensor, "n c sh sw"]) -> Float[Tensor, "n c lh lw"]:
        if self.released_geometry:
            size = [STRIDE * (side - 1) + 1 for side in coarse.shape[-2:]]
            return F.interpolate(coarse, size=size, mode="bilinear", align_corners=True)
        return F.interpolate(coarse, scale_factor=STRIDE, mode="bilinear", align_corners=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases at twice the rate without decay; shifts as `shift_decay` says; fc8 at `fc8_rate` times its rate."""
        return split_parameters(self, shift_decay=float(self.shift_decay), rates={"fc8": self.fc8_rate})


def _fc6(width: float) -> nn.Conv2d:
    return nn.Conv2d(scaled(512, width), scaled(1024, width), 3, padding=12, dilation=12)
