"""DeepLab-LargeFOV: VGG16 that stops shrinking at 1/8 and looks far instead, through holes.

Chen, Papandreou, Kokkinos, Murphy & Yuille, "Semantic Image Segmentation with Deep Convolutional Nets and Fully
Connected CRFs", ICLR 2015, arXiv:1412.7062, version 1 on VGG16. pool4 and pool5 have stride 1 and stage 5 is dilated by
2; a 3x3 average pooling follows, then fc6, 3x3 with dilation 12 and 1024 channels, fc7, and fc8 to the classes.
Dropout follows fc6 and fc7. The dense CRF is no part of the network.

Input: BGR minus the release's means.

Departures: this is the form of SegNet's benchmark, with batch normalisation after each of the 15 convolutions below
fc8 and an output of 45x60 for 360x480. The release's first three poolings are 3x3 with padding and give 46x61; 45x60
needs 2x2. How the benchmark enlarged its output is not stated: here the logits are brought to the input's size by 8,
bilinearly, with pixel centres aligned (a logit stands for 8x8 pixels), and cropped where the size is no multiple of 8.
The release trains on labels shrunk by 8 instead. He's initialisation in place of VGG16's weights; fc8 starts from
N(0, 0.01²) as in the release. One rate for all weights, as the benchmark trained; the release's tenfold fc8 is
`fc8_rate=10`.
"""

from collections import OrderedDict
from typing import Any

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
    unit,
)

STRIDE = 8


class DeepLabLargeFOV(nn.Module):
    """K=11: 20,507,723 parameters; 82.786 GMAC at 360x480."""

    input = Input(order="bgr", mean=vgg.IMAGENET_MEAN_BGR)

    def __init__(
        self,
        num_classes: int,
        *,
        width: Multiplier = 1.0,
        dropout: Probability = 0.5,
        batch_norm: bool = True,
        fc8_rate: Multiplier = 1.0,
    ) -> None:
        super().__init__()
        self.fc8_rate = fc8_rate
        self.encoder = vgg.stages(width, batch_norm=batch_norm, last_dilation=2)
        self.fc = _fully_connected(width, dropout, batch_norm)
        self.fc8 = nn.Conv2d(scaled(1024, width), num_classes, 1)
        he_initialised(self)
        nn.init.normal_(self.fc8.weight, std=0.01)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        coarse = self.fc8(self.fc(self.features(images)))
        logits = F.interpolate(coarse, scale_factor=STRIDE, mode="bilinear", align_corners=False)
        return cropped(logits, images.shape[-2:])

    def features(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c sh sw"]:
        """What fc6 sees, at 1/8 of the image's size (rounded up)."""
        features = images
        for number, stage in enumerate(self.encoder, start=1):
            features = stage(features)
            features = pool(features) if number <= 3 else F.max_pool2d(features, 3, stride=1, padding=1)
        # pool5a: the zeros of the padding count in the divisor, as in Caffe and by PyTorch's default.
        return F.avg_pool2d(features, 3, stride=1, padding=1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases at twice the rate without decay; shifts without decay; fc8 at `fc8_rate` times its rate."""
        return split_parameters(self, shift_decay=0.0, rates={"fc8": self.fc8_rate})


def _fully_connected(width: float, dropout: float, batch_norm: bool) -> nn.Sequential:
    channels = scaled(1024, width)
    fc6 = nn.Conv2d(scaled(512, width), channels, 3, padding=12, dilation=12)
    fc7 = nn.Conv2d(channels, channels, 1)
    layers = OrderedDict[str, nn.Module](
        fc6=unit(fc6, batch_norm=batch_norm),
        drop6=nn.Dropout(dropout),
        fc7=unit(fc7, batch_norm=batch_norm),
        drop7=nn.Dropout(dropout),
    )
    return nn.Sequential(layers)
