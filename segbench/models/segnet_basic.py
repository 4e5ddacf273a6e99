"""SegNet-Basic, and the rows of the paper's Table 1 that unpool: -EncoderAddition and -SingleChannelDecoder.

Badrinarayanan, Kendall & Cipolla, PAMI 2017, arXiv:1511.00561, section 3.1; layers as in the released
`segnet_basic_train.prototxt`. Four encoders (7x7 convolution to 64 channels, batch normalisation, ReLU, pooling), four
decoders (unpooling, 7x7 convolution, batch normalisation and no ReLU), a 1x1 convolution to the classes.

- `addition`: the 64 encoder maps of the same size are added to each decoder's output (EncoderAddition). "pooled" adds
  what the encoders' poolings put out (pool3, pool2 and pool1 to decoders 4, 3 and 2), "convolved" what goes into them
  (of all four). The paper says only "at each layer"; its table counts 64 maps of the first *pooled* size as stored, as
  it does for FCN-Basic, whose figure shows pooled maps: so "pooled" is the registered one.
- `single_channel`: each filter of a decoder sees its own map alone (SingleChannelDecoder).
- `dropout`: after pool3, pool4 and the normalisation of decoders 4 and 3, where the released Bayesian SegNet-Basic has
  its 0.5 (Kendall, Badrinarayanan & Cipolla, BMVC 2017, arXiv:1511.02680). SegNet-Basic has none.
- `bias`: the paper has no bias after its convolutions, the default; the released file has one after each, the
  classifier included.
- `places`: as in segnet.py.

Input: BGR, 0 to 255, then local response normalisation across the channels, as the released file does; the paper's
words are "local contrast normalisation", which a recipe's `input: {local_normalisation: lcn}` feeds.

The shifts of batch normalisation decay as the weights do, for the file sets nothing else; `shift_decay=False` exempts
them, as SegNet's file does.

Departures: `BatchNorm` in layers.py states its own.
"""

from collections import OrderedDict
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from segbench.models.input import Input
from segbench.models.layers import (
    Multiplier,
    Probability,
    he_initialised,
    scaled,
    split_parameters,
    unit,
)
from segbench.models.unpooling import Packing, pool_with_places, unpool

CHANNELS = 64
LOCALLY_NORMALISED_BGR = Input(order="bgr", local_normalisation="lrn")
FIRST_DROPPED = 3


def encoders(width: float, bias: bool) -> nn.ModuleList:
    """The four encoders, without their pooling, that all variants of the paper's Table 1 share."""
    channels = scaled(CHANNELS, width)
    return nn.ModuleList(
        _layer(f"conv{number}", 3 if number == 1 else channels, channels, bias) for number in range(1, 5)
    )


def _layer(name: str, channels: int, out: int, bias: bool, relu: bool = True, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, 7, padding=3, bias=bias, groups=groups)
    return nn.Sequential(OrderedDict([(name, unit(convolution, relu=relu))]))


class SegNetBasic(nn.Module):
    """K=11: 1,416,064 parameters (1,416,587 with biases; 625,792 with single channels); 59.189 GMAC at 360x480."""

    input = LOCALLY_NORMALISED_BGR

    def __init__(
        self,
        num_classes: int,
        *,
        width: Multiplier = 1.0,
        bias: bool = False,
        addition: Literal["none", "pooled", "convolved"] = "none",
        single_channel: bool = False,
        dropout: Probability = 0.0,
        shift_decay: bool = True,
        places: Packing = "two-bit",
    ) -> None:
        super().__init__()
        self.places = places
        channels = scaled(CHANNELS, width)
        self.addition = addition
        self.shift_decay = shift_decay
        self.encoder = encoders(width, bias)
        groups = channels if single_channel else 1
        self.decoder = nn.ModuleList(
            _layer(f"conv_decode{number}", channels, channels, bias, relu=False, groups=groups)
            for number in (4, 3, 2, 1)
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=bias)
        he_initialised(self)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        features, kept = images, []
        for number, encoder in enumerate(self.encoder, start=1):
            convolved = encoder(features)
            # An encoder's input is the pooled map of the one before, and of the size that its decoder puts out.
            added = {"none": None, "convolved": convolved, "pooled": None if number == 1 else features}[self.addition]
            features, places = pool_with_places(convolved, self.places)
            kept.append((places, convolved.shape[-2:], added))
            features = self._dropped(features, number)
        for number, decoder in zip((4, 3, 2, 1), self.decoder, strict=True):
            places, size, added = kept.pop()
            features = self._dropped(decoder(unpool(features, places, size)), number)
            features = features if added is None else features + added
        return self.classifier(features)

    def _dropped(self, features: Float[Tensor, "n c h w"], number: int) -> Float[Tensor, "n c h w"]:
        return self.dropout(features) if number >= FIRST_DROPPED else features

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases at twice the rate without decay; unlike in SegNet, the shifts decay too."""
        return split_parameters(self, shift_decay=float(self.shift_decay))
