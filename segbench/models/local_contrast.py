"""Local contrast normalisation: each pixel against the mean and the deviation of its surroundings.

Jarrett, Kavukcuoglu, Ranzato & LeCun, ICCV 2009, section 2 ("Local Contrast Normalization Layer"). The mean of the
surroundings, over all channels, is subtracted from every channel:

    v[i, j, k] = x[i, j, k] - sum_ipq w[p, q] x[i, j+p, k+q]

and what is left is divided by its own deviation there, or by the image's mean deviation c where that is larger:

    y[i, j, k] = v[i, j, k] / max(c, sigma[j, k]),  sigma[j, k]^2 = sum_ipq w[p, q] v[i, j+p, k+q]^2,  c = mean(sigma)

w is a 9x9 Gaussian, and its sum over window and channels is 1. c belongs to one image, never to a batch.

What the paper leaves open, and what is done here:
- the Gaussian's standard deviation: 2 pixels, as in pylearn2; others differ;
- the border: the weights that fall outside are dropped and the others scaled to the sum 1, in both sums; c is the mean
  over all pixels, those at the border included;
- an image where every sigma is 0 (black, white, one grey): zeros. A frame of one colour that is not grey is not such
  an image: its channels differ from their common mean.

No scale and no offset common to the channels changes the result. Sums are plain fp32 products, not convolutions, which
TF32 or autocast would round.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

WINDOW_PX, DEVIATION_PX = 9, 2.0


def local_contrast_normalised(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Zero mean and unit deviation around each pixel; any size, also below the window's."""
    # A constant changes nothing but the rounding: with it off, one grey is exactly 0 and not noise over noise.
    images = images - images[:, :1, :1, :1]
    centred = images - local_mean(images)
    deviation = local_mean(centred.square()).sqrt()
    divisor = torch.maximum(deviation, deviation.mean(dim=(2, 3), keepdim=True))
    return centred / divisor.where(divisor > 0, 1.0)


def local_mean(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """The Gaussian-weighted mean over channels and window, of the pixels that exist."""
    channels = images.mean(dim=1, keepdim=True)
    return weighted_sum(channels) / weighted_sum(torch.ones_like(channels[:1]))


def weighted_sum(plane: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """The Gaussian's sum, rows and then columns; nothing outside the image."""
    weights, reach = gaussian(plane), WINDOW_PX // 2
    rows = (F.pad(plane, (0, 0, reach, reach)).unfold(2, WINDOW_PX, 1) * weights).sum(dim=-1)
    return (F.pad(rows, (reach, reach)).unfold(3, WINDOW_PX, 1) * weights).sum(dim=-1)


def gaussian(like: Tensor) -> Float[Tensor, " window"]:
    """The window's weights along one side, on the device of `like`; their sum is 1."""
    offsets = torch.arange(WINDOW_PX, dtype=like.dtype, device=like.device) - WINDOW_PX // 2
    weights = (-(offsets / DEVIATION_PX).square() / 2).exp()
    return weights / weights.sum()
