"""Activations forgotten in the forward pass and computed again in the backward pass, for larger batches.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174: of n layers in a row, only the inputs
of about sqrt(n) segments of about sqrt(n) layers each are kept; a segment's own activations exist while its gradient
is computed. It costs at most one more forward pass.

Networks are no rows, so segments are taken from how their authors nested them: the outermost modules that hold at least
two and at most sqrt(n) (rounded up) of the n layers with weights. In SegNet these are the stages of encoder and
decoder, in a ResNet its blocks. What lies outside of all segments (pooling, its places, unpooling, skips, resizing) is
kept as before.

Gradients are bit-identical to those without: dropout draws the same numbers again, autocast is entered again
(torch.utils.checkpoint), and batch normalisation sees each batch once, for its running statistics stand still while
a segment is computed again. Modules, their names and the state dict stay what they are, and without gradients
everything is computed as before.

Departures: a segment that keeps another state of its own (a count of calls, say) would change it twice; none of the
registered networks has one. A module that writes into its input cannot be computed again, and raises.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from segbench.errors import ModelError


def forget_activations(model: nn.Module) -> list[str]:
    """Make the model's segments compute their activations again in the backward pass; their names.

    Before torch.compile and before or after DDP. The forward pass raises `ModelError` for a segment that writes into
    its input.
    """
    found = segments(model)
    for name, module in found:
        # On the object, not around it: a wrapper would change the names of modules and weights.
        module.forward = partial(forgetting, module, module.forward, name)
    return [name for name, _ in found]


def segments(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The outermost modules inside the model that hold two to sqrt(n) of its n layers, in its order.

    A module under two names comes once, under the first.
    """
    largest = math.ceil(math.sqrt(layers(model)))
    found: list[tuple[str, nn.Module]] = []

    def visit(parent: nn.Module, prefix: str) -> None:
        for child, module in parent.named_children():
            name = prefix + child
            # Containers without a forward of their own are never called.
            called = not isinstance(module, nn.ModuleList | nn.ModuleDict)
            if called and 2 <= layers(module) <= largest:
                found.append((name, module))
            else:
                visit(module, f"{name}.")

    visit(model, "")
    return list({id(module): (name, module) for name, module in reversed(found)}.values())[::-1]


def layers(module: nn.Module) -> int:
    """Modules that have weights themselves: convolutions, normalisations, linear maps."""
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())


def forgetting(module: nn.Module, forward: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """The module's own forward, whose activations are not kept for the gradient."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():  # the compiler keeps track of statistics itself, and allows no other context
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    # Taken out of their lists, for a DenseNet adds to the list that it gave to a layer.
    given, structure = tree_flatten((args, kwargs))
    before = versions(given)

    def first_or_again(*given: Any) -> Any:
        args, kwargs = tree_unflatten(given, structure)
        return forward(*args, **kwargs)

    found = checkpoint(first_or_again, *given, use_reentrant=False, context_fn=partial(first_and_again, module))
    if versions(given) != before:
        raise ModelError(
            f"activation_checkpointing: {name} ({type(module).__name__}) writes into its input, which could not be "
            "computed again; leave the setting out"
        )
    return found


def versions(values: Iterable[Any]) -> list[int]:
    """How often each tensor among the values was written to."""
    return [value._version for value in values if isinstance(value, Tensor)]


def first_and_again(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first computation of a module, and the second."""
    return nullcontext(), statistics_standing_still(module)


@contextmanager
def statistics_standing_still(module: nn.Module) -> Iterator[None]:
    """Normalisations take what they see into copies of their running statistics, which are dropped in the end.

    Copies and not none, for autograd expects as many tensors as the first time.
    """
    norms = [part for part in module.modules() if isinstance(part, _NormBase) and part.training]
    before = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, before, strict=True):
        norm._buffers.update({name: buffer if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            norm._buffers.update(buffers)
