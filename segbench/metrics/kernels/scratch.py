"""The memory that `reach.py` works in."""

import threading
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from segbench.metrics.kernels.compiling import Mask


class Scratch(NamedTuple):
    """Memory for one strip, kept for the next: the system's fresh pages would cost more than all that is done in them.

    Of its 32 bytes a cell (with masks of 16 bits) maps of regions touch a third, noise all.
    """

    padded: UInt8[np.ndarray, " cells"]  # a map
    flags: UInt8[np.ndarray, " cells"]  # of its boundary
    places: Int32[np.ndarray, "2 cells"]  # of the boundary pixels of prediction and truth
    masks: Mask  # [2, cells], their classes
    grids: Mask  # [2, cells], the same masks at their places
    wide: Mask  # [2, cells], a grid widened, and widened again
    places_left: Int32[np.ndarray, " cells"]  # of the pixels that miss a partner
    numbers_left: Int32[np.ndarray, " cells"]  # theirs among all boundary pixels
    missing: Mask  # [cells], the classes they miss it in


class _Kept(threading.local):
    def __init__(self) -> None:
        self.by_mask: dict[np.dtype, Scratch] = {}


_kept = _Kept()


def scratch_of(cells: int, dtype: np.dtype) -> Scratch:
    """The thread's scratch for masks of a type, anew where it is too small.

    One for each type: with 17 classes and more, images of few classes and of many (`boundary.py`) follow one another.
    """
    kept = _kept.by_mask.get(dtype)
    if kept is None or kept.padded.size < cells:
        cells = (cells + 7) // 8 * 8
        del kept
        _kept.by_mask.pop(dtype, None)  # the old memory goes before the new comes
        kept = _kept.by_mask[dtype] = Scratch(
            padded=np.empty(cells, np.uint8),
            flags=np.empty(cells, np.uint8),
            places=np.empty((2, cells), np.int32),
            masks=np.empty((2, cells), dtype),
            grids=np.empty((2, cells), dtype),
            wide=np.empty((2, cells), dtype),
            places_left=np.empty(cells, np.int32),
            numbers_left=np.empty(cells, np.int32),
            missing=np.empty(cells, dtype),
        )
    return kept
