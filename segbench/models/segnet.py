"""SegNet and Bayesian SegNet: each decoder puts a value back where its maximum was found.

Badrinarayanan, Kendall & Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
PAMI 2017, arXiv:1511.00561, section 3; layers as in the released `segnet_train.prototxt`. Kendall, Badrinarayanan &
Cipolla, "Bayesian SegNet", BMVC 2017, arXiv:1511.02680: the same network, whose dropout stays on when it predicts.

The encoder is VGG16's thirteen convolutions; the decoder mirrors them, with batch normalisation and ReLU after every
convolution but the last, a 3x3 one to the classes. A decoder block narrows in its last convolution.

Dropout, `places_of_dropout`:
- "central", the default: six places, after pool3, pool4 and pool5 and after the last ReLU of decoder blocks 5, 4 and
  3, as in the released SUN RGB-D and Bayesian files. The paper's benchmark drops 0.5 "at the end of deeper
  convolutional layers". `segnet_train.prototxt` itself drops nothing: `dropout=0`.
- "pascal": ten places, as in the released Bayesian file for Pascal VOC: on the output of every encoder block before
  its pooling, on pool5, and on the output of decoder blocks 5, 4, 3 and 2 before the next unpooling.

Input: BGR, 0 to 255, no mean and no scale, as in all released deep SegNet files, also where VGG16's weights are loaded.
The paper's words (local contrast normalisation) are about its decoder study; a recipe's `input` says otherwise.

`void_logit` adds an output for void, which the loss ignores and the softmax does not: the released SUN RGB-D file has
38 outputs for 37 classes. `places` is how the places of maxima are kept (unpooling.py): in the two bits a window that
the paper counts, or in a byte; the results are the same. The shifts of batch normalisation start at 0.001, as in
`segnet_train.prototxt`; in the SUN RGB-D and Bayesian files at 0 (`initial_shift`). They do not decay in any of them;
`shift_decay` decays them.

Departures: the encoder starts from He's initialisation, not VGG16's weights, unless a suite says `weights: imagenet`.
`BatchNorm` in layers.py states those of normalisation. The released weights for CamVid of Bayesian SegNet have one
layer more (64 to 64 before the classes), which no training file has and which is not offered here.
"""

from collections import OrderedDict
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from segbench.models import vgg
from segbench.models.input import RAW_BGR
from segbench.models.layers import (
    BatchNorm,
    Multiplier,
    Probability,
    he_initialised,
    scaled,
    shifts_started_at,
    split_parameters,
    unit,
)
from segbench.models.unpooling import Packing, pool_with_places, unpool

Dropped = Literal["central", "pascal"]
# Numbers of the blocks whose output, pooled map or decoder's output is dropped.
BEFORE_POOLING = {"central": (), "pascal": (1, 2, 3, 4, 5)}
AFTER_POOLING = {"central": (3, 4, 5), "pascal": (5,)}
AFTER_DECODER = {"central": (5, 4, 3), "pascal": (5, 4, 3, 2)}


class SegNet(nn.Module):
    """K=11: 29,449,355 parameters; 106.712 GMAC at 360x480."""

    input = RAW_BGR

    def __init__(
        self,
        num_classes: int,
        *,
        width: Multiplier = 1.0,
        dropout: Probability = 0.5,
        places_of_dropout: Dropped = "central",
        void_logit: bool = False,
        initial_shift: float = BatchNorm.INITIAL_SHIFT,
        shift_decay: bool = False,
        places: Packing = "two-bit",
    ) -> None:
        super().__init__()
        self.places = places
        self.places_of_dropout = places_of_dropout
        self.shift_decay = shift_decay
        self.encoder = vgg.stages(width)
        self.decoder = nn.ModuleList(
            _decoder_stage(number, width, dropout if number in AFTER_DECODER[places_of_dropout] else None)
            for number in (5, 4, 3, 2, 1)
        )
        self.dropout = nn.Dropout(dropout)
        self.conv1_1_D = nn.Conv2d(scaled(64, width), num_classes + void_logit, 3, padding=1)
        he_initialised(self)
        shifts_started_at(self, initial_shift)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n outputs h w"]:
        features, pooled = images, []
        for number, stage in enumerate(self.encoder, start=1):
            features = self._dropped(stage(features), number, BEFORE_POOLING)
            # 45 rows pool to 23 and so might 46, so the way back needs the size as well as the places.
            size = features.shape[-2:]
            features, places = pool_with_places(features, self.places)
            pooled.append((places, size))
            features = self._dropped(features, number, AFTER_POOLING)
        for stage in self.decoder:
            features = stage(unpool(features, *pooled.pop()))
        return self.conv1_1_D(features)

    def _dropped(
        self, features: Float[Tensor, "n c h w"], number: int, places: dict[str, tuple[int, ...]]
    ) -> Float[Tensor, "n c h w"]:
        return self.dropout(features) if number in places[self.places_of_dropout] else features

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases at twice the rate without decay; the shifts of batch normalisation as `shift_decay` says."""
        return split_parameters(self, shift_decay=float(self.shift_decay))


def _decoder_stage(number: int, width: float, dropout: float | None) -> nn.Sequential:
    """conv`number`_3_D to conv`number`_1_D; the class layer conv1_1_D is not part of stage 1."""
    channels, last = scaled(vgg.CHANNELS[number - 1], width), 2 if number == 1 else 1
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place in range(vgg.DEPTHS[number - 1], last - 1, -1):
        out = vgg.channels_below(number, width) if place == last else channels
        layers[f"conv{number}_{place}_D"] = unit(nn.Conv2d(channels, out, 3, padding=1))
    if dropout is not None:
        layers["drop"] = nn.Dropout(dropout)
    return nn.Sequential(layers)
