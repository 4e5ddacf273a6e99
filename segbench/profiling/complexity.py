"""How large a model is and how much it multiplies.

`macs` are multiply-accumulates of convolutions, deconvolutions and matrix products (attention included) of one image
in eval mode: half of the FLOPs that PyTorch's FlopCounterMode counts, so one multiply-add is one. A deconvolution is
h_in * w_in * c_in * c_out * k * k, border not cut off. What a model's `input` does before the network (local
normalisation included) is not counted, whatever the profile's scope. Normalisation, activation, pooling, resizing and
element-wise sums are not in it; the operators that ran and were not counted are named in a note. Parameters are those
that PyTorch lists, shared ones once; running statistics are buffers and not among them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from segbench.profiling.failure import in_words
from segbench.profiling.workload import Factory

# They make, fill, copy or rename storage and compute nothing.
MOVES = {"_to_copy", "_unsafe_view", "clone", "contiguous", "copy_", "detach_", "lift_fresh"}
MOVES |= {"empty", "empty_like", "empty_strided", "new_empty", "zeros", "zeros_like", "new_zeros", "zero_"}
MOVES |= {"ones", "ones_like", "new_ones", "full", "full_like", "new_full", "fill_", "arange"}


@dataclass(frozen=True)
class Complexity:
    """Size and work; `parameter_mb` is 4 bytes each, in 10^6 bytes; `uncounted` names operators without a count."""

    parameters: int
    trainable_parameters: int
    macs: int | None
    uncounted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def parameter_mb(self) -> float:
        return self.parameters * 4 / 1e6


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run under it and that the FLOP counter does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if func._overloadpacket not in flop_registry and not func.is_view and name not in MOVES:
            self.unknown.add(name)
        return func(*args, **(kwargs or {}))


def complexity(factory: Factory, res: tuple[int, int]) -> Complexity:
    """Count on the meta device, which computes nothing; on the CPU where a model cannot be built or run there.

    Raises what the factory raises; a forward that fails leaves `macs` None and a note.
    """
    notes: list[str] = []
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                model = factory().to(device).eval()
        except Exception:
            if device == "cpu":
                raise
            continue
        sizes = parameter_counts(model)
        try:
            macs, uncounted = count_macs(model, res, device)
        except Exception as error:  # operators without a meta kernel, or somebody's model at a size that it cannot take
            notes = [f"macs not counted: {in_words(error)}"]
            continue
        left_out = [f"macs leave out {', '.join(uncounted)}"] if uncounted else []
        return Complexity(*sizes, macs, uncounted, tuple(left_out))
    return Complexity(*sizes, None, (), tuple(notes))


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those of them that take gradients."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


# Not inference_mode: under it composite operators reach Operators whole, and counted ones look unknown.
@torch.no_grad()
def count_macs(model: nn.Module, res: tuple[int, int], device: str) -> tuple[int, tuple[str, ...]]:
    """Multiply-accumulates of one image, and the operators that are not in them."""
    operators = Operators()
    with FlopCounterMode(display=False) as flops, operators:
        model(torch.zeros((1, 3, *res), device=device))
    return flops.get_total_flops() // 2, tuple(sorted(operators.unknown))
