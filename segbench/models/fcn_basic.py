"""FCN-Basic and its three relatives in Table 1: SegNet-Basic's encoder under FCN's decoder, with learnt upsampling.

Badrinarayanan, Kendall & Cipolla, PAMI 2017, arXiv:1511.00561, section 3.1 and Figure 3. From pool4 up, an 8x8
deconvolution with stride 2 doubles the maps and the pooled encoder map of the same size is added; the fourth
deconvolution reaches the image. No dropout.

- `addition=False`: no encoder map is added (NoAddition).
- `reduction=False`: deconvolutions and additions are of all 64 maps, and a 1x1 convolution at the image's size makes
  the classes (NoDimReduction). With reduction, 1x1 convolutions bring every map to the classes first. The paper does
  not place the classifier; the 1.625 million parameters of its table need four deconvolutions of 64 maps, so that it
  can only follow them.

Input: as SegNet-Basic. `bias` (of the 1x1 and 7x7 convolutions; deconvolutions have none, as in FCN) and `shift_decay`
as in segnet_basic.py.

Departures: the networks were never released, so these are choices.
- No batch normalisation in the decoder: none is mentioned, and the parameters agree with Table 1 without.
  `decoder_batch_norm=True` puts one after each deconvolution but the one that makes the output.
- 8x8 deconvolutions are padded by 3, which doubles exactly; 46 rows above 45 lose their last, which no image row
  stands behind.
- `gain`: their bilinear start is divided by 4, so that constants stay constants ("one"); FCN's own 8x8 kernel, at
  stride 2, multiplies the scores by 4 at each layer, by 256 in all ("fcn").
- `deconvolution_rate`: the deconvolutions of all four learn at a tenth of the rate. At the paper's 0.1 with momentum
  0.9, linear layers without normalisation, they diverge within a few steps for most seeds in three of the four;
  NoAddition alone does not need it. The paper states one rate for all its variants: `deconvolution_rate=1`, or a recipe
  with `multipliers: none`. With `decoder_batch_norm` the full rate does not diverge either.
"""

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from segbench.models.layers import (
    BatchNorm,
    Multiplier,
    bilinear_initialised,
    cropped,
    he_initialised,
    pool,
    scaled,
    split_parameters,
)
from segbench.models.segnet_basic import CHANNELS, LOCALLY_NORMALISED_BGR, encoders

# What FCN's kernel of size 8 multiplies by at stride 2: (its factor 4 / its stride 2)².
FCN_GAIN = 4.0


class FCNBasic(nn.Module):
    """K=11: 645,824 parameters; 13.490 GMAC at 360x480. NoDimReduction: 1,661,312 and 28.172."""

    input = LOCALLY_NORMALISED_BGR

    def __init__(
        self,
        num_classes: int,
        *,
        width: Multiplier = 1.0,
        bias: bool = False,
        addition: bool = True,
        reduction: bool = True,
        decoder_batch_norm: bool = False,
        gain: Literal["one", "fcn"] = "one",
        deconvolution_rate: Multiplier = 0.1,
        shift_decay: bool = True,
    ) -> None:
        super().__init__()
        self.addition = addition
        self.shift_decay = shift_decay
        self.deconvolution_rate = deconvolution_rate
        channels = scaled(CHANNELS, width)
        maps = num_classes if reduction else channels
        self.encoder = encoders(width, bias)
        # From pool1 to pool4, as the encoders; without additions only pool4 is reduced.
        self.reductions = nn.ModuleList(
            nn.Conv2d(channels, maps, 1, bias=bias) if reduction and (addition or level == 3) else nn.Identity()
            for level in range(4)
        )
        self.deconvolutions = nn.ModuleList(_doubling(maps) for _ in range(4))
        # Below a classifier all four may be normalised; where the lowest makes the logits, it is not.
        normalised = (not reduction, True, True, True) if decoder_batch_norm else (False,) * 4
        self.norms = nn.ModuleList(BatchNorm(maps) if wanted else nn.Identity() for wanted in normalised)
        self.classifier = nn.Identity() if reduction else nn.Conv2d(channels, num_classes, 1, bias=bias)
        self._initialise(FCN_GAIN if gain == "fcn" else 1.0)

    def _initialise(self, gain: float) -> None:
        he_initialised(self)
        for deconvolution in self.deconvolutions:
            assert isinstance(deconvolution, nn.ConvTranspose2d)
            bilinear_initialised(deconvolution, gain)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        pooled = [images]
        for encoder in self.encoder:
            pooled.append(pool(encoder(pooled[-1])))
        maps = self.reductions[3](pooled[4])
        for level in (3, 2, 1, 0):
            maps = cropped(self.norms[level](self.deconvolutions[level](maps)), pooled[level].shape[-2:])
            if self.addition and level > 0:
                maps = maps + self.reductions[level - 1](pooled[level])
        return self.classifier(maps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """As SegNet-Basic: biases, where there are any, at twice the rate without decay; deconvolutions at theirs."""
        rates = {f"deconvolutions.{level}": self.deconvolution_rate for level in range(len(self.deconvolutions))}
        return split_parameters(self, shift_decay=float(self.shift_decay), rates=rates)


def _doubling(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 8, stride=2, padding=3, bias=False)
