"""The void policies of boundary counts that leave pixels out, as a map of these pixels.

In NumPy alone: whole rows of bytes are what it is fast at.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt8

VoidPolicy = Literal["script", "copied", "touching", "band"]


def left_out(
    truth: UInt8[np.ndarray, "h w"], num_classes: int, policy: VoidPolicy, half_widths: Int64[np.ndarray, " rows"]
) -> Bool[np.ndarray, "h w"] | None:
    """Where no boundary pixel counts, of either map; None where there is no such place.

    "touching": where the 2x2 window of the truth holds void, as the window of `boundary.py` does. "band": where the
    disk of `half_widths` does. Takes up to 3 bytes a pixel.
    """
    if policy not in ("touching", "band"):
        return None
    void = truth >= num_classes
    if not void.any():
        return None
    return _touching(void) if policy == "touching" else _within(void, half_widths)


def _touching(void: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    # The window's repeated last row and column hold no void that the row and column themselves do not.
    rows = void.copy()
    rows[:-1] |= void[1:]
    touching = rows.copy()
    touching[:, :-1] |= rows[:, 1:]
    return touching


def _within(void: Bool[np.ndarray, "h w"], half_widths: Int64[np.ndarray, " rows"]) -> Bool[np.ndarray, "h w"]:
    """void, dilated by the disk: widened by a pixel at a time, and at each width the rows that have it are added."""
    height = len(void)
    near, wide, width = np.zeros_like(void), void.copy(), 0
    for dy in range(len(half_widths) - 1, -1, -1):  # from the narrowest row to the widest
        while width < half_widths[dy]:
            width += 1
            wide[:, width:] |= void[:, :-width]
            wide[:, :-width] |= void[:, width:]
        near[dy:] |= wide[: height - dy]
        near[: height - dy] |= wide[dy:]
    return near
