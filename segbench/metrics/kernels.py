"""The counters' inner loops, compiled by numba: what `confusion.py` and `boundary.py` define, only faster.

The kernels stand in a file of their own because importing it imports numba (a third of a second), which `segbench`
does at the first count. Each is compiled at its first call and kept on disk: in `__pycache__` here or, where that
cannot be written, in NUMBA_CACHE_DIR or the user's cache folder.

Their annotations are for readers: `no_type_check` keeps the tests' jaxtyping hook from wrapping a kernel, as numba
must be given the plain function. Two traps of numba shape the arithmetic: an operation of uint64 with int64 gives
float64, and each array slice costs about 10 ns of reference counting, so that loops slice strips, not rows.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from jaxtyping import Int32, Int64, UInt8, UInt64
from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """numba's nopython compilation; it lets go of the GIL, so that threads may count images side by side."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder can be written: compile in each process
        return njit(nogil=True)(function)


Mask = np.ndarray  # uint16 or uint64: one bit per class

BYTE = np.uint64(255)
# Bit b of a byte as a 1 in byte lane b: adding entries counts eight classes at once, up to 255 times.
LANES = np.array([sum(1 << 8 * bit for bit in range(8) if byte >> bit & 1) for byte in range(256)], np.uint64)
STRIP_BYTES = 1 << 17  # of a mask map; a strip and its widened copy fit into a core's second-level cache


@compiled
@no_type_check
def repeats_a_byte(word: int) -> bool:
    return word == ((word >> np.uint64(8)) | (word << np.uint64(56)))


@compiled
@no_type_check
def count_pairs(
    truth: UInt8[np.ndarray, " n"],
    truth_words: UInt64[np.ndarray, " n//8"],
    prediction: UInt8[np.ndarray, " n"],
    prediction_words: UInt64[np.ndarray, " n//8"],
    num_classes: int,
) -> Int64[np.ndarray, "k1 k1"]:
    """Confusion counts. 32 pixels of one pair are one addition, else 8, else pixel by pixel.

    A plain loop is slow because labels are coherent: each increment waits for the last one of the same cell. Hence
    two tables, too, which neighbours use in turn.
    """
    table, other = np.zeros((num_classes + 1, 256), np.int64), np.zeros((num_classes + 1, 256), np.int64)
    n = truth_words.size
    for start in range(0, n - 3, 4):
        t, p = truth_words[start], prediction_words[start]
        differ = np.uint64(0)
        for i in range(start + 1, start + 4):
            differ |= (truth_words[i] ^ t) | (prediction_words[i] ^ p)
        if differ == np.uint64(0) and repeats_a_byte(t) and repeats_a_byte(p):
            table[t & BYTE, p & BYTE] += 32
        else:
            for i in range(start, start + 4):
                count_word(truth_words[i], prediction_words[i], table, other)
    for i in range(n // 4 * 32, truth.size):
        table[truth[i], prediction[i]] += 1
    table += other
    counts = table[:, : num_classes + 1].copy()
    for t in range(num_classes + 1):
        counts[t, num_classes] = table[t, num_classes:].sum()
    return counts


@compiled
@no_type_check
def count_word(t: int, p: int, table: Int64[np.ndarray, "k1 256"], other: Int64[np.ndarray, "k1 256"]) -> None:
    if repeats_a_byte(t) and repeats_a_byte(p):
        other[t & BYTE, p & BYTE] += 8
        return
    for _ in range(4):
        table[t & BYTE, p & BYTE] += 1
        other[(t >> np.uint64(8)) & BYTE, (p >> np.uint64(8)) & BYTE] += 1
        t >>= np.uint64(16)
        p >>= np.uint64(16)


@compiled
@no_type_check
def mark_present(labels: UInt8[np.ndarray, "h w"], present: UInt8[np.ndarray, "256"]) -> None:
    flat = labels.ravel()
    for i in range(flat.size):
        present[flat[i]] = 1


@compiled
@no_type_check
def flag_mixed_windows(labels: UInt8[np.ndarray, "h w"], flags: UInt8[np.ndarray, " m"]) -> None:
    """flags = 1 where the pixel's 2x2 window is not constant; written as flat loops that the compiler vectorises."""
    h, w = labels.shape
    flat = labels.ravel()
    n = max((h - 1) * w - 1, 0)
    here, right, below, across = flat[:n], flat[1 : n + 1], flat[w : w + n], flat[w + 1 : w + 1 + n]
    for i in range(n):
        flags[i] = (here[i] != right[i]) | (here[i] != below[i]) | (here[i] != across[i])
    # The flat loop ran past the right edge into the next row: the last column compares only down.
    for i in range(w - 1, (h - 1) * w, w):
        flags[i] = flat[i] != flat[i + w]
    for i in range((h - 1) * w, h * w - 1):
        flags[i] = flat[i] != flat[i + 1]


@compiled
@no_type_check
def places_of_ones(flags: UInt8[np.ndarray, " m"]) -> Int64[np.ndarray, " n"]:
    """Skips eight zeros at a time; in between it writes every place and keeps the ones, which needs no branch."""
    places = np.empty(flags.sum() + 1, np.int64)
    words = flags.view(np.uint64)
    n = np.uint64(0)  # unsigned, here and in `gather`: a signed index is tested for counting from the end
    for word in range(words.size):
        if words[word] != np.uint64(0):
            for i in range(8 * word, 8 * word + 8):
                places[n] = i
                n += np.uint64(flags[i])
    return places[:n]


@compiled
@no_type_check
def boundary_masks(
    labels: UInt8[np.ndarray, "h w"], bits: Mask, reach_y: int, reach_x: int
) -> tuple[Int64[np.ndarray, " n"], Mask, Mask]:
    """(places, masks, grid): the boundary pixels' places in the padded grid, their class bits, and the grid of bits."""
    h, w = labels.shape
    flat = labels.ravel()
    flags = np.zeros((h * w + 7) // 8 * 8, np.uint8)
    flag_mixed_windows(labels, flags)
    places = places_of_ones(flags)
    masks = np.empty(places.size, bits.dtype)
    stride = w + reach_x
    grid = np.zeros((h + 2 * reach_y) * stride + reach_x, bits.dtype)
    y = 0
    for n in range(places.size):
        i = places[n]
        while i >= (y + 1) * w:  # a division would cost more than all the rest
            y += 1
        right = 1 if i + 1 < (y + 1) * w else 0
        below = w if y + 1 < h else 0
        masks[n] = bits[flat[i]] | bits[flat[i + right]] | bits[flat[i + below]] | bits[flat[i + below + right]]
        places[n] = i + y * reach_x + reach_y * stride + reach_x
        grid[places[n]] = masks[n]
    return places, masks, grid


@compiled
@no_type_check
def bits_in_reach(
    places: Int64[np.ndarray, " n"], grid: Mask, half_widths: Int64[np.ndarray, " rows"], height: int, stride: int
) -> Mask:
    """The OR of the grid over the disk around each place.

    The disk is rows of half width `half_widths[|dy|]`. In strips of the map, a copy of the grid is widened by one
    pixel at a time; at each width the rows of the disk that have it are gathered at the places alone.
    """
    reach_y, reach_x = half_widths.size - 1, half_widths[0]
    found = np.zeros(places.size, grid.dtype)
    rows = max(4 * reach_y, STRIP_BYTES // (stride * grid.itemsize), 1)
    last = 0
    for top in range(0, height, rows):
        start = top * stride
        bottom = min(top + rows, height)
        strip = grid[start : (bottom + 2 * reach_y) * stride + reach_x]
        wide = strip.copy()
        first = last
        while last < places.size and places[last] < (bottom + reach_y) * stride + reach_x:
            last += 1
        for half_width in range(reach_x + 1):
            if half_width > 0:
                widen(wide, strip, half_width, reach_x)
            for dy in range(reach_y + 1):
                if half_widths[dy] == half_width:
                    gather(found[first:last], places[first:last], wide, dy * stride, start)
    return found


@compiled
@no_type_check
def widen(wide: Mask, strip: Mask, half_width: int, reach_x: int) -> None:
    n = wide.size - 2 * reach_x
    middle = wide[reach_x : reach_x + n]
    left = strip[reach_x - half_width : reach_x - half_width + n]
    right = strip[reach_x + half_width : reach_x + half_width + n]
    for i in range(n):
        middle[i] |= left[i] | right[i]


@compiled
@no_type_check
def gather(found: Mask, places: Int64[np.ndarray, " n"], wide: Mask, step: int, start: int) -> None:
    above, below = np.uint64(start + step), np.uint64(step) - np.uint64(start)
    for i in range(places.size):
        place = np.uint64(places[i])
        found[i] |= wide[place - above] | wide[place + below]


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


@compiled
@no_type_check
def distance_counts(
    truth: UInt8[np.ndarray, "h w"],
    prediction: UInt8[np.ndarray, "h w"],
    bits: Mask,
    half_widths: Int64[np.ndarray, " rows"],
) -> Int64[np.ndarray, "4 bits"]:
    """(n_pred, tp_pred, n_gt, tp_gt) per class bit, under the "distance" rule."""
    reach_y, reach_x = half_widths.size - 1, half_widths[0]
    height, stride = truth.shape[0], truth.shape[1] + reach_x
    places, masks, grid = boundary_masks(prediction, bits, reach_y, reach_x)
    truth_places, truth_masks, truth_grid = boundary_masks(truth, bits, reach_y, reach_x)
    counts = np.zeros((4, 8 * bits.itemsize), np.int64)
    tally(masks, counts[0])
    tally(masks & bits_in_reach(places, truth_grid, half_widths, height, stride), counts[1])
    tally(truth_masks, counts[2])
    tally(truth_masks & bits_in_reach(truth_places, grid, half_widths, height, stride), counts[3])
    return counts


@compiled
@no_type_check
def bsds_counts(
    truth: UInt8[np.ndarray, "h w"],
    prediction: UInt8[np.ndarray, "h w"],
    bits: Mask,
    half_widths: Int64[np.ndarray, " rows"],
) -> Int64[np.ndarray, "4 bits"]:
    """(n_pred, k, n_gt, k) per class bit, where k pairs are a maximum one-to-one matching."""
    reach_y, reach_x = half_widths.size - 1, half_widths[0]
    stride = truth.shape[1] + reach_x
    places, masks, grid = boundary_masks(prediction, bits, reach_y, reach_x)
    truth_places, truth_masks, _ = boundary_masks(truth, bits, reach_y, reach_x)
    counts = np.zeros((4, 8 * bits.itemsize), np.int64)
    tally(masks, counts[0])
    tally(truth_masks, counts[2])
    steps = disk_steps(half_widths, stride)
    numbers = np.full(grid.size, -1, np.int32)
    for bit in range(counts.shape[1]):
        if counts[0, bit] == 0 or counts[2, bit] == 0:
            continue
        one = places_of(bit, places, masks, counts[0, bit])
        other = places_of(bit, truth_places, truth_masks, counts[2, bit])
        if one.size > other.size:  # the pixels left over start the failing searches: fewer on the smaller side
            one, other = other, one
        counts[1, bit] = counts[3, bit] = maximum_matching(one, other, steps, numbers)
    return counts


@compiled
@no_type_check
def disk_steps(half_widths: Int64[np.ndarray, " rows"], stride: int) -> Int64[np.ndarray, " disk"]:
    """The disk as steps in the flat grid, in raster order: a greedy matching in that order is nearly maximum."""
    reach_y = half_widths.size - 1
    steps = np.empty(2 * (2 * half_widths + 1).sum() - (2 * half_widths[0] + 1), np.int64)
    n = 0
    for dy in range(-reach_y, reach_y + 1):
        half_width = half_widths[abs(dy)]
        for dx in range(-half_width, half_width + 1):
            steps[n] = dy * stride + dx
            n += 1
    return steps


@compiled
@no_type_check
def places_of(bit: int, places: Int64[np.ndarray, " n"], masks: Mask, count: int) -> Int64[np.ndarray, " count"]:
    chosen = np.empty(count, np.int64)
    n = 0
    for i in range(places.size):
        if (np.uint64(masks[i]) >> np.uint64(bit)) & np.uint64(1):
            chosen[n] = places[i]
            n += 1
    return chosen


@compiled
@no_type_check
def maximum_matching(
    left: Int64[np.ndarray, " l"],
    right: Int64[np.ndarray, " r"],
    steps: Int64[np.ndarray, " disk"],
    numbers: Int32[np.ndarray, " grid"],
) -> int:
    """Size of a maximum matching of left with right pixels within the disk.

    Greedy first, then the shortest augmenting path from each left pixel that is left over. `numbers` is -1 throughout
    at entry and exit; meanwhile it holds the right pixels' numbers.
    """
    for j in range(right.size):
        numbers[right[j]] = j
    mate, owner = np.full(left.size, -1, np.int32), np.full(right.size, -1, np.int32)
    size = match_greedily(left, steps, numbers, mate, owner)
    seen, via = np.full(right.size, -1, np.int32), np.empty(right.size, np.int32)
    queue = np.empty(left.size, np.int32)
    for root in range(left.size):
        if size == right.size:
            break
        if mate[root] >= 0:
            continue
        free, visited = search(root, left, steps, numbers, owner, seen, via, queue)
        if free >= 0:
            flip(root, free, via, mate, owner)
            size += 1
        else:
            # No later augmenting path can use what a failed search has seen (Kuhn 1955, the Hungarian tree).
            for i in range(1, visited):
                numbers[right[mate[queue[i]]]] = -1
    numbers[right] = -1
    return size


@compiled
@no_type_check
def match_greedily(
    left: Int64[np.ndarray, " l"],
    steps: Int64[np.ndarray, " disk"],
    numbers: Int32[np.ndarray, " grid"],
    mate: Int32[np.ndarray, " l"],
    owner: Int32[np.ndarray, " r"],
) -> int:
    size = 0
    for i in range(left.size):
        for step in steps:
            j = numbers[left[i] + step]
            if j >= 0 and owner[j] < 0:
                mate[i], owner[j] = j, i
                size += 1
                break
    return size


@compiled
@no_type_check
def search(
    root: int,
    left: Int64[np.ndarray, " l"],
    steps: Int64[np.ndarray, " disk"],
    numbers: Int32[np.ndarray, " grid"],
    owner: Int32[np.ndarray, " r"],
    seen: Int32[np.ndarray, " r"],
    via: Int32[np.ndarray, " r"],
    queue: Int32[np.ndarray, " l"],
) -> tuple[int, int]:
    """Breadth-first: (free right pixel at the end of an alternating path, or -1; left pixels put into the queue)."""
    queue[0] = root
    head, tail = 0, 1
    while head < tail:
        i = queue[head]
        head += 1
        for step in steps:
            j = numbers[left[i] + step]
            if j < 0 or seen[j] == root:
                continue
            seen[j], via[j] = root, i
            if owner[j] < 0:
                return j, tail
            queue[tail] = owner[j]
            tail += 1
    return -1, tail


@compiled
@no_type_check
def flip(
    root: int,
    free: int,
    via: Int32[np.ndarray, " r"],
    mate: Int32[np.ndarray, " l"],
    owner: Int32[np.ndarray, " r"],
) -> None:
    """Take the other edges of the path from root to free."""
    j = free
    while True:
        i = via[j]
        before = mate[i]
        mate[i], owner[j] = j, i
        if i == root:
            return
        j = before
