"""DeconvNet: SegNet's way back with deconvolutions, around two fully connected layers that see the whole image.

Noh, Hong & Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015, arXiv:1505.04366. VGG16's
encoder, fc6 and fc7, then fc6-deconv back to pool5's size, and five blocks of unpooling and 3x3 deconvolutions (which
narrow in their last), then a 1x1 convolution to the classes. Batch normalisation and ReLU follow every layer but that.

`form`:
- "benchmark", the default: SegNet's. fc6 and fc7 have 1024 channels, as its paper says. Dropout, which it gave all its
  networks, stands where SegNet's does: after pool3, pool4, pool5 and the last ReLU of decoder blocks 5, 4 and 3.
- "released": 4096 channels, no dropout, made for images of 224x224.
`dropout`, `fc6_kernel` and `input_size` are the form's own unless given; `build` gives the size of the data.

`fc6_kernel`, of fc6 and fc6-deconv:
- "whole-map", the benchmark's: they span all of pool5, 12x15 at 360x480. The network fits images of `input_size`
  alone, and VGG16's fc6 fits it at 224x224 alone. The benchmark's 877 MB (its Table 6) leave no other size than 12x15
  at 1024 channels.
- "7x7", the release's: all of pool5 at 224x224; at other sizes, of 193x193 or more, fc6 is a convolution that slides
  over pool5, and fc6-deconv brings its map back to pool5's size. `input_size` plays no part. At 1024 channels this is
  328 MB.

The shifts of batch normalisation decay as the weights do, for the release sets nothing else; `shift_decay=False`
exempts them, as SegNet's file does. `places`: as in segnet.py.

Input: BGR minus the release's means.

Departures: the encoder, fc6 and fc7 start from He's initialisation unless a suite gives VGG16's weights (`weights:
imagenet`; fc6 and fc7 where they are of VGG16's size); deconvolutions and classifier from N(0, 0.01²) as in the
release. `BatchNorm` in layers.py states its own departures; its consequence here is that at batch size 1 fc7's one
value per channel is its shift, so that nothing below learns: train with two images or more.
"""

from collections import OrderedDict
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from segbench.errors import ModelError
from segbench.models import vgg
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
from segbench.spec import Size, write_size

FC_CHANNELS = {"benchmark": 1024, "released": 4096}
DROPOUT = {"benchmark": 0.5, "released": 0.0}
FC6_KERNEL = {"benchmark": "whole-map", "released": "7x7"}
INPUT_SIZE = {"benchmark": (360, 480), "released": (224, 224)}
FIRST_DROPPED = 3
# pool5 of any smaller image has less than the seven rows that a 7x7 kernel needs.
SMALLEST_FOR_7X7 = (193, 193)


class DeconvNet(nn.Module):
    """K=11 at 360x480: 219,280,715 parameters; 112.299 GMAC. Released, at 224x224: 251,805,003; 32.714 GMAC."""

    input = Input(order="bgr", mean=vgg.IMAGENET_MEAN_BGR)

    def __init__(
        self,
        num_classes: int,
        *,
        form: Literal["benchmark", "released"] = "benchmark",
        width: Multiplier = 1.0,
        dropout: Probability | None = None,
        input_size: Size | None = None,
        fc6_kernel: Literal["whole-map", "7x7"] | None = None,
        shift_decay: bool = True,
        places: Packing = "two-bit",
    ) -> None:
        super().__init__()
        self.places = places
        self.input_size = input_size or INPUT_SIZE[form]
        self.sliding = (fc6_kernel or FC6_KERNEL[form]) == "7x7"
        self.shift_decay = shift_decay
        dropout = DROPOUT[form] if dropout is None else dropout
        kernel = (7, 7) if self.sliding else pool5_size(self.input_size)
        self.encoder = vgg.stages(width)
        self.fc = _fully_connected(kernel, width, FC_CHANNELS[form])
        self.decoder = nn.ModuleList(_decoder_stage(number, width, dropout) for number in (5, 4, 3, 2, 1))
        self.dropout = nn.Dropout(dropout)
        self.seg_score = nn.Conv2d(scaled(64, width), num_classes, 1)
        he_initialised(self)
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d) or module is self.seg_score:
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        """Raises `ModelError` for images of another size than `input_size`; with a 7x7 fc6, for too small ones."""
        self._check_size((images.shape[-2], images.shape[-1]))
        features, pooled = images, []
        for number, stage in enumerate(self.encoder, start=1):
            size = features.shape[-2:]
            features, places = pool_with_places(stage(features), self.places)
            pooled.append((places, size))
            if number >= FIRST_DROPPED:
                features = self.dropout(features)
        features = self.fc(features)
        for stage in self.decoder:
            features = stage(unpool(features, *pooled.pop()))
        return self.seg_score(features)

    def _check_size(self, size: tuple[int, int]) -> None:
        if self.sliding and min(size) < min(SMALLEST_FOR_7X7):
            raise ModelError(
                f"deconvnet's 7x7 fc6 needs images of {write_size(SMALLEST_FOR_7X7)} or more and was fed"
                f' {write_size(size)}: feed larger ones, or build it with fc6_kernel "whole-map"'
            )
        if not self.sliding and size != tuple(self.input_size):
            raise ModelError(
                f"deconvnet was built for images of {write_size(self.input_size)} and was fed {write_size(size)}: its"
                ' fc6 spans the whole image, so build it with this input_size, or with fc6_kernel "7x7"'
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases at twice the rate without decay; the shifts of batch normalisation as `shift_decay` says."""
        return split_parameters(self, shift_decay=float(self.shift_decay))


def pool5_size(input_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) after five halvings that round up: 360x480 -> 12x15."""
    return -(-input_size[0] // 32), -(-input_size[1] // 32)


def _fully_connected(kernel: tuple[int, int], width: float, inner_channels: int) -> nn.Sequential:
    """fc6 from pool5's map to one place (a sliding kernel: to several), fc7 there, fc6-deconv back to the map."""
    channels, inner = scaled(512, width), scaled(inner_channels, width)
    layers = OrderedDict[str, nn.Module](
        fc6=unit(nn.Conv2d(channels, inner, kernel)),
        fc7=unit(nn.Conv2d(inner, inner, 1)),
        fc6_deconv=unit(nn.ConvTranspose2d(inner, channels, kernel)),
    )
    return nn.Sequential(layers)


def _decoder_stage(number: int, width: float, dropout: float) -> nn.Sequential:
    """deconv`number`_1 to deconv`number`_3 (2 in stages 1 and 2), the last one narrowing."""
    channels, depth = scaled(vgg.CHANNELS[number - 1], width), vgg.DEPTHS[number - 1]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place in range(1, depth + 1):
        out = vgg.channels_below(number, width) if place == depth else channels
        layers[f"deconv{number}_{place}"] = unit(nn.ConvTranspose2d(channels, out, 3, padding=1))
    if number >= FIRST_DROPPED:
        layers["drop"] = nn.Dropout(dropout)
    return nn.Sequential(layers)
