"""FCN-Basic: SegNet-Basic's encoder under FCN's decoder, learned upsampling with additions of reduced encoder maps.

Badrinarayanan, Kendall & Cipolla, PAMI 2017, arXiv:1511.00561, section 3.1 and Figure 3. Every pooled encoder map is
reduced to the classes by a 1x1 convolution. From pool4 up, an 8x8 deconvolution with stride 2 doubles the class maps,
and the reduced map of the same size is added; the fourth deconvolution reaches the image. No bias, no dropout.

Input: as SegNet-Basic.

Departures: the network was never released, so these are choices. No batch normalisation in the decoder (none is
mentioned, and the parameters agree with Table 1 without). 8x8 deconvolutions are padded by 3, which doubles exactly;
46 rows above 45 lose their last, which no image row stands behind. Their bilinear start is divided by 4: at stride 2
the 8x8 kernel of FCN's code would multiply the scores by 4 at each layer, by 256 in all. `bias=True` gives the 1x1
and 7x7 convolutions biases, as the released SegNet-Basic has them; deconvolutions have none, as in FCN.
The four deconvolutions learn at a tenth of the rate: a chain of linear layers without normalisation, they multiply each
other's gradients, and at the paper's 0.1 with momentum 0.9 training diverges for most seeds. The paper states one rate
for all its variants; a recipe with `multipliers: none` trains them at that.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from segbench.models.layers import (
    Multiplier,
    bilinear_initialised,
    cropped,
    he_initialised,
    pool,
    scaled,
    split_parameters,
)
from segbench.models.segnet_basic import CHANNELS, LOCALLY_NORMALISED_BGR, encoders

DECONVOLUTION_RATE = 0.1


class FCNBasic(nn.Module):
    """K=11: 645,824 parameters; 13.490 GMAC at 360x480."""

    input = LOCALLY_NORMALISED_BGR

    def __init__(self, num_classes: int, *, width: Multiplier = 1.0, bias: bool = False) -> None:
        super().__init__()
        self.encoder = encoders(width, bias)
        # From pool1 to pool4, as the encoders; forward walks both lists from their ends.
        self.reductions = nn.ModuleList(
            nn.Conv2d(scaled(CHANNELS, width), num_classes, 1, bias=bias) for _ in self.encoder
        )
        doublings = [_doubling(num_classes) for _ in self.encoder]
        self.deconvolutions = nn.ModuleList(doublings)
        he_initialised(self)
        for doubling in doublings:
            bilinear_initialised(doubling)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        pooled = [images]
        for encoder in self.encoder:
            pooled.append(pool(encoder(pooled[-1])))
        scores = self.reductions[3](pooled[4])
        for level in (3, 2, 1):
            above = cropped(self.deconvolutions[level](scores), pooled[level].shape[-2:])
            scores = above + self.reductions[level - 1](pooled[level])
        return cropped(self.deconvolutions[0](scores), images.shape[-2:])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """As SegNet-Basic: biases, where there are any, at twice the rate without decay; shifts decay.

        Departure: the deconvolutions at a tenth of the rate.
        """
        rates = {f"deconvolutions.{level}": DECONVOLUTION_RATE for level in range(len(self.deconvolutions))}
        return split_parameters(self, shift_decay=1.0, rates=rates)


def _doubling(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 8, stride=2, padding=3, bias=False)
