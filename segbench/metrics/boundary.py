"""Boundary counts of two label maps.

A pixel is a boundary pixel of class c iff its 2x2 window {(y,x), (y,x+1), (y+1,x), (y+1,x+1)} holds c and something
else: the BSDS benchmark's `seg2bdry(labels == c, 'imageSize')`. The window repeats the last row and column, so the
last row compares only right, the last column only down, and the image's frame is no boundary. Boundaries lie half a
pixel up and left of the crack between regions, in both maps alike. Since the rule does not mix classes, one map of bit
masks holds the boundaries of all of them.

Two rules say when a boundary pixel is found, at a distance d with d**2 <= T:

- "bsds": pixels of prediction and truth are paired one to one, as many as can be (Martin, Fowlkes & Malik, PAMI 2004;
  Csurka et al., BMVC 2013; the SegNet authors' script). Departure: the benchmark's `correspondPixels` draws random
  outlier edges and so now and then misses a pair; this is the maximum that it approaches, the same every time.
- "distance": each pixel looks for any pixel of the other map, alone. It is more lenient: name the rule with the number.

Void is every label of K and above. Void policies (`VoidPolicy`) say what the truth's void does:

- "script", the SegNet authors': void is only "not c". An edge to void is a boundary of c, void's own outline is not
  scored, and what is predicted inside void is.
- "copied" (DAVIS, GSCNN): the prediction is given the truth's void before anything else, then as "script".
- "touching": a boundary pixel of either map is left out if the 2x2 window at its place in the truth holds void.
- "band": a boundary pixel of either map is left out if there is void in the truth at d**2 <= T.

A pixel that is left out is neither counted nor there to be found. Void predicted on pixels of a class is an error like
any other, under every policy.

Large maps are counted in strips of rows, each among as many rows of surroundings as the tolerance reaches.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from math import isqrt
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from segbench.metrics import boundary_numpy
from segbench.metrics.boundary_void import VoidPolicy, left_out
from segbench.metrics.compiled import kernels

Rule = Literal["bsds", "distance"]

Maps = UInt8[np.ndarray, "h w"]
Masks = np.ndarray  # uint16 or uint64: one bit per class
HalfWidths = Int64[np.ndarray, " rows"]

NOTHING = np.zeros((0, 0), np.bool_)

STRIP_PIXELS = 1 << 18
"""A strip's rows hold about as many, or, where the tolerance asks for more, has as many rows as its surroundings."""


class Matching(NamedTuple):
    """How boundary pixels are matched. `tolerance_sq` is in squared pixels."""

    rule: Rule
    tolerance_sq: int
    void: VoidPolicy = "script"


def tolerance_squared(size: tuple[int, int], fraction: Fraction) -> int:
    """Largest integer T with sqrt(T) <= fraction of the diagonal of size (h, w), exactly.

    Squared distances are integers, so T decides as the real tolerance would. In floats it does not: at 400x800 and
    0.75 % a distance of just the tolerance is lost.
    """
    height, width = size
    return fraction.numerator**2 * (height**2 + width**2) // fraction.denominator**2


def boundary_counts(
    truth: Maps, prediction: Maps, num_classes: int, rule: Rule, tolerance_sq: int, void: VoidPolicy = "script"
) -> Int64[np.ndarray, "k 4"]:
    """(n_pred, tp_pred, n_gt, tp_gt) of each class: boundary pixels of a map, and those found in the other.

    1 <= K <= 254; labels of K and above are void. `tolerance_sq` is in squared pixels; a distance equal to the
    tolerance counts. Under "bsds" tp_pred == tp_gt, the number of pairs.
    """
    return boundary_counts_of(truth, prediction, num_classes, [Matching(rule, tolerance_sq, void)])[0]


def boundary_counts_of(
    truth: Maps, prediction: Maps, num_classes: int, matchings: Sequence[Matching]
) -> list[Int64[np.ndarray, "k 4"]]:
    """`boundary_counts` of several matchings. Those that differ in their rule alone share all but the pairing."""
    # The compiled kernels trust both: another shape or type would have them read beyond the maps.
    assert truth.shape == prediction.shape, f"truth of shape {truth.shape}, prediction of {prediction.shape}"
    assert truth.dtype == prediction.dtype == np.uint8, f"maps of {truth.dtype} and {prediction.dtype}, not uint8"
    assert 1 <= num_classes <= 254
    assert all(m.tolerance_sq >= 0 and m.rule in get_args(Rule) and m.void in get_args(VoidPolicy) for m in matchings)
    # numba compiles once more for read-only arrays; a copy takes microseconds and is rarely needed.
    truth, prediction = (labels if labels.flags.carray else labels.copy() for labels in (truth, prediction))
    counts: dict[Matching, Int64[np.ndarray, "k 4"]] = {}
    for matching in matchings:
        if matching not in counts:
            _, tolerance_sq, void = matching
            pairs = ("bsds", tolerance_sq, void) in matchings
            both = _counts_by_rule(truth, prediction, num_classes, tolerance_sq, void, pairs)
            counts |= {Matching(rule, tolerance_sq, void): found for rule, found in both.items()}
    return [counts[matching] for matching in matchings]


def _counts_by_rule(
    truth: Maps, prediction: Maps, num_classes: int, tolerance_sq: int, void: VoidPolicy, pairs: bool
) -> dict[Rule, Int64[np.ndarray, "k 4"]]:
    """The counts under "distance" and, if `pairs` are asked for, under "bsds": only what has a partner in reach can
    be paired."""
    found = np.zeros((num_classes, 4), np.int64)
    paired = np.zeros((num_classes, 4), np.int64)
    if truth.size == 0:
        return {"distance": found, "bsds": paired}
    counters = kernels() or boundary_numpy
    half_widths = _half_widths(tolerance_sq, truth.shape)
    if void == "copied":
        prediction = np.where(truth < num_classes, prediction, truth)
    ignored = left_out(truth, num_classes, void, half_widths)
    for classes, bits in _class_groups(truth, prediction, num_classes):
        counts, in_reach = _in_strips(counters, truth, prediction, ignored, bits, half_widths, pairs)
        found[classes] = counts.T[: classes.size]
        if pairs:
            counts[1] = counts[3] = counters.count_matches(*in_reach, half_widths, truth.shape)
            paired[classes] = counts.T[: classes.size]
    return {"distance": found, "bsds": paired} if pairs else {"distance": found}


def _in_strips(
    counters: Any,
    truth: Maps,
    prediction: Maps,
    ignored: Bool[np.ndarray, "h w"] | None,
    bits: Masks,
    half_widths: HalfWidths,
    pairs: bool,
) -> tuple[Int64[np.ndarray, "4 bits"], list[np.ndarray]]:
    """The "distance" counts of a group of classes; if `pairs` are asked for, also what has a partner in reach: places
    and masks of the prediction, places and masks of the truth."""
    height, width = truth.shape
    reach_y, stride = len(half_widths) - 1, width + max(int(half_widths[0]), 1)
    rows = max(STRIP_PIXELS // width, 2 * reach_y, 1)
    counts, in_reach = np.zeros((4, 8 * bits.itemsize), np.int64), []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first = max(top - reach_y, 0)
        strip = slice(first, bottom + reach_y + 1)  # one more, for the windows of the last row in reach
        out = NOTHING if ignored is None else ignored[strip]
        of_strip, *lists = counters.count_in_reach(
            truth[strip], prediction[strip], out, bits, half_widths, top - first, bottom - first
        )
        counts += of_strip
        if pairs:
            places, masks, truth_places, truth_masks = lists  # which the next strip writes over
            above = np.int64(first * stride)
            in_reach.append((places + above, masks.copy(), truth_places + above, truth_masks.copy()))
    return counts, [np.concatenate(lists) for lists in zip(*in_reach, strict=True)]


def disk_half_widths(tolerance_sq: int, size: tuple[int, int]) -> HalfWidths:
    """The disk d**2 <= T as the half width of its rows dy = 0, 1, …; cut to what fits into size (h, w)."""
    height, width = size
    reach = min(isqrt(tolerance_sq), height - 1)
    return np.array([min(isqrt(tolerance_sq - dy * dy), width - 1) for dy in range(reach + 1)], np.int64)


_half_widths = lru_cache(64)(disk_half_widths)


def _class_groups(
    truth: Maps, prediction: Maps, num_classes: int
) -> Iterator[tuple[Int64[np.ndarray, " group"], Masks]]:
    """The classes in groups that fit into one mask, with the bits of each label: all classes up to 16, else those that
    occur, by 16 or by 64."""
    if num_classes <= 16:
        yield _first_classes(num_classes)
        return
    present = np.zeros(256, np.uint8)
    fast = kernels()
    for labels in (truth, prediction):
        if fast is None:
            present |= np.bincount(labels.reshape(-1), minlength=256) > 0
        else:
            fast.mark_present(labels, present)
    classes = np.flatnonzero(present[:num_classes])
    for start in range(0, classes.size, 64):
        yield classes[start : start + 64], _bit_table(classes[start : start + 64])


@cache
def _first_classes(num_classes: int) -> tuple[Int64[np.ndarray, " k"], Masks]:
    return np.arange(num_classes), _bit_table(np.arange(num_classes))


def _bit_table(classes: Int64[np.ndarray, " group"]) -> Masks:
    """Label -> mask with the class's bit. Void and classes outside the group have none, but still break windows."""
    table = np.zeros(256, np.uint16 if classes.size <= 16 else np.uint64)
    table[classes] = table.dtype.type(1) << np.arange(classes.size, dtype=table.dtype)
    return table
