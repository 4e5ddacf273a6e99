"""Confusion counts of two label maps.

`counts[t, p]` is the number of pixels whose truth is t and whose prediction is p, as int64: sums of float32 areas stop
being exact at 2**24. Classes are 0..K-1. Row K is void truth; column K is a prediction of void or out of range.
`region.py` reads scores from them.
"""

import numpy as np
from jaxtyping import Int64, UInt8, UInt16

from segbench.metrics.compiled import kernels

PIXELS_AT_ONCE = 1 << 20
"""In NumPy, whose histogram needs 8 bytes for each."""


def confusion(
    truth: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "k1 k1"]:
    """Exact counts [K+1, K+1] of one pair of maps, 1 <= K <= 254.

    Truth holds 0..K (the readers see to that; a larger label is our bug and fails the assertion). Prediction may hold
    anything: K and above count as void.
    """
    # The compiled kernels trust both: another shape or type would have them read beyond the maps.
    assert truth.shape == prediction.shape, f"truth of shape {truth.shape}, prediction of {prediction.shape}"
    assert truth.dtype == prediction.dtype == np.uint8, f"maps of {truth.dtype} and {prediction.dtype}, not uint8"
    assert 1 <= num_classes <= 254, f"{num_classes} classes do not fit into uint8 labels beside void"
    fast = kernels()
    if fast is not None and num_classes <= 14:  # labels of four bits, and void
        counts, above_void = fast.count_nibbles(_plain(truth), _plain(prediction), num_classes)
        assert above_void == 0, _above_void(truth, num_classes)
        return counts
    assert truth.size == 0 or truth.max() <= num_classes, _above_void(truth, num_classes)
    if fast is not None:
        return fast.count_bytes(_plain(truth), _plain(prediction), num_classes)
    return _confusion_numpy(truth, prediction, num_classes)


def _above_void(truth: UInt8[np.ndarray, "h w"], num_classes: int) -> str:
    return f"truth holds {truth.max()}, above void ({num_classes})"


def _plain(labels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    # numba compiles once more for strided or read-only arrays; a copy takes microseconds and is rarely needed.
    return labels if labels.flags.carray else labels.copy()


def _confusion_numpy(
    truth: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "k1 k1"]:
    side = num_classes + 1
    counts = np.zeros(side * side, np.int64)
    flat, predicted = truth.reshape(-1), prediction.reshape(-1)
    for start in range(0, flat.size, PIXELS_AT_ONCE):
        chunk = slice(start, start + PIXELS_AT_ONCE)
        dtype = np.uint8 if side * side <= 256 else np.uint16
        counts += _histogram(
            flat[chunk] * dtype(side) + np.minimum(predicted[chunk], np.uint8(num_classes)), side * side
        )
    return counts.reshape(side, side)


def _histogram(values: UInt8[np.ndarray, " n"] | UInt16[np.ndarray, " n"], bins: int) -> Int64[np.ndarray, " bins"]:
    """Counts runs of equal values, since labels are coherent: a CamVid row has a run every 20 pixels."""
    changes = np.flatnonzero(values[1:] != values[:-1])
    if changes.size > values.size // 6:  # noise: the runs cost more than they save
        return np.bincount(values, minlength=bins)
    ends = np.append(changes, values.size - 1)
    # bincount adds its weights as float64, exact below 2**53 pixels.
    return np.bincount(values[ends], weights=np.diff(ends, prepend=-1), minlength=bins).astype(np.int64)
