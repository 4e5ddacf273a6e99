"""Boundary pixels of every class at once, and which of them find a partner within the tolerance.

A map is copied with its last row and column repeated, so that the 2x2 rule knows no border. The pixels whose window is
mixed get the bits of the window's classes, in a grid with empty margins of the disk's reach: a step of the disk is one
offset in the grid and never runs into another row. The OR of the grid over the disk around a pixel then tells for all
classes which of them lie in reach. Places count pixels in rows of `stride`: row y, column x is y * stride + x.
"""

from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from segbench.metrics.kernels.compiling import Mask, compiled
from segbench.metrics.kernels.scratch import Scratch, scratch_of

ONE, BYTE = np.uint64(1), np.uint64(255)
# Bit b of a byte as a 1 in byte lane b: adding entries counts eight classes at once, up to 255 times.
LANES = np.array([sum(1 << 8 * bit for bit in range(8) if byte >> bit & 1) for byte in range(256)], np.uint64)


def count_in_reach(
    truth: UInt8[np.ndarray, "h w"],
    prediction: UInt8[np.ndarray, "h w"],
    left_out: Bool[np.ndarray, "_ _"],
    bits: Mask,
    half_widths: Int64[np.ndarray, " rows"],
    first_row: int,
    last_row: int,
) -> tuple[Int64[np.ndarray, "4 bits"], Int32[np.ndarray, " p"], Mask, Int32[np.ndarray, " t"], Mask]:
    """Counts of the rows first_row <= y < last_row of a strip; its other rows are surroundings.

    (n_pred, tp_pred, n_gt, tp_gt) per class bit, then the places of prediction and of truth, each with the bits that
    have a partner in reach. The places and bits are overwritten by the next call.
    """
    h, w = truth.shape
    reach_y, reach_x = len(half_widths) - 1, int(half_widths[0])
    cells = (h + 2 * reach_y + 1) * (w + max(reach_x, 1)) + 2 * reach_x + 8
    assert cells < 2**31, f"a strip of {h} rows of {w} pixels"  # rows of a million pixels and a tolerance of hundreds
    scratch = scratch_of(cells, bits.dtype)
    return count_strip(truth, prediction, left_out, bits, half_widths, first_row, last_row, scratch)


@compiled
@no_type_check
def count_strip(
    truth: UInt8[np.ndarray, "h w"],
    prediction: UInt8[np.ndarray, "h w"],
    left_out: Bool[np.ndarray, "h w"],
    bits: Mask,
    half_widths: Int64[np.ndarray, " rows"],
    first_row: int,
    last_row: int,
    scratch: Scratch,
) -> tuple[Int64[np.ndarray, "4 bits"], Int32[np.ndarray, " p"], Mask, Int32[np.ndarray, " t"], Mask]:
    stride = truth.shape[1] + max(half_widths[0], 1)
    start, end = first_row * stride, last_row * stride
    places, masks, grid = boundary(prediction, left_out, bits, half_widths, 0, scratch)
    truth_places, truth_masks, truth_grid = boundary(truth, left_out, bits, half_widths, 1, scratch)
    places, masks = core(places, masks, start, end)
    truth_places, truth_masks = core(truth_places, truth_masks, start, end)
    counts = np.zeros((4, 8 * bits.itemsize), np.int64)
    tally(masks, counts[0])
    tally(truth_masks, counts[2])
    counts[1], counts[3] = counts[0], counts[2]
    drop_misses(places, masks, truth_grid, half_widths, stride, counts[1], scratch)
    drop_misses(truth_places, truth_masks, grid, half_widths, stride, counts[3], scratch)
    return counts, places, masks, truth_places, truth_masks


@compiled
@no_type_check
def core(places: Int32[np.ndarray, " n"], masks: Mask, start: int, end: int) -> tuple[Int32[np.ndarray, " m"], Mask]:
    first, last = np.searchsorted(places, start), np.searchsorted(places, end)
    return places[first:last], masks[first:last]


@compiled
@no_type_check
def boundary(
    labels: UInt8[np.ndarray, "h w"],
    left_out: Bool[np.ndarray, "h w"],
    bits: Mask,
    half_widths: Int64[np.ndarray, " rows"],
    which: int,
    scratch: Scratch,
) -> tuple[Int32[np.ndarray, " n"], Mask, Mask]:
    """(places in raster order, their masks, the grid of masks), in the scratch of the prediction (0) or truth (1)."""
    h, w = labels.shape
    reach_y, reach_x = half_widths.size - 1, half_widths[0]
    stride = w + max(reach_x, 1)
    padded, flags, masks = scratch.padded, scratch.flags[: (h * stride + 7) // 8 * 8], scratch.masks[which]
    repeat_edges(labels, padded, stride)
    flag_mixed_windows(padded, flags, h, w, stride)
    if left_out.shape[0] > 0:
        unflag(flags, left_out, stride)
    places = places_of_ones(flags, scratch.places[which], scratch.places_left)
    grid = scratch.grids[which, : (h + 2 * reach_y) * stride + 2 * reach_x]
    grid[:] = 0
    origin = np.uint64(reach_y * stride + reach_x)
    for n in range(places.size):
        here = np.uint64(places[n])  # unsigned, here and below: a signed index is tested for counting from the end
        below = here + np.uint64(stride)
        mask = bits[padded[here]] | bits[padded[here + ONE]] | bits[padded[below]] | bits[padded[below + ONE]]
        masks[n] = mask
        grid[here + origin] = mask
    return places, masks[: places.size], grid


@compiled
@no_type_check
def repeat_edges(labels: UInt8[np.ndarray, "h w"], padded: UInt8[np.ndarray, " n"], stride: int) -> None:
    """The map in rows of `stride`, its last column and row repeated; what lies behind in a row is left as it is."""
    h, w = labels.shape
    flat = labels.ravel()
    for y in range(h):
        source, target = np.uint64(y * w), np.uint64(y * stride)
        for x in range(np.uint64(w)):
            padded[target + x] = flat[source + x]
        padded[y * stride + w] = flat[y * w + w - 1]
    for x in range(w + 1):
        padded[h * stride + x] = padded[(h - 1) * stride + x]


@compiled
@no_type_check
def flag_mixed_windows(
    padded: UInt8[np.ndarray, " n"], flags: UInt8[np.ndarray, " m"], h: int, w: int, stride: int
) -> None:
    """1 where a pixel's 2x2 window holds two labels; one flat loop, which the compiler vectorises."""
    n = h * stride
    right, below, across = padded[1 : n + 1], padded[stride : n + stride], padded[stride + 1 : n + stride + 1]
    for i in range(n):
        flags[i] = (padded[i] != right[i]) | (padded[i] != below[i]) | (padded[i] != across[i])
    for row in range(0, n, stride):
        for i in range(row + w, row + stride):
            flags[i] = 0
    flags[n:] = 0


@compiled
@no_type_check
def unflag(flags: UInt8[np.ndarray, " m"], left_out: Bool[np.ndarray, "h w"], stride: int) -> None:
    h, w = left_out.shape
    for y in range(h):
        for x in range(w):
            if left_out[y, x]:
                flags[y * stride + x] = 0


@compiled
@no_type_check
def places_of_ones(
    flags: UInt8[np.ndarray, " m"], places: Int32[np.ndarray, " m"], mixed: Int32[np.ndarray, " m"]
) -> Int32[np.ndarray, " n"]:
    """In raster order. `mixed` is for the words that hold a one.

    Nothing branches on a flag, for no processor foretells it: what is to be skipped is written, and then written over.
    """
    words = flags.view(np.uint64)
    m, n = np.uint64(0), np.uint64(0)
    for word in range(words.size):
        mixed[m] = word
        m += np.uint64(words[word] != np.uint64(0))
    for k in range(m):
        start = np.uint64(8) * np.uint64(mixed[k])
        for i in range(start, start + np.uint64(8)):
            places[n] = i
            n += np.uint64(flags[i])
    return places[:n]


@compiled
@no_type_check
def drop_misses(
    places: Int32[np.ndarray, " n"],
    masks: Mask,
    grid: Mask,
    half_widths: Int64[np.ndarray, " rows"],
    stride: int,
    counts: Int64[np.ndarray, " bits"],
    scratch: Scratch,
) -> None:
    """Take from the masks, and from the counts, the bits that are nowhere in the disk around their place.

    Row dy of the disk is a window of half width w = half_widths[|dy|]. From the narrowest to the widest, a window is
    the OR of two of half width c <= w <= 2c, which the whole grid was widened to: few passes over the grid for any
    disk. Only the places that still miss a bit are looked up.
    """
    reach_y, reach_x = half_widths.size - 1, half_widths[0]
    n = places.size
    places_left, numbers_left, missing = scratch.places_left, scratch.numbers_left, scratch.missing
    for i in range(n):
        places_left[i], numbers_left[i], missing[i] = places[i], i, masks[i]
    c, wide, turn = 0, grid, 0
    for dy in range(reach_y, -1, -1):
        while half_widths[dy] > 2 * c:
            target = scratch.wide[turn, : grid.size]
            c = widen(target, wide, c, half_widths[dy])
            wide, turn = target, 1 - turn
        middle, shift = reach_y * stride + reach_x, half_widths[dy] - c
        above, below = middle - dy * stride, middle + dy * stride
        n = look_up(n, places_left, numbers_left, missing, wide, above, below, shift)
    for i in range(n):
        masks[numbers_left[i]] &= ~missing[i]
    misses = np.zeros_like(counts)
    tally(missing[:n], misses)
    counts -= misses


@compiled
@no_type_check
def widen(target: Mask, source: Mask, c: int, most: int) -> int:
    """The new half width: from 0 to 1 or 2, then twice the old. Cells nearer to an end than it are left undefined."""
    wider = max(2 * c, min(most, 2))
    n = source.size - 2 * wider
    middle = target[wider : wider + n]
    if c > 0:
        left, right = source[wider - c : wider - c + n], source[wider + c : wider + c + n]
        for i in range(n):
            middle[i] = left[i] | right[i]
    elif wider == 1:
        for i in range(n):
            middle[i] = source[i] | source[i + 1] | source[i + 2]
    else:
        one, two, three, four = source[1 : 1 + n], source[2 : 2 + n], source[3 : 3 + n], source[4 : 4 + n]
        for i in range(n):
            middle[i] = source[i] | one[i] | two[i] | three[i] | four[i]
    return wider


@compiled
@no_type_check
def look_up(
    n: int,
    places: Int32[np.ndarray, " n"],
    numbers: Int32[np.ndarray, " n"],
    missing: Mask,
    wide: Mask,
    above: int,
    below: int,
    shift: int,
) -> int:
    """Clear the bits found in four windows; keep the places that still miss one: how many they are."""
    a, b, c, d = np.uint64(above - shift), np.uint64(above + shift), np.uint64(below - shift), np.uint64(below + shift)
    kept = np.uint64(0)
    for i in range(np.uint64(n)):
        place = np.uint64(places[i])
        mask = missing[i] & ~(wide[place + a] | wide[place + b] | wide[place + c] | wide[place + d])
        places[kept], numbers[kept], missing[kept] = places[i], numbers[i], mask
        kept += np.uint64(mask != 0)
    return np.int64(kept)


@compiled
@no_type_check
def tally(masks: Mask, counts: Int64[np.ndarray, " bits"]) -> None:
    """counts[b] = masks with bit b set."""
    eight = np.uint64(8)
    for first in range(0, counts.size, 16):
        shift = np.uint64(first)
        for start in range(0, masks.size, 255):
            low, high = np.uint64(0), np.uint64(0)
            for i in range(start, min(start + 255, masks.size)):
                mask = np.uint64(masks[i]) >> shift
                low += LANES[mask & BYTE]
                high += LANES[(mask >> eight) & BYTE]
            for bit in range(8):
                counts[first + bit] += np.int64(low & BYTE)
                counts[first + 8 + bit] += np.int64(high & BYTE)
                low >>= eight
                high >>= eight
