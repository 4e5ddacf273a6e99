"""The bands of all classes in one map: the NumPy path of `boundary_iou.py`, in buffers that stay cached."""

from typing import no_type_check

import numpy as np
from jaxtyping import UInt8

from segbench.metrics.kernels.compiling import compiled

Flags = UInt8[np.ndarray, " n"]  # 0 or 1

STRIP_PIXELS = 1 << 14  # three buffers of a strip fit into a core's second-level cache, mostly into its first


@compiled
@no_type_check
def equal(one: UInt8[np.ndarray, " n"], other: UInt8[np.ndarray, " n"], flags: Flags) -> None:
    for i in range(flags.size):
        flags[i] = one[i] == other[i]


@compiled
@no_type_check
def both(one: Flags, other: Flags, flags: Flags) -> None:
    for i in range(flags.size):
        flags[i] = one[i] & other[i]


@compiled
@no_type_check
def cover(band: UInt8[np.ndarray, " n"], flags: Flags, void: int) -> None:
    """Void where a flag stands; void is above every class."""
    for i in range(flags.size):
        band[i] = max(band[i], void * flags[i])


@compiled
@no_type_check
def all_of(flags: Flags, spare: Flags, count: int, stride: int) -> tuple[Flags, Flags]:
    """[i] = all of flags[i + j * stride] for j < count; and the buffer that is free now. Both are written."""
    n, covered = flags.size, 1
    while covered < count:
        step = min(covered, count - covered)
        n -= step * stride
        both(flags[:n], flags[step * stride : step * stride + n], spare[:n])
        flags, spare = spare, flags
        covered += step
    return flags[:n], spare


@compiled
@no_type_check
def band_map(labels: UInt8[np.ndarray, "h w"], num_classes: int, width_px: int) -> UInt8[np.ndarray, "h w"]:
    void, side = np.uint8(num_classes), 2 * width_px
    band = np.minimum(labels, void)
    height, width = labels.shape
    if min(height, width) <= side:  # every window leaves the image
        return band
    rows = min(max(STRIP_PIXELS // width, 2 * side), height - side)
    buffers = np.empty((3, (rows + side) * width), np.uint8)
    one, two, three = buffers[0], buffers[1], buffers[2]
    flat, out = labels.reshape(-1), band.reshape(-1)
    for top in range(0, height - side, rows):
        strip = flat[top * width : (top + rows + side) * width]
        n = strip.size - 1
        equal(strip[:n], strip[1:], one[:n])
        one[width - 1 : n : width] = 0  # a step from one row's end to the next row's start
        constant, spare = all_of(one[:n], two, side, 1)
        n = constant.size - width
        equal(strip[:n], strip[width : width + n], three[:n])
        both(three[:n], constant[:n], spare[:n])
        both(spare[:n], constant[width : width + n], three[:n])
        inner, _ = all_of(three[:n], spare, side, width)
        place = (top + width_px) * width + width_px
        cover(out[place : place + inner.size], inner, void)
    return band
