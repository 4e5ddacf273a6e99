"""SegNet: each decoder puts a value back where its maximum was found.

Badrinarayanan, Kendall & Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
PAMI 2017, arXiv:1511.00561, section 3; layers as in the released `segnet_train.prototxt`.

The encoder is VGG16's thirteen convolutions; the decoder mirrors them, with batch normalisation and ReLU after every
convolution but the last, a 3x3 one to the classes. A decoder block narrows in its last convolution. Dropout stands at
the six places of the released SUN RGB-D and Bayesian files (the benchmark of the paper drops 0.5 "at the end of deeper
convolutional layers"): after pool3, pool4 and pool5 and after the last ReLU of decoder blocks 5, 4 and 3.

Input: BGR, 0 to 255, no mean and no scale, as in all released deep SegNet files.

Departures: the encoder starts from He's initialisation, not from VGG16's weights; `BatchNorm` in layers.py states
those of normalisation. K logits, also for SUN RGB-D, where the released file has a 38th for the ignored void.
"""

from collections import OrderedDict
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from segbench.models import vgg
from segbench.models.input import RAW_BGR
from segbench.models.layers import (
    Multiplier,
    Probability,
    he_initialised,
    pool_with_places,
    scaled,
    split_parameters,
    unit,
    unpool,
)

# Stages 3, 4 and 5 (counted from 1) are the deeper ones.
FIRST_DROPPED = 3


class SegNet(nn.Module):
    """K=11: 29,449,355 parameters; 106.712 GMAC at 360x480."""

    input = RAW_BGR

    def __init__(self, num_classes: int, *, width: Multiplier = 1.0, dropout: Probability = 0.5) -> None:
        super().__init__()
        self.encoder = vgg.stages(width)
        self.decoder = nn.ModuleList(_decoder_stage(number, width, dropout) for number in (5, 4, 3, 2, 1))
        self.dropout = nn.Dropout(dropout)
        self.conv1_1_D = nn.Conv2d(scaled(64, width), num_classes, 3, padding=1)
        he_initialised(self)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        features, pooled = images, []
        for number, stage in enumerate(self.encoder, start=1):
            # 45 rows pool to 23 and so might 46, so the way back needs the size as well as the places.
            size = features.shape[-2:]
            features, places = pool_with_places(stage(features))
            pooled.append((places, size))
            if number >= FIRST_DROPPED:
                features = self.dropout(features)
        for stage in self.decoder:
            features = stage(unpool(features, *pooled.pop()))
        return self.conv1_1_D(features)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases at twice the rate without decay; the shifts of batch normalisation without decay."""
        return split_parameters(self, shift_decay=0.0)


def _decoder_stage(number: int, width: float, dropout: float) -> nn.Sequential:
    """conv`number`_3_D to conv`number`_1_D; the class layer conv1_1_D is not part of stage 1."""
    channels, last = scaled(vgg.CHANNELS[number - 1], width), 2 if number == 1 else 1
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place in range(vgg.DEPTHS[number - 1], last - 1, -1):
        out = vgg.channels_below(number, width) if place == last else channels
        layers[f"conv{number}_{place}_D"] = unit(nn.Conv2d(channels, out, 3, padding=1))
    if number >= FIRST_DROPPED:
        layers["drop"] = nn.Dropout(dropout)
    return nn.Sequential(layers)
