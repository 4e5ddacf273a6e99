"""unpooling.py on a GPU: pooling, unpooling and its gradient, each in one pass over memory and without 64-bit indices.

A program handles a run of windows of one image and in each of them the channels that share a byte, one ("byte") or
four ("two-bit"), so that both forms are the same kernel. Codes and conventions are those of unpooling.py. Windows are
numbered in the order in which their bytes lie in memory, which suits both memory layouts.

Positions inside an image are counted in 32 bits: an image may have up to 2^31 values.
"""

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor

WINDOWS_PER_PROGRAM = 256


def pool(
    features: Float[Tensor, "n c h w"], channels_per_byte: int
) -> tuple[Float[Tensor, "n c ph pw"], UInt8[Tensor, "n codes ph pw"]]:
    """The maxima of 2x2 windows, and their places with the codes of `channels_per_byte` (1 or 4) in a byte."""
    features, layout = _dense(features)
    batch, channels, height, width = features.shape
    rows, columns = -(-height // 2), -(-width // 2)
    codes = -(-channels // channels_per_byte)
    pooled = _empty((batch, channels, rows, columns), features, layout)
    places = _empty((batch, codes, rows, columns), features, layout, torch.uint8)
    _launch(_pool, features, pooled, places, layout)
    return pooled, places


def unpool(
    values: Float[Tensor, "n c ph pw"], places: UInt8[Tensor, "n codes ph pw"], size: Sequence[int]
) -> Float[Tensor, "n c h w"]:
    """Each value at its place among zeros."""
    values, layout = _dense(values)
    restored = _empty((*values.shape[:2], *size), values, layout)
    _launch(_unpool, restored, values, places, layout)
    return restored


def gather(features: Float[Tensor, "n c h w"], places: UInt8[Tensor, "n codes ph pw"]) -> Float[Tensor, "n c ph pw"]:
    """The value at each place."""
    features, layout = _dense(features)
    gathered = _empty((*features.shape[:2], *places.shape[2:]), features, layout)
    _launch(_gather, features, gathered, places, layout)
    return gathered


def _dense(source: Tensor) -> tuple[Tensor, torch.memory_format]:
    """The tensor without gaps or repetitions in memory, and which of the two layouts it has."""
    if not source.is_contiguous() and source.is_contiguous(memory_format=torch.channels_last):
        return source, torch.channels_last
    return source.contiguous(), torch.contiguous_format


def _empty(
    shape: tuple[int, ...], source: Tensor, layout: torch.memory_format, dtype: torch.dtype | None = None
) -> Tensor:
    return torch.empty(shape, dtype=dtype or source.dtype, device=source.device, memory_format=layout)


def _launch(kernel: Any, full: Tensor, pooled: Tensor, places: Tensor, layout: torch.memory_format) -> None:
    """Run `kernel` over the windows of a full map; the places may come in the other layout than the map."""
    batch, channels, height, width = full.shape
    codes, rows, columns = places.shape[1:]
    programs = triton.cdiv(codes * rows * columns, WINDOWS_PER_PROGRAM)
    with torch.cuda.device_of(full):
        kernel[(programs, batch)](
            *(full, pooled, places.contiguous(memory_format=layout), channels, height, width),
            GROUP=1 if codes == channels else 4,
            LAST=layout == torch.channels_last,
            BLOCK=WINDOWS_PER_PROGRAM,
        )


# In the kernels GROUP is the number of channels in a byte, and LAST says that the layout is channels_last.


@triton.jit
@no_type_check
def _pool(full, pooled, places, channels, height, width, GROUP: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr):
    window, inside, byte, row, column = _windows(channels, height, width, GROUP, LAST, BLOCK)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    full += _image(channels * height * width)
    pooled += _image(channels * rows * columns)
    places += _image((channels + GROUP - 1) // GROUP * rows * columns)
    packed = tl.zeros([BLOCK], tl.int32)
    for k in tl.static_range(GROUP):
        channel = byte * GROUP + k
        present = inside & (channel < channels)
        largest = tl.load(full + _at(channel, 2 * row, 2 * column, channels, height, width, LAST), present, other=0)
        largest = _comparable(largest)
        code = tl.zeros([BLOCK], tl.int32)
        for corner in tl.static_range(1, 4):
            y, x = 2 * row + corner // 2, 2 * column + corner % 2
            known = present & (y < height) & (x < width)
            value = tl.load(full + _at(channel, y, x, channels, height, width, LAST), known, other=float("-inf"))
            value = _comparable(value)
            # Only NaN differs from itself.
            larger = (value > largest) | (value != value)
            largest = tl.where(larger, value, largest)
            code = tl.where(larger, corner, code)
        tl.store(pooled + _at(channel, row, column, channels, rows, columns, LAST), largest, present)
        packed |= code << (2 * k)
    tl.store(places + window, packed.to(tl.uint8), inside)


@triton.jit
@no_type_check
def _unpool(
    full, pooled, places, channels, height, width, GROUP: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr
):
    window, inside, byte, row, column = _windows(channels, height, width, GROUP, LAST, BLOCK)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    full += _image(channels * height * width)
    pooled += _image(channels * rows * columns)
    places += _image((channels + GROUP - 1) // GROUP * rows * columns)
    packed = tl.load(places + window, inside, other=0).to(tl.int32)
    for k in tl.static_range(GROUP):
        channel = byte * GROUP + k
        present = inside & (channel < channels)
        code = (packed >> (2 * k)) & 3
        value = tl.load(pooled + _at(channel, row, column, channels, rows, columns, LAST), present, other=0)
        for corner in tl.static_range(4):
            y, x = 2 * row + corner // 2, 2 * column + corner % 2
            known = present & (y < height) & (x < width)
            restored = tl.where(code == corner, value, tl.zeros_like(value))
            tl.store(full + _at(channel, y, x, channels, height, width, LAST), restored, known)


@triton.jit
@no_type_check
def _gather(
    full, pooled, places, channels, height, width, GROUP: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr
):
    window, inside, byte, row, column = _windows(channels, height, width, GROUP, LAST, BLOCK)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    full += _image(channels * height * width)
    pooled += _image(channels * rows * columns)
    places += _image((channels + GROUP - 1) // GROUP * rows * columns)
    packed = tl.load(places + window, inside, other=0).to(tl.int32)
    for k in tl.static_range(GROUP):
        channel = byte * GROUP + k
        present = inside & (channel < channels)
        code = (packed >> (2 * k)) & 3
        y, x = 2 * row + (code >> 1), 2 * column + (code & 1)
        value = tl.load(full + _at(channel, y, x, channels, height, width, LAST), present, other=0)
        tl.store(pooled + _at(channel, row, column, channels, rows, columns, LAST), value, present)


@triton.jit
@no_type_check
def _windows(channels, height, width, GROUP: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr):
    """This program's windows: number, whether there is one, and its byte, row and column."""
    codes, rows, columns = (channels + GROUP - 1) // GROUP, (height + 1) // 2, (width + 1) // 2
    window = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if LAST:
        byte, column, row = window % codes, window // codes % columns, window // codes // columns
    else:
        byte, column, row = window // columns // rows, window % columns, window // columns % rows
    return window, window < codes * rows * columns, byte, row, column


@triton.jit
@no_type_check
def _image(values):
    """How far this program's image lies from the first, at so many values an image."""
    return tl.program_id(1).to(tl.int64) * values


@triton.jit
@no_type_check
def _at(channel, row, column, channels, height, width, LAST: tl.constexpr):
    """How far a value lies from the first of its image."""
    return (row * width + column) * channels + channel if LAST else (channel * height + row) * width + column


@triton.jit
@no_type_check
def _comparable(value):
    """bfloat16 in 32 bits, where nothing is lost: Triton's interpreter would compare its bits."""
    if value.dtype == tl.bfloat16:
        value = value.to(tl.float32)
    return value
