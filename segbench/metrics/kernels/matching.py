"""The most pairs of pixels within the tolerance, each pixel in one pair at most, class by class.

A maximum bipartite matching: greedy in raster order, which on contours leaves one or two pixels in a hundred to mend,
then a shortest augmenting path from each pixel that is left over. The pixels of one side are bits of a bitmap with
margins of the disk's reach, so that a row of the disk is a word or two to look at, in the first-level cache.
"""

from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Int32, Int64, UInt64
from numba import types
from numba.extending import intrinsic

from segbench.metrics.kernels.compiling import Mask, compiled

ZERO, ONE, ALL = np.uint64(0), np.uint64(1), np.uint64(2**64 - 1)
SIX, SIX_BITS = np.uint64(6), np.uint64(63)  # place >> 6 is a place's word, place & 63 its bit


@intrinsic
def lowest_one(_: Any, word: Any) -> Any:
    """The number of a word's lowest one bit: a single instruction, for which numba has no name."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), generate


@intrinsic
def count_ones(_: Any, word: Any) -> Any:
    """How many bits of a word are one; likewise."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


class Right(NamedTuple):
    """One side's pixels of a class, as bits at their places; all zeros between classes but for `first`."""

    every: UInt64[np.ndarray, " words"]
    free: UInt64[np.ndarray, " words"]  # without a partner
    taken: UInt64[np.ndarray, " words"]  # with a partner, and not passed by the search
    first: Int32[np.ndarray, " words"]  # the number of a word's first pixel


@compiled
@no_type_check
def count_matches(
    places: Int64[np.ndarray, " p"],
    masks: Mask,
    truth_places: Int64[np.ndarray, " t"],
    truth_masks: Mask,
    half_widths: Int64[np.ndarray, " rows"],
    size: tuple[int, int],
) -> Int64[np.ndarray, " bits"]:
    """Pairs per class bit. Places are those of `reach.py`, in a map of size (h, w)."""
    reach_y, reach_x = half_widths.size - 1, half_widths[0]
    stride = size[1] + max(reach_x, 1)
    origin = reach_y * stride + reach_x
    words = ((size[0] + 2 * reach_y) * stride + reach_x) // 64 + 1
    empty = np.zeros((3, words), np.uint64)
    side = Right(empty[0], empty[1], empty[2], np.empty(words, np.int32))
    counts = np.zeros(8 * masks.itemsize, np.int64)
    for bit in range(counts.size):
        left, right = places_of(bit, places, masks, origin), places_of(bit, truth_places, truth_masks, origin)
        if left.size > right.size:  # the pixels left over start the failing searches: fewer on the smaller side
            left, right = right, left
        if left.size > 0:
            counts[bit] = maximum_matching(left, right, half_widths, stride, side)
    return counts


@compiled
@no_type_check
def places_of(bit: int, places: Int64[np.ndarray, " n"], masks: Mask, origin: int) -> Int64[np.ndarray, " m"]:
    shift, n = np.uint64(bit), ZERO
    for i in range(masks.size):
        n += (np.uint64(masks[i]) >> shift) & ONE
    chosen = np.empty(np.int64(n) + 1, np.int64)
    if n > ZERO:
        n = ZERO
        for i in range(masks.size):  # without a branch: what is not chosen is written over
            chosen[n] = places[i] + origin
            n += (np.uint64(masks[i]) >> shift) & ONE
    return chosen[:n]


@compiled
@no_type_check
def maximum_matching(
    left: Int64[np.ndarray, " l"],
    right: Int64[np.ndarray, " r"],
    half_widths: Int64[np.ndarray, " rows"],
    stride: int,
    side: Right,
) -> int:
    """Size of a maximum matching of left with right places within the disk."""
    for k in range(right.size - 1, -1, -1):
        put(side.every, right[k])
        put(side.free, right[k])
        side.first[right[k] >> 6] = k
    mate, owner = np.full(left.size, -1, np.int64), np.empty(right.size, np.int32)
    size = 0
    for i in range(left.size):
        place = first_free(left[i], half_widths, stride, side)
        if place >= 0:
            mate[i], owner[number_of(place, side)] = place, i
            size += 1
            remove(side.free, place)
            put(side.taken, place)
    queue, parent = np.empty(left.size, np.int32), np.empty(left.size, np.int32)
    for root in range(left.size):
        if size == right.size:
            break
        if mate[root] < 0:
            size += augment(root, left, half_widths, stride, side, mate, owner, queue, parent)
    for place in right:
        word = place >> 6
        side.every[word] = side.free[word] = side.taken[word] = 0
    return size


@compiled
@no_type_check
def augment(
    root: int,
    left: Int64[np.ndarray, " l"],
    half_widths: Int64[np.ndarray, " rows"],
    stride: int,
    side: Right,
    mate: Int64[np.ndarray, " l"],
    owner: Int32[np.ndarray, " r"],
    queue: Int32[np.ndarray, " l"],
    parent: Int32[np.ndarray, " l"],
) -> int:
    """1 if the left pixel `root` could be matched as well: breadth-first to a free right pixel, then back.

    The right pixels that a search passes are cleared from `taken`. No later augmenting path can use what a failed
    search has passed (Kuhn 1955, the Hungarian tree), so they are put back only after a search that succeeds.
    """
    queue[0], parent[0] = root, 0
    head, tail = 0, 1
    while head < tail:
        place, tail = pass_all(left[queue[head]], half_widths, stride, side, owner, head, queue, parent, tail)
        if place >= 0:
            for k in range(1, tail):
                put(side.taken, mate[queue[k]])
            remove(side.free, place)
            put(side.taken, place)
            while place >= 0:  # until the root, which had no mate
                i = queue[head]
                owner[number_of(place, side)] = i
                mate[i], place = place, mate[i]
                head = parent[head]
            return 1
        head += 1
    return 0


@compiled
@no_type_check
def first_free(place: int, half_widths: Int64[np.ndarray, " rows"], stride: int, side: Right) -> int:
    """The first free place, in raster order, in the disk around a place; -1 if there is none."""
    for dy in range(1 - half_widths.size, half_widths.size):
        w = half_widths[abs(dy)]
        low, high = np.uint64(place + dy * stride - w), np.uint64(place + dy * stride + w)
        mask = ALL << (low & SIX_BITS)
        for word in range(low >> SIX, (high >> SIX) + ONE):
            if word == high >> SIX:
                mask &= ALL >> (SIX_BITS - (high & SIX_BITS))
            bits = side.free[word] & mask
            if bits != ZERO:
                return np.int64((word << SIX) + lowest_one(bits))
            mask = ALL
    return -1


@compiled
@no_type_check
def pass_all(
    place: int,
    half_widths: Int64[np.ndarray, " rows"],
    stride: int,
    side: Right,
    owner: Int32[np.ndarray, " r"],
    head: int,
    queue: Int32[np.ndarray, " l"],
    parent: Int32[np.ndarray, " l"],
    tail: int,
) -> tuple[int, int]:
    """(a free place in the disk, or -1; the new tail of the queue, where the owners of all places passed now wait)."""
    for dy in range(1 - half_widths.size, half_widths.size):
        w = half_widths[abs(dy)]
        low, high = np.uint64(place + dy * stride - w), np.uint64(place + dy * stride + w)
        mask = ALL << (low & SIX_BITS)
        for word in range(low >> SIX, (high >> SIX) + ONE):
            if word == high >> SIX:
                mask &= ALL >> (SIX_BITS - (high & SIX_BITS))
            bits = side.free[word] & mask
            if bits != ZERO:
                return np.int64((word << SIX) + lowest_one(bits)), tail
            bits = side.taken[word] & mask
            side.taken[word] ^= bits
            while bits != ZERO:
                queue[tail], parent[tail] = owner[number_of((word << SIX) + lowest_one(bits), side)], head
                tail += 1
                bits &= bits - ONE
            mask = ALL
    return -1, tail


@compiled
@no_type_check
def number_of(place: int, side: Right) -> int:
    """Of a right pixel, in raster order."""
    word, bit = np.uint64(place) >> SIX, np.uint64(place) & SIX_BITS
    return side.first[word] + np.int64(count_ones(side.every[word] & ((ONE << bit) - ONE)))


@compiled
@no_type_check
def put(bitmap: UInt64[np.ndarray, " words"], place: int) -> None:
    bitmap[place >> 6] |= ONE << np.uint64(place & 63)


@compiled
@no_type_check
def remove(bitmap: UInt64[np.ndarray, " words"], place: int) -> None:
    bitmap[place >> 6] &= ~(ONE << np.uint64(place & 63))
