"""Max pooling that remembers where, and unpooling that puts back there.

SegNet (Badrinarayanan, Kendall & Cipolla, arXiv:1511.00561, section 3) keeps of each 2x2 window only which of its four
values was the largest, "using 2 bits". `F.max_pool2d` and `F.max_unpool2d` keep a 64-bit index. Here a window keeps a
code: 2 * row + column of the maximum inside the window.

Two forms of it, both uint8. "byte": one code a byte, shaped as the pooled map. "two-bit": four channels share a byte,
channel 4g + k in bits 2k and 2k + 1 of byte g; a last group may be incomplete and is then padded with zeros.

Conventions, all those of Caffe's pooling with a mask and of `F.max_pool2d`: sizes round up (45 rows pool to 23), so
that a window at an odd border is cut off; of equal values the first in row order wins. NaN is larger than everything,
and of several in a window `F.max_pool2d` takes the last; -inf is an ordinary value.

Outputs and gradients equal those of `F.max_pool2d` and `F.max_unpool2d`. The latter raises in deterministic mode, for
indices might repeat; those of separate windows cannot, and one order gives what another does. For the way back autograd
keeps the codes and nothing else; a second derivative is not defined and raises. CUDA tensors go through the kernels of
unpooling_triton.py where Triton is installed. Departures: none known.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

Packing = Literal["byte", "two-bit"]
Size = Sequence[int]

CHANNELS_PER_BYTE = 4

# Values that one thread gives indices at a time, 2 MiB of them: those of all values would take twice their memory, and
# out of the cache they cost more time than their use.
SLAB = 1 << 18


def pool_with_places(
    features: Float[Tensor, "n c h w"], form: Packing = "two-bit"
) -> tuple[Float[Tensor, "n c ph pw"], UInt8[Tensor, "n codes ph pw"]]:
    """2x2 max pooling with stride 2, and the place of each maximum: `codes` is c ("byte") or c / 4, rounded up.

    The gradient of the pooled map is put back by `unpool`; the places have none.
    """
    # An exported graph keeps nothing for a way back, and the ONNX exporter mistakes the type of shifted uint8.
    return _Pool.apply(features, "byte" if torch.compiler.is_exporting() else form)


def unpool(
    values: Float[Tensor, "n c ph pw"], places: UInt8[Tensor, "n codes ph pw"], size: Size
) -> Float[Tensor, "n c h w"]:
    """Zeros of `size` (height, width) with each value at its place: Caffe's Upsample layer. Takes either form.

    Raises `ValueError` where values, places and size do not belong together: Caffe would permute pixels.
    """
    _check(values, places, size)
    return _Unpool.apply(values, places, size)


def _check(values: Tensor, places: Tensor, size: Size) -> None:
    batch, channels, *pooled = values.shape
    if pooled != [-(-side // 2) for side in size]:
        raise ValueError(f"values of {pooled[0]}x{pooled[1]} do not unpool to {size[0]}x{size[1]}, but to twice that")
    if places.shape[1] not in (channels, _bytes(channels)) or [batch, *pooled] != [places.shape[0], *places.shape[2:]]:
        raise ValueError(f"places of shape {tuple(places.shape)} are not those of values {tuple(values.shape)}")


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, form: Packing) -> tuple[Tensor, Tensor]:
        pooled, places = _pool(features, form)
        ctx.size = features.shape[-2:]
        ctx.save_for_backward(places)
        ctx.mark_non_differentiable(places)
        ctx.set_materialize_grads(False)
        return pooled, places

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        if gradient is None:  # nothing that the loss needs came from the pooled map
            return None, None
        (places,) = ctx.saved_tensors
        return _unpool(gradient, places, ctx.size), None


class _Unpool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, size: Size) -> Tensor:
        ctx.save_for_backward(places)
        return _unpool(values, places, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return _gather(gradient, places), None, None


# By kernel where there is one, otherwise in plain torch


@cache
def _triton() -> Any | None:
    return import_module("segbench.models.unpooling_triton") if find_spec("triton") else None


def _kernels(tensor: Tensor) -> Any | None:
    """The module of kernels if they can run on this tensor; graphs are traced in plain torch."""
    return _triton() if tensor.is_cuda and not torch.compiler.is_compiling() else None


def _pool(features: Tensor, form: Packing) -> tuple[Tensor, Tensor]:
    if kernels := _kernels(features):
        return kernels.pool(features, CHANNELS_PER_BYTE if form == "two-bit" else 1)
    pooled, indices = F.max_pool2d(features, 2, 2, ceil_mode=True, return_indices=True)
    codes = _codes(indices, features.shape[-1])
    return pooled, _packed(codes) if form == "two-bit" else codes


def _unpool(values: Tensor, places: Tensor, size: Size) -> Tensor:
    if kernels := _kernels(values):
        return kernels.unpool(values, places, size)
    height, width = size
    planes, codes = values.flatten(0, 1), _unpacked(places, values.shape[1]).flatten(0, 1)
    restored = values.new_zeros(planes.shape[0], height * width)
    for slab in _slabs(planes):
        restored[slab].scatter_(1, _indices(codes[slab], width).flatten(1), planes[slab].flatten(1))
    return _in_layout_of(values, restored.view(*values.shape[:2], height, width))


def _gather(features: Tensor, places: Tensor) -> Tensor:
    """The value at each place: what `_unpool` undoes, and its gradient."""
    if kernels := _kernels(features):
        return kernels.gather(features, places)
    planes, codes = features.flatten(0, 1), _unpacked(places, features.shape[1]).flatten(0, 1)
    gathered = features.new_empty(codes.shape)
    for slab in _slabs(codes):
        indices = _indices(codes[slab], features.shape[-1])
        gathered[slab] = planes[slab].flatten(1).gather(1, indices.flatten(1)).view(indices.shape)
    return _in_layout_of(features, gathered.view(*features.shape[:2], *gathered.shape[1:]))


def _slabs(planes: Tensor) -> Iterator[slice]:
    """Runs of planes for a processor's cache; everything at once on other devices and while a graph is traced."""
    if planes.device.type != "cpu" or torch.compiler.is_compiling():
        yield slice(None)
        return
    step = max(1, SLAB * torch.get_num_threads() // (planes.shape[1] * planes.shape[2]))
    for first in range(0, planes.shape[0], step):
        yield slice(first, first + step)


def _in_layout_of(model: Tensor, result: Tensor) -> Tensor:
    """`result` in channels_last where `model` is, so that the next convolution meets the layout it is used to."""
    if model.is_contiguous() or not model.is_contiguous(memory_format=torch.channels_last):
        return result
    return result.contiguous(memory_format=torch.channels_last)


# Codes, packed codes and the flat indices (row * width + column) that PyTorch understands


def _codes(indices: Int64[Tensor, "n c ph pw"], width: int) -> UInt8[Tensor, "n c ph pw"]:
    """The offset from a window's corner is 0, 1, width or width + 1."""
    offsets = indices.to(torch.int32) - _corners(indices, width).to(torch.int32)
    return offsets.sub_((offsets >= width).to(torch.int32), alpha=width - 2).to(torch.uint8)


def _indices(codes: UInt8[Tensor, "planes ph pw"], width: int) -> Int64[Tensor, "planes ph pw"]:
    return (_corners(codes, width) + codes).add_(codes >> 1, alpha=width - 2)


def _corners(windows: Tensor, width: int) -> Int64[Tensor, "ph pw"]:
    """The flat index of each window's first value in a map of `width` columns."""
    rows, columns = (torch.arange(side, device=windows.device) for side in windows.shape[-2:])
    return 2 * width * rows[:, None] + 2 * columns


def _packed(codes: UInt8[Tensor, "n c ph pw"]) -> UInt8[Tensor, "n bytes ph pw"]:
    if missing := -codes.shape[1] % CHANNELS_PER_BYTE:
        codes = F.pad(codes, (0, 0, 0, 0, 0, missing))
    first, second, third, fourth = codes.unflatten(1, (-1, CHANNELS_PER_BYTE)).unbind(2)
    return first | second << 2 | third << 4 | fourth << 6


def _unpacked(places: UInt8[Tensor, "n codes ph pw"], channels: int) -> UInt8[Tensor, "n {channels} ph pw"]:
    """The codes of either form. A single channel looks the same in both."""
    if places.shape[1] == channels:
        return places
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=places.device).view(-1, 1, 1)
    return (places.unsqueeze(2) >> shifts & 3).flatten(1, 2)[:, :channels]


def _bytes(channels: int) -> int:
    return -(-channels // CHANNELS_PER_BYTE)
