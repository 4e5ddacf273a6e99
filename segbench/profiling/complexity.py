"""How large a model is, how much it multiplies, and what its training keeps.

`macs` are multiply-accumulates of convolutions, deconvolutions and matrix products (attention included) of one image
in eval mode: half of the FLOPs that PyTorch's FlopCounterMode counts, so one multiply-add is one. A deconvolution is
h_in * w_in * c_in * c_out * k * k, border not cut off. What a model's `input` does before the network (local
normalisation included) is not counted, whatever the profile's scope. Normalisation, activation, pooling, resizing and
element-wise sums are not in it; the operators that ran and were not counted are named in a note. Parameters are those
that PyTorch lists, shared ones once; running statistics are buffers and not among them.

`file_mb` is the size of a safetensors file of the state dict (buffers included, shared tensors once, no metadata),
computed from the format: 8 bytes, a header of JSON, the data. `activation_mib` is what autograd keeps for the backward
pass of one image's forward in training mode, the loss left out, in fp32: each storage once, without parameters,
buffers and the image. It follows PyTorch's CPU operators; a GPU's may keep other forms (a dropout mask of one byte,
not four) and need workspace besides.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from segbench.profiling.failure import in_words
from segbench.profiling.workload import Factory

# They make, fill, copy or rename storage and compute nothing.
MOVES = {"_to_copy", "_unsafe_view", "clone", "contiguous", "copy_", "detach_", "lift_fresh"}
MOVES |= {"empty", "empty_like", "empty_strided", "new_empty", "zeros", "zeros_like", "new_zeros", "zero_"}
MOVES |= {"ones", "ones_like", "new_ones", "full", "full_like", "new_full", "fill_", "arange"}

TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As safetensors spells them; another type's spelling changes the file by a byte or two."""

Value = TypeVar("Value")
Build = Callable[[str], nn.Module]


@dataclass(frozen=True)
class Complexity:
    """Size and work of one image. What could not be counted is None, with a note.

    `parameter_mb` is 4 bytes each and `file_mb` the saved file, both in 10^6 bytes; `activation_mib` is in 2^20.
    `uncounted` names the operators that ran and are not in `macs`.
    """

    parameters: int
    trainable_parameters: int
    file_mb: float
    macs: int | None
    activation_mib: float | None
    uncounted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def parameter_mb(self) -> float:
        return self.parameters * 4 / 1e6

    @property
    def flops(self) -> int | None:
        """Two for each multiply-accumulate."""
        return None if self.macs is None else 2 * self.macs


class Macs(NamedTuple):
    """Multiply-accumulates, and the operators that are not in them."""

    macs: int | None
    uncounted: tuple[str, ...]


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

    Raises what the factory raises; a forward that fails leaves what it was to count None, and a note.
    """
    build: Build = cache(lambda device: built_on(device, factory))
    model = built(build)
    work, no_work = counted("macs", count_macs, build, res)
    kept, not_kept = counted("activations", kept_bytes, build, res)
    macs, uncounted = work or Macs(None, ())
    left_out = [f"macs leave out {', '.join(uncounted)}"] if uncounted else []
    return Complexity(
        *parameter_counts(model),
        file_mb=file_bytes(model) / 1e6,
        macs=macs,
        activation_mib=None if kept is None else kept / 2**20,
        uncounted=uncounted,
        notes=(*no_work, *left_out, *not_kept),
    )


def built_on(device: str, factory: Factory) -> nn.Module:
    with torch.device(device):
        return factory().to(device)


def built(build: Build) -> nn.Module:
    try:
        return build("meta")
    except Exception:  # a factory that looks at values, or loads them
        return build("cpu")


def counted(
    what: str, count: Callable[[nn.Module, Tensor], Value], build: Build, res: tuple[int, int]
) -> tuple[Value | None, tuple[str, ...]]:
    """`count` of a model and one image on the first device that can, or None and a note."""
    notes: tuple[str, ...] = ()
    for device in ("meta", "cpu"):
        try:
            return count(build(device), torch.zeros((1, 3, *res), device=device)), ()
        except Exception as error:  # operators without a meta kernel, or somebody's model at a size that it cannot take
            notes = (f"{what} not counted: {in_words(error)}",)
    return None, notes


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those of them that take gradients."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


# Not inference_mode: under it composite operators reach Operators whole, and counted ones look unknown.
@torch.no_grad()
def count_macs(model: nn.Module, images: Float[Tensor, "n 3 h w"]) -> Macs:
    """Of all the images, in eval mode."""
    operators = Operators()
    with FlopCounterMode(display=False) as flops, operators:
        model.eval()(images)
    return Macs(flops.get_total_flops() // 2, tuple(sorted(operators.unknown)))


def kept_bytes(model: nn.Module, images: Float[Tensor, "n 3 h w"]) -> int:
    """What autograd keeps of a forward in training mode. What a custom function hangs on its context is not seen."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no later storage has its address
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(images)
    for own in (*model.parameters(), *model.buffers(), images):
        kept.pop(own.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())


def file_bytes(model: nn.Module) -> int:
    """Of a safetensors file of the state dict (https://huggingface.co/docs/safetensors, "Format").

    Its writer orders tensors by the size of their elements, then by name, and fills the header to whole 8 bytes.
    """
    state = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    tensors = [(name, tensor) for name, tensor in state.values() if isinstance(tensor, Tensor)]
    header, end = {}, 0
    for name, tensor in sorted(tensors, key=lambda item: (-item[1].element_size(), item[0])):
        begin, end = end, end + tensor.nbytes
        kind = TYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    written = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-written // 8) * 8 + end
