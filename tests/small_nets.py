"""Networks that cost nearly nothing, for tests of what others cost. A fresh process imports them from here."""

import torch
from jaxtyping import Float
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


def tiny() -> nn.Module:
    """Two 3x3 convolutions, always the same, in eval mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 3, padding=1)).eval()


def random_images() -> Tensor:
    return torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
