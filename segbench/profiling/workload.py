"""What is timed and weighed: random images and labels of a fixed seed through the model, with its loss in training.

The images are standard normal floats of the model's input size, [n, 3, h, w]: the work is the same as on photographs,
and no reading, resizing or normalisation is included, nor anything else that a model's `input` does. In a scope with
`+input` they are 8-bit RGB, uniform, and the network stands behind its own `input`; what else a scope may name is put
around it where it is timed (scopes.py).
Weights are whatever the factory draws under the same seed. The precision is set around it
(precision.py).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from segbench.errors import ModelError
from segbench.profiling.spec import Scope

Factory = Callable[[], nn.Module]
Images = Float[Tensor, "n 3 h w"] | UInt8[Tensor, "n 3 h w"]
SEED = 0


class Batch(NamedTuple):
    images: Images
    labels: Int[Tensor, "n h w"]


class Fed(nn.Module):
    """A model behind its own `input`: from 8-bit RGB to logits. Raises `ModelError` when it declares none."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        declared_input(model)
        self.model = model

    def forward(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h2 w2"]:
        return self.model(self.model.input(images))  # type: ignore[operator]


def declared_input(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model's own step from 8-bit RGB to what it is fed; raises `ModelError` when it declares none."""
    declared = getattr(model, "input", None)
    if not callable(declared):
        raise ModelError(
            f"the scope +input needs a model that declares its `input`, and {type(model).__name__} does not; "
            "declare one or leave +input out"
        )
    return declared


def fed_bytes(scope: Scope) -> bool:
    """Whether images are 8-bit RGB in this scope, and the model's `input` is part of what is measured."""
    return "input" in scope.split("+")


def random_images(images: int, res: tuple[int, int], device: torch.device, scope: Scope = "model") -> Images:
    """Drawn on the CPU, so that every device gets the same numbers."""
    shape, generator = (images, 3, *res), torch.Generator().manual_seed(SEED)
    if not fed_bytes(scope):
        return torch.randn(shape, generator=generator).to(device)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)


def random_batch(
    images: int, res: tuple[int, int], num_classes: int, device: torch.device, scope: Scope = "model"
) -> Batch:
    """Images and labels, drawn alike."""
    labels = torch.randint(num_classes, (images, *res), generator=torch.Generator().manual_seed(SEED))
    return Batch(random_images(images, res, device, scope), labels.to(device))


def seeded(factory: Factory, device: torch.device, scope: Scope = "model") -> nn.Module:
    """A new model on the device with the fixed seed's weights. The caller guards the global generator."""
    torch.manual_seed(SEED)
    model = factory().to(device)
    return Fed(model) if fed_bytes(scope) else model


def loss_of(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """The training network's forward: logits and their mean cross-entropy over all pixels, unweighted.

    A score for void, behind those of the classes, is one more that the softmax shares among; no label asks for it.
    """
    return functional.cross_entropy(model(batch.images), batch.labels)


def check_logits(logits: object, images: Images, num_classes: int) -> None:
    """Raises `ModelError` unless the model gave a score for each class, and at most one for void behind them, at each
    pixel of its input."""
    wanted, with_void = ([len(images), scores, *images.shape[2:]] for scores in (num_classes, num_classes + 1))
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found not in (wanted, with_void):
        raise ModelError(
            f"the forward gave {found}; expected logits {wanted} (images, classes, height, width), "
            "or one more channel for void"
        )


def checked(network: Callable[[Images], Tensor], num_classes: int) -> Callable[[Images], Tensor]:
    """The network, whose first answer is looked at: raises `ModelError` when it is no map of logits."""
    seen = False

    def call(images: Images) -> Tensor:
        nonlocal seen
        logits = network(images)
        if not seen:
            check_logits(logits, images, num_classes)
            seen = True
        return logits

    return call
