"""SegNet-Basic: the small SegNet on which the paper compares decoders.

Badrinarayanan, Kendall & Cipolla, PAMI 2017, arXiv:1511.00561, section 3.1; layers as in the released
`segnet_basic_train.prototxt`. Four encoders (7x7 convolution to 64 channels, batch normalisation, ReLU, pooling), four
decoders (unpooling, 7x7 convolution, batch normalisation and no ReLU), a 1x1 convolution to the classes. No dropout.

Input: BGR, 0 to 255, then local response normalisation across the channels, as the released file does; the paper's
words are "local contrast normalisation".

Departures: `BatchNorm` in layers.py states its own. The paper has no bias after its convolutions and the released file
has one after each, the classifier included; the paper is the default here, and `bias=True` is the file.
"""

from collections import OrderedDict
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from segbench.models.input import Input
from segbench.models.layers import Multiplier, he_initialised, pool_with_places, scaled, split_parameters, unit, unpool

CHANNELS = 64
LOCALLY_NORMALISED_BGR = Input(order="bgr", lrn=True)


def encoders(width: float, bias: bool) -> nn.ModuleList:
    """The four encoders, without their pooling, that all variants of the paper's Table 1 share."""
    channels = scaled(CHANNELS, width)
    return nn.ModuleList(
        _layer(f"conv{number}", 3 if number == 1 else channels, channels, bias) for number in range(1, 5)
    )


def _layer(name: str, channels: int, out: int, bias: bool, relu: bool = True) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, 7, padding=3, bias=bias)
    return nn.Sequential(OrderedDict([(name, unit(convolution, relu=relu))]))


class SegNetBasic(nn.Module):
    """K=11: 1,416,064 parameters (1,416,587 with biases); 59.189 GMAC at 360x480."""

    input = LOCALLY_NORMALISED_BGR

    def __init__(self, num_classes: int, *, width: Multiplier = 1.0, bias: bool = False) -> None:
        super().__init__()
        channels = scaled(CHANNELS, width)
        self.encoder = encoders(width, bias)
        self.decoder = nn.ModuleList(
            _layer(f"conv_decode{number}", channels, channels, bias, relu=False) for number in (4, 3, 2, 1)
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=bias)
        he_initialised(self)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        features, pooled = images, []
        for encoder in self.encoder:
            size = features.shape[-2:]
            features, places = pool_with_places(encoder(features))
            pooled.append((places, size))
        for decoder in self.decoder:
            features = decoder(unpool(features, *pooled.pop()))
        return self.classifier(features)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases at twice the rate without decay; unlike in SegNet, the shifts decay too."""
        return split_parameters(self, shift_decay=1.0)
