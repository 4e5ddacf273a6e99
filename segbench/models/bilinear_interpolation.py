"""Bilinear-Interpolation: SegNet-Basic's encoder, and above it nothing that learns but the classifier.

Badrinarayanan, Kendall & Cipolla, PAMI 2017, arXiv:1511.00561, section 3.1 and Table 1: the row that the other decoders
are measured against. The classes are upsampled bilinearly by 2, four times.

`upsampled` says what is interpolated. "classes", the default: the 64 maps of pool4 are reduced to the classes first, by
a 1x1 convolution. The paper does not say, but its table times this row as it times FCN-Basic, which reduces there.
"features": all 64 maps are brought to the image's size and classified there.

Input: as SegNet-Basic. `bias` and `shift_decay` as in segnet_basic.py.

Departures: pixel centres are aligned and the border is repeated; 46 rows above 45 lose their last.
"""

from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from segbench.models.layers import Multiplier, cropped, he_initialised, pool, scaled, split_parameters
from segbench.models.segnet_basic import CHANNELS, LOCALLY_NORMALISED_BGR, encoders


class BilinearInterpolation(nn.Module):
    """K=11: 612,736 parameters; 13.006 GMAC at 360x480."""

    input = LOCALLY_NORMALISED_BGR

    def __init__(
        self,
        num_classes: int,
        *,
        width: Multiplier = 1.0,
        bias: bool = False,
        upsampled: Literal["classes", "features"] = "classes",
        shift_decay: bool = True,
    ) -> None:
        super().__init__()
        self.upsampled = upsampled
        self.shift_decay = shift_decay
        self.encoder = encoders(width, bias)
        self.classifier = nn.Conv2d(scaled(CHANNELS, width), num_classes, 1, bias=bias)
        he_initialised(self)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        features, sizes = images, []
        for encoder in self.encoder:
            sizes.append(features.shape[-2:])
            features = pool(encoder(features))
        if self.upsampled == "classes":
            features = self.classifier(features)
        for size in reversed(sizes):
            doubled = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            features = cropped(doubled, size)
        return features if self.upsampled == "classes" else self.classifier(features)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """As SegNet-Basic: biases, where there are any, at twice the rate without decay."""
        return split_parameters(self, shift_decay=float(self.shift_decay))
