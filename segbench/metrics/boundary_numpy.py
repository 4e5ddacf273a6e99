"""The boundary counters in NumPy and SciPy: the integers of `kernels.py`, where numba is not to be had.

The map of masks lies flat in a grid with empty margins: `reach_y` rows above and below, `reach_x` columns between one
row's end and the next row's start. So every step of the disk is one offset in the grid and never runs into another row.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

Masks = np.ndarray  # uint16 or uint64: one bit per class
Maps = UInt8[np.ndarray, "h w"]
HalfWidths = Int64[np.ndarray, " rows"]


class Boundary(NamedTuple):
    places: Int64[np.ndarray, " n"]  # of the boundary pixels in the grid, in raster order
    masks: Masks  # [n]: their classes
    grid: Masks  # flat: the same masks at their places, elsewhere 0


def distance_counts(truth: Maps, prediction: Maps, bits: Masks, half_widths: HalfWidths) -> Int64[np.ndarray, "4 bits"]:
    """(n_pred, tp_pred, n_gt, tp_gt) per class bit, under the "distance" rule."""
    stride = truth.shape[1] + int(half_widths[0])
    found, expected = _boundary(prediction, bits, half_widths), _boundary(truth, bits, half_widths)
    hits = found.masks & _bits_in_reach(found.places, expected.grid, half_widths, stride)
    hit = expected.masks & _bits_in_reach(expected.places, found.grid, half_widths, stride)
    return np.stack([_tally(masks) for masks in (found.masks, hits, expected.masks, hit)])


def bsds_counts(truth: Maps, prediction: Maps, bits: Masks, half_widths: HalfWidths) -> Int64[np.ndarray, "4 bits"]:
    """(n_pred, k, n_gt, k) per class bit, where k pairs are a maximum one-to-one matching."""
    stride = truth.shape[1] + int(half_widths[0])
    found, expected = _boundary(prediction, bits, half_widths), _boundary(truth, bits, half_widths)
    n_pred, n_gt = _tally(found.masks), _tally(expected.masks)
    pairs = np.zeros_like(n_pred)
    for bit in np.flatnonzero((n_pred > 0) & (n_gt > 0)):
        one, other = (b.places[(b.masks >> b.masks.dtype.type(bit)) & 1 > 0] for b in (found, expected))
        pairs[bit] = _maximum_matching(one, other, _disk_steps(half_widths, stride), found.grid.size)
    return np.stack([n_pred, pairs, n_gt, pairs])


def _boundary(labels: Maps, bits: Masks, half_widths: HalfWidths) -> Boundary:
    h, w = labels.shape
    reach_y, reach_x = len(half_widths) - 1, int(half_widths[0])
    repeated = np.empty((h + 1, w + 1), np.uint8)
    repeated[:h, :w], repeated[h, :w], repeated[:, w] = labels, labels[-1], repeated[:, w - 1]
    right, below, across = repeated[:h, 1:], repeated[1:, :w], repeated[1:, 1:]
    pixels = np.flatnonzero((labels != right) | (labels != below) | (labels != across))
    rows = pixels // w
    flat, corner = repeated.reshape(-1), pixels + rows
    masks = bits[flat[corner]] | bits[flat[corner + 1]] | bits[flat[corner + w + 1]] | bits[flat[corner + w + 2]]
    stride = w + reach_x
    places = pixels + rows * reach_x + reach_y * stride + reach_x
    grid = np.zeros((h + 2 * reach_y) * stride + reach_x, bits.dtype)
    grid[places] = masks
    return Boundary(places, masks, grid)


def _bits_in_reach(places: Int64[np.ndarray, " n"], grid: Masks, half_widths: HalfWidths, stride: int) -> Masks:
    """The OR of the grid over the disk around each place.

    A copy of the grid is widened by one pixel at a time; at each width the rows of the disk that have it are gathered.
    """
    reach_x = int(half_widths[0])
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
    one: Int64[np.ndarray, " l"], other: Int64[np.ndarray, " r"], steps: Int64[np.ndarray, " disk"], grid_size: int
) -> int:
    # Here, because SciPy's import would be waited for by everyone who has numba.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    numbers = np.full(grid_size, -1, np.int32)
    numbers[other] = np.arange(other.size)
    reached = numbers[one[:, None] + steps]
    edges = reached >= 0
    starts = np.concatenate([[0], np.cumsum(edges.sum(1))])
    graph = csr_array((np.ones(starts[-1], np.int8), reached[edges], starts), shape=(one.size, other.size))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
