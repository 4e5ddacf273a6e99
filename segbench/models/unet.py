"""U-Net: every step down is undone by an up-convolution that is joined with the map it left behind.

Ronneberger, Fischer & Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
arXiv:1505.04597. Two 3x3 convolutions with ReLU a level, 64 to 1024 channels; up-convolutions are 2x2 with stride 2 and
halve the channels; the joined map is [upsampled, skip], so that weights of the release keep their order. Dropout
follows the last convolution of the 512-channel level (so its skip drops as well) and of the 1024-channel level.

`form`: "paper", the default, as its Figure 1 draws it: the last up-convolution goes from 128 to 64 channels and no ReLU
follows an up-convolution. "released", as the authors' file `phseg_v5`: the last goes from 128 to 128, and a ReLU
follows each.

`padding="valid"`, the default, is the network of both: convolutions shrink the map by 184 pixels in all, so the image
is extended by mirroring (the paper's overlap-tile), to the smallest size 16k + 60 whose output covers it, and the
output is cropped.
`padding="same"` pads each convolution with zeros, as most of today's copies do: any size fits as well, at about three
quarters of the work.

Input: RGB, 0 to 1. The paper's images are single-channel and its scaling is not stated.

Initialisation: the paper's, N(0, 2 / fan-in), biases zero; the fan-in of an up-convolution is counted as Caffe does, 4
times its outputs. All layers learn at one rate: the paper says nothing else. A file derived from the release learns
biases at twice the rate without decay; whether the release did is not known.

Departures: three input channels; the zero padding of "same", where poolings round up and the upsampled map is cropped
to its skip; mirroring does not repeat the border pixel. No batch normalisation, as in 2015.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from segbench.models.input import Input
from segbench.models.layers import Multiplier, Probability, cropped, he_initialised, pool, scaled, unit

CHANNELS = (64, 128, 256, 512, 1024)
# Unpadded convolutions take 92 pixels off each side of the image, at any legal size.
VALID_MARGIN = 92


class UNet(nn.Module):
    """K=11: 31,032,395 parameters, released 31,102,091; 176.137 GMAC at 360x480, 129.939 at 368x480 when same."""

    input = Input(scale=1 / 255)

    def __init__(
        self,
        num_classes: int,
        *,
        width: Multiplier = 1.0,
        dropout: Probability = 0.5,
        form: Literal["paper", "released"] = "paper",
        padding: Literal["same", "valid"] = "valid",
    ) -> None:
        super().__init__()
        self.valid = padding == "valid"
        margin = 0 if self.valid else 1
        widths = [scaled(channels, width) for channels in CHANNELS]
        self.down = nn.ModuleList(
            _double(channels, out, margin) for channels, out in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        # The channels that go up into each level, 0 being the finest.
        rising = [widths[1] if form == "released" else widths[0], *widths[1:-1]]
        self.upconvolutions = nn.ModuleList(
            nn.ConvTranspose2d(channels, out, 2, stride=2) for channels, out in zip(widths[1:], rising, strict=True)
        )
        self.after_upconvolution = nn.ReLU() if form == "released" else nn.Identity()
        self.up = nn.ModuleList(
            _double(above + skip, skip, margin) for above, skip in zip(rising, widths[:-1], strict=True)
        )
        self.score = nn.Conv2d(widths[0], num_classes, 1)
        he_initialised(self)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        features, skips = mirrored(images) if self.valid else images, []
        for level, convolutions in enumerate(self.down):
            features = convolutions(features if level == 0 else pool(features))
            if level >= 3:
                features = self.dropout(features)
            skips.append(features)
        for level in (3, 2, 1, 0):
            above = self.after_upconvolution(self.upconvolutions[level](features))
            features = self.up[level](joined(above, skips[level]))
        return cropped(self.score(features), images.shape[-2:])


def _double(channels: int, out: int, padding: int) -> nn.Sequential:
    first = nn.Conv2d(channels, out, 3, padding=padding)
    second = nn.Conv2d(out, out, 3, padding=padding)
    return nn.Sequential(unit(first, batch_norm=False), unit(second, batch_norm=False))


def joined(above: Float[Tensor, "n c h w"], skip: Float[Tensor, "n s sh sw"]) -> Float[Tensor, "n d jh jw"]:
    """[upsampled, skip] in channels, at the smaller of the two sizes.

    A skip that unpadded convolutions left larger is cropped about its centre; an upsampled map that is a row or column
    larger, after a pooling that rounded up, loses its last.
    """
    height, width = min(above.shape[-2], skip.shape[-2]), min(above.shape[-1], skip.shape[-1])
    top, left = (skip.shape[-2] - height) // 2, (skip.shape[-1] - width) // 2
    return torch.cat([above[..., :height, :width], skip[..., top : top + height, left : left + width]], dim=1)


def mirrored(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c mh mw"]:
    """The images extended by mirroring: 92 pixels above and left, and at least that below and right."""
    rows, columns = (mirror_indices(size, images.device) for size in images.shape[-2:])
    return images.index_select(-2, rows).index_select(-1, columns)


def mirror_indices(size: int, device: torch.device) -> Int64[Tensor, "extended"]:
    """Where each pixel of an extended side comes from, also when the margin is longer than the side."""
    steps = max(8, -(-(size + 2 * VALID_MARGIN - 60) // 16))
    places = torch.arange(16 * steps + 60, device=device) - VALID_MARGIN
    period = max(2 * (size - 1), 1)
    return (size - 1) - (places.remainder(period) - (size - 1)).abs()
