"""Label maps of any integer type -> the canonical maps that the counters take.

Canonical is uint8 with the classes 0..K-1 and K for void, K <= 254. K is void in every map that comes in, too, so that
a canonical map stays as it is. What else is void is said by the caller (255 where nothing is said, in truth only).

Truth and prediction differ in what may stand in them. A label of the truth that is neither a class nor void is a
mistake in the data: ValueError. In a prediction it is an error of the model, to be counted against it (`confusion.py`):
it becomes K. No value wraps around on its way into a byte: 256 is not class 0, and -1 is not label 255.
"""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Shaped, UInt8

Labels = Shaped[np.ndarray, "h w"]
Canonical = UInt8[np.ndarray, "h w"]

SHOWN_VALUES = 8


def truth_labels(labels: Labels, num_classes: int, void: Sequence[int] = (255,)) -> Canonical:
    """The canonical map of a truth of any integer type or bool; K and the values of `void` are void.

    A uint8 map that is canonical already is not copied. ValueError: a label that is neither a class nor void, with its
    values and pixels; labels that are not integers; K outside 1..254.
    """
    raw = _unsigned(labels, num_classes)
    if raw.size and raw.max() > num_classes:
        known = sum(np.count_nonzero(labels == value) for value in {*void} - {*range(num_classes + 1)})
        if np.count_nonzero(raw > num_classes) > known:
            raise ValueError(_unknown(labels, num_classes, void))
    return _canonical(raw, num_classes, void)


def prediction_labels(labels: Labels, num_classes: int, void: Sequence[int] = ()) -> Canonical:
    """The canonical map of a prediction of any integer type or bool; all that is not a class, or is in `void`, is K.

    A uint8 map that is canonical already is not copied. ValueError: labels that are not integers; K outside 1..254.
    """
    return _canonical(_unsigned(labels, num_classes), num_classes, void)


def _canonical(raw: Labels, num_classes: int, void: Collection[int]) -> Canonical:
    """From labels as unsigned integers."""
    canonical = raw
    if raw.size and raw.max() > num_classes:
        canonical = np.empty(raw.shape, np.uint8)
        np.minimum(raw, raw.dtype.type(num_classes), out=canonical, casting="unsafe")
    canonical = canonical.astype(np.uint8, copy=False)
    # Void may be one of the classes' numbers, as 0 is in some datasets: then there is no such class.
    hidden = [value for value in void if 0 <= value < num_classes]
    return np.where(np.isin(canonical, hidden), np.uint8(num_classes), canonical) if hidden else canonical


def _unsigned(labels: Labels, num_classes: int) -> Labels:
    """The labels as unsigned integers of the machine's byte order, where negative ones are above every class."""
    if not 1 <= num_classes <= 254:
        raise ValueError(f"{num_classes} classes; label maps hold 1 to 254 and void in a byte")
    if labels.dtype.kind not in "biu":
        raise ValueError(f"labels of type {labels.dtype}; a label map holds integers")
    native = labels.astype(labels.dtype.newbyteorder("="), copy=False)
    if native.dtype == np.int8:  # as a byte, -100 would be 156
        native = native.astype(np.int16)
    return native.view(f"u{native.itemsize}")


def _unknown(labels: Labels, num_classes: int, void: Collection[int]) -> str:
    values, pixels = np.unique(labels, return_counts=True)
    allowed = {*range(num_classes + 1), *void}
    unknown = [(v, n) for v, n in zip(values.tolist(), pixels.tolist(), strict=True) if v not in allowed]
    named = ", ".join(f"{value} ({count} px)" for value, count in unknown[:SHOWN_VALUES])
    more = f" and {len(unknown) - SHOWN_VALUES} more" if len(unknown) > SHOWN_VALUES else ""
    voids = ", ".join(map(str, sorted({num_classes, *void})))
    return f"labels {named}{more} are neither a class (0 to {num_classes - 1}) nor void ({voids})"
