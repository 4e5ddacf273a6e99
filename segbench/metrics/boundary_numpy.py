"""The boundary counters in NumPy and SciPy: the integers of `kernels/`, where numba is not to be had.

The map of masks lies flat in a grid with empty margins: `reach_y` rows above and below, at least `reach_x` columns
between one row's end and the next row's start. So every step of the disk is one offset in the grid and never runs into
another row. Places count pixels in rows of `stride`: row y, column x is y * stride + x.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

Masks = np.ndarray  # uint16 or uint64: one bit per class
Maps = UInt8[np.ndarray, "h w"]
HalfWidths = Int64[np.ndarray, " rows"]
Places = Int64[np.ndarray, " _"]


class Boundary(NamedTuple):
    places: Places  # [n]: of the boundary pixels, in raster order
    masks: Masks  # [n]: their classes
    grid: Masks  # flat: the same masks at their places behind the margin, elsewhere 0


def count_in_reach(
    truth: Maps,
    prediction: Maps,
    left_out: Bool[np.ndarray, "_ _"],
    bits: Masks,
    half_widths: HalfWidths,
    first_row: int,
    last_row: int,
) -> tuple[Int64[np.ndarray, "4 bits"], Places, Masks, Places, Masks]:
    """Counts of the rows first_row <= y < last_row of a strip; its other rows are surroundings.

    (n_pred, tp_pred, n_gt, tp_gt) per class bit, then the places of prediction and of truth, each with the bits that
    have a partner in reach. `left_out` is empty or a map of the pixels that are no boundary.
    """
    stride = _stride(truth.shape[1], half_widths)
    found, expected = (_boundary(labels, left_out, bits, half_widths) for labels in (prediction, truth))
    counts, in_reach = [], []
    for one, other in ((found, expected), (expected, found)):
        core = slice(*np.searchsorted(one.places, [first_row * stride, last_row * stride]))
        places, masks = one.places[core], one.masks[core]
        hits = masks & _bits_in_reach(places, other.grid, half_widths, stride)
        counts += [_tally(masks), _tally(hits)]
        in_reach += [places, hits]
    return np.stack(counts), in_reach[0], in_reach[1], in_reach[2], in_reach[3]


def count_matches(
    places: Places,
    masks: Masks,
    truth_places: Places,
    truth_masks: Masks,
    half_widths: HalfWidths,
    size: tuple[int, int],
) -> Int64[np.ndarray, " bits"]:
    """Per class bit, the most one-to-one pairs of pixels in a map of size (h, w)."""
    stride, reach_y, reach_x = _stride(size[1], half_widths), len(half_widths) - 1, int(half_widths[0])
    steps, origin = _disk_steps(half_widths, stride), reach_y * stride + reach_x
    numbers = np.empty((size[0] + 2 * reach_y) * stride + 2 * reach_x, np.int32)
    counts = np.zeros(8 * masks.itemsize, np.int64)
    for bit in range(counts.size):
        one, other = (p[m >> m.dtype.type(bit) & 1 > 0] for p, m in ((places, masks), (truth_places, truth_masks)))
        if one.size and other.size:
            counts[bit] = _maximum_matching(one + origin, other + origin, steps, numbers)
    return counts


def _stride(width: int, half_widths: HalfWidths) -> int:
    return width + max(int(half_widths[0]), 1)


def _boundary(labels: Maps, left_out: Bool[np.ndarray, "_ _"], bits: Masks, half_widths: HalfWidths) -> Boundary:
    h, w = labels.shape
    reach_y, reach_x = len(half_widths) - 1, int(half_widths[0])
    repeated = np.empty((h + 1, w + 1), np.uint8)
    repeated[:h, :w], repeated[h, :w], repeated[:, w] = labels, labels[-1], repeated[:, w - 1]
    right, below, across = repeated[:h, 1:], repeated[1:, :w], repeated[1:, 1:]
    mixed = (labels != right) | (labels != below) | (labels != across)
    if left_out.size:
        mixed &= ~left_out
    pixels = np.flatnonzero(mixed)
    rows = pixels // w
    flat, corner = repeated.reshape(-1), pixels + rows
    masks = bits[flat[corner]] | bits[flat[corner + 1]] | bits[flat[corner + w + 1]] | bits[flat[corner + w + 2]]
    stride = _stride(w, half_widths)
    places = pixels + rows * (stride - w)
    grid = np.zeros((h + 2 * reach_y) * stride + 2 * reach_x, bits.dtype)
    grid[places + reach_y * stride + reach_x] = masks
    return Boundary(places, masks, grid)


def _bits_in_reach(places: Places, grid: Masks, half_widths: HalfWidths, stride: int) -> Masks:
    """The OR of the grid over the disk around each place.

    A copy of the grid is widened by one pixel at a time; at each width the rows of the disk that have it are gathered.
    """
    reach_y, reach_x = len(half_widths) - 1, int(half_widths[0])
    places = places + (reach_y * stride + reach_x)
    found, wide = np.zeros(places.size, grid.dtype), grid.copy()
    middle = slice(reach_x, grid.size - reach_x)
    for half_width in range(reach_x + 1):
        wide[middle] |= grid[reach_x - half_width : grid.size - reach_x - half_width]
        wide[middle] |= grid[reach_x + half_width : grid.size - reach_x + half_width]
        for dy in np.flatnonzero(half_widths == half_width):
            found |= wide.take(places + dy * stride)
            found |= wide.take(places - dy * stride)
    return found


def _tally(masks: Masks) -> Int64[np.ndarray, " bits"]:
    """Number of masks that have each bit."""
    values, counts = np.unique(masks, return_counts=True)
    bits = np.arange(8 * masks.itemsize, dtype=masks.dtype)
    return counts.astype(np.int64) @ ((values[:, None] >> bits) & 1).astype(np.int64)


def _disk_steps(half_widths: HalfWidths, stride: int) -> Int64[np.ndarray, " disk"]:
    """The disk as steps in the flat grid."""
    reach = len(half_widths) - 1
    rows = [dy * stride + np.arange(-half_widths[abs(dy)], half_widths[abs(dy)] + 1) for dy in range(-reach, reach + 1)]
    return np.concatenate(rows)


def _maximum_matching(
    one: Int64[np.ndarray, " l"], other: Int64[np.ndarray, " r"], steps: Int64[np.ndarray, " disk"], numbers: np.ndarray
) -> int:
    # Here, because SciPy's import would be waited for by everyone who has numba.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    numbers[:] = -1
    numbers[other] = np.arange(other.size)
    reached = numbers[one[:, None] + steps]
    edges = reached >= 0
    starts = np.concatenate([[0], np.cumsum(edges.sum(1))])
    graph = csr_array((np.ones(starts[-1], np.int8), reached[edges], starts), shape=(one.size, other.size))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
