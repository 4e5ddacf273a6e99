"""Monte-Carlo dropout: the same image many times, each with other units dropped.

Kendall, Badrinarayanan & Cipolla, "Bayesian SegNet", BMVC 2017, arXiv:1511.02680. The prediction is the mean of the
softmax; the uncertainty is the variance of the softmax over the samples (divided by their number), averaged over the
classes, as the authors' script shows it. Only dropout is in training mode: batch normalisation keeps its statistics.

Masks are drawn from a seed of the image's own, so neither batches nor interruptions change a result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
SAMPLES_AT_ONCE = 4
"""Samples a forward pass: what bounds the memory. It is part of how the masks are drawn, so it changes results."""


class Sampled(NamedTuple):
    """Mean of the softmax, and its variance averaged over the classes."""

    probabilities: Float[Tensor, "k h w"]
    uncertainty: Float[Tensor, "h w"]


def drops(model: nn.Module) -> bool:
    """Whether anything would differ between samples."""
    return any(isinstance(module, DROPOUTS) and module.p > 0 for module in model.modules())


@contextmanager
def dropping(model: nn.Module) -> Iterator[None]:
    """Dropout as in training, everything else as in evaluation; evaluation mode afterwards."""
    model.eval()
    for module in model.modules():
        if isinstance(module, DROPOUTS):
            module.train()
    try:
        yield
    finally:
        model.eval()


def sample(model: nn.Module, image: Float[Tensor, "1 3 h w"], samples: int, seed: int) -> Sampled:
    """`samples` passes over one image that has been through the model's `input`; the caller's generators stay."""
    device = image.device
    with dropping(model), torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(seed)
        count, mean, squares = 0, torch.zeros((), device=device), torch.zeros((), device=device)
        while count < samples:
            together = min(SAMPLES_AT_ONCE, samples - count)
            for probabilities in model(image.expand(together, -1, -1, -1)).float().softmax(1):
                # Welford's sums: a variance by squares alone would cancel where the samples agree.
                count += 1
                step = probabilities - mean
                mean = mean + step / count
                squares = squares + step * (probabilities - mean)
        return Sampled(mean, (squares / samples).mean(0))
