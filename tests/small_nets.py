"""Networks that cost nearly nothing, for tests of what others cost. A fresh process imports them from here."""

import os

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

CLASSES = 4


class Pointwise(nn.Module):
    """One 1x1 convolution and its normalisation: a whole model, nearly free."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Conv2d(3, CLASSES, 1)
        self.normalise = nn.BatchNorm2d(CLASSES)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        return self.normalise(self.classify(images))


class Broken(Pointwise):
    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        raise RuntimeError(f"size {images.shape[2]} is odd to me\nand a second line")


class Pooled(Pointwise):
    """Normalises 1x1 maps, which training on one image cannot do (as DeepLabV3's pooled branch)."""

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        logits = self.classify(images)
        return logits + self.normalise(logits.mean((2, 3), keepdim=True))


class Hungry(Pointwise):
    """Holds `mib` MiB of weights that take no gradient, touches `mib` in the forward and 3 times `mib` in its input.

    It prints, as Python and as C would.
    """

    def __init__(self, mib: int) -> None:
        super().__init__()
        self.mib = mib
        self.ballast = nn.Parameter(torch.ones(mib * 2**18), requires_grad=False)

    def input(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        return images.float() + torch.ones(3 * self.mib * 2**18).sum()

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        os.write(1, b"noise of a library {}\n")
        print("noise of Python")  # noqa: T201
        logits = super().forward(images)
        return logits + torch.ones(self.mib * 2**18, device=images.device)[0] * 0


def tiny() -> nn.Module:
    """Two 3x3 convolutions, always the same, in eval mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 3, padding=1)).eval()


def random_images() -> Tensor:
    return torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
