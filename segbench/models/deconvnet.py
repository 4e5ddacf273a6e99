"""DeconvNet: SegNet's way back with deconvolutions, around two fully connected layers that see the whole image.

Noh, Hong & Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015, arXiv:1505.04366. VGG16's
encoder, fc6 and fc7, then fc6-deconv back to pool5's size, and five blocks of unpooling and 3x3 deconvolutions (which
narrow in their last), then a 1x1 convolution to the classes. Batch normalisation and ReLU follow every layer but that.

Input: BGR minus the release's means.

Departures: this is the form of SegNet's benchmark. fc6 and fc7 have 1024 channels, as its paper says, not 4096. fc6
and fc6-deconv span all of pool5, 12x15 at 360x480 and 7x7 in the release at 224x224: the 877 MB in its Table 6 leave no
other size. So a network is built for one `input_size`. Dropout, which the release has none of and the benchmark gave
all its networks, stands where SegNet's does: after pool3, pool4, pool5 and the last ReLU of decoder blocks 5, 4 and 3.
The encoder starts from He's initialisation, not VGG16's weights; deconvolutions and classifier from N(0, 0.01²) as in
the release. `BatchNorm` in layers.py states its own departures; its consequence here is that at batch size 1 fc7's one
value per channel is its shift, so that nothing below learns: train with two images or more.
"""

from collections import OrderedDict
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from segbench.errors import ModelError
from segbench.models import vgg
from segbench.models.input import Input
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
from segbench.spec import Size, write_size

FC_CHANNELS = 1024
FIRST_DROPPED = 3


class DeconvNet(nn.Module):
    """K=11 at 360x480: 219,280,715 parameters; 112.299 GMAC."""

    input = Input(order="bgr", mean=vgg.IMAGENET_MEAN_BGR)

    def __init__(
        self, num_classes: int, *, width: Multiplier = 1.0, dropout: Probability = 0.5, input_size: Size = (360, 480)
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.encoder = vgg.stages(width)
        self.fc = _fully_connected(pool5_size(input_size), width)
        self.decoder = nn.ModuleList(_decoder_stage(number, width, dropout) for number in (5, 4, 3, 2, 1))
        self.dropout = nn.Dropout(dropout)
        self.seg_score = nn.Conv2d(scaled(64, width), num_classes, 1)
        he_initialised(self)
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d) or module is self.seg_score:
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        """Raises `ModelError` for images of another size than `input_size`."""
        self._check_size(images.shape[-2], images.shape[-1])
        features, pooled = images, []
        for number, stage in enumerate(self.encoder, start=1):
            size = features.shape[-2:]
            features, places = pool_with_places(stage(features))
            pooled.append((places, size))
            if number >= FIRST_DROPPED:
                features = self.dropout(features)
        features = self.fc(features)
        for stage in self.decoder:
            features = stage(unpool(features, *pooled.pop()))
        return self.seg_score(features)

    def _check_size(self, height: int, width: int) -> None:
        if (height, width) != tuple(self.input_size):
            raise ModelError(
                f"deconvnet was built for images of {write_size(self.input_size)} and was fed {height}x{width}: its fc6"
                " spans the whole image, so build it with this input_size"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases at twice the rate without decay; unlike in SegNet, the shifts decay too."""
        return split_parameters(self, shift_decay=1.0)


def pool5_size(input_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) after five halvings that round up: 360x480 -> 12x15."""
    return -(-input_size[0] // 32), -(-input_size[1] // 32)


def _fully_connected(kernel: tuple[int, int], width: float) -> nn.Sequential:
    """fc6 from pool5's whole map to one place, fc7 there, fc6-deconv back to the whole map."""
    channels, inner = scaled(512, width), scaled(FC_CHANNELS, width)
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
