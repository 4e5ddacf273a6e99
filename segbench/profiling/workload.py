"""What is timed and weighed: random images and labels of a fixed seed through the model, with its loss in training.

The images are standard normal floats of the model's input size, [n, 3, h, w]: the work is the same as on photographs,
and no reading, resizing or normalisation is included, nor anything else that a model's `input` does.
Weights are whatever the factory draws under the same seed. Everything is fp32: TF32 and CPU bfloat16 products are off,
and cuDNN picks algorithms by its heuristics (no autotuning, whose choice varies).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from segbench.errors import ModelError

Factory = Callable[[], nn.Module]
SEED = 0


class Batch(NamedTuple):
    images: Float[Tensor, "n 3 h w"]
    labels: Int[Tensor, "n h w"]


def random_images(images: int, res: tuple[int, int], device: torch.device) -> Float[Tensor, "n 3 h w"]:
    """Drawn on the CPU, so that every device gets the same numbers."""
    return torch.randn((images, 3, *res), generator=torch.Generator().manual_seed(SEED)).to(device)


def random_batch(images: int, res: tuple[int, int], num_classes: int, device: torch.device) -> Batch:
    """Images and labels, drawn alike."""
    labels = torch.randint(num_classes, (images, *res), generator=torch.Generator().manual_seed(SEED))
    return Batch(random_images(images, res, device), labels.to(device))


def seeded(factory: Factory, device: torch.device) -> nn.Module:
    """A new model on the device with the fixed seed's weights. The caller guards the global generator."""
    torch.manual_seed(SEED)
    return factory().to(device)


def loss_of(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """The training network's forward: logits and their mean cross-entropy over all pixels, unweighted."""
    return functional.cross_entropy(model(batch.images), batch.labels)


def check_logits(logits: object, images: Float[Tensor, "n 3 h w"], num_classes: int) -> None:
    """Raises `ModelError` unless the model gave a score for each class at each pixel of its input."""
    wanted = [len(images), num_classes, *images.shape[2:]]
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != wanted:
        raise ModelError(f"the forward gave {found}; expected logits {wanted} (images, classes, height, width)")


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Full fp32 products while it lasts; the settings before it return after it."""
    backends = torch.backends
    # The per-operator settings are saved rather than `allow_tf32`: reading that one raises where somebody set these.
    cudnn: Any = backends.cudnn  # PyTorch's types do not know the operators' settings
    mkldnn: Any = backends.mkldnn
    places: tuple[Any, ...] = (backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)
    before, autotune = [place.fp32_precision for place in places], backends.cudnn.benchmark
    try:
        for place in places:
            place.fp32_precision = "ieee"
        backends.cudnn.benchmark = False
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
        backends.cudnn.benchmark = autotune
