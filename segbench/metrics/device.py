"""The counters on torch tensors: a batch of label maps where the network left them, counted without leaving the device.

The integers are those of `confusion.py`, `boundary.py` (the "distance" rule; a one-to-one matching needs the host) and
`boundary_iou.py`, whose docstrings define them. There is no host synchronisation on the way, so the counts of a batch
queue up behind its forward pass: nothing reads a value or makes a shape of one (`item`, `nonzero`, a boolean index,
`bincount`), nothing is uploaded.

All is integer arithmetic, exact and the same every time: `scatter_add_` adds atomically on a GPU, in any order, which
for integers is no matter, and torch's deterministic mode admits it. Boundaries are maps of bit masks, one bit a
class, in signed integers, for torch shifts no others; the sign bit stays unused. More than 63 classes take several
rounds.

Images go through in chunks of at most PIXELS_AT_ONCE, larger ones one by one. A chunk takes up to 21 bytes a pixel for
confusion and bands; for boundaries 42 up to 15 classes, 67 up to 31 and 131 above.
"""

from collections.abc import Callable, Iterator
from typing import get_args

import torch
from jaxtyping import Bool, Int64, Integer, UInt8
from torch import Tensor

from segbench.metrics.boundary import VoidPolicy, disk_half_widths

PIXELS_AT_ONCE = 1 << 21
"""12 images of 360x480, one of 1024x2048. 42 bytes for each are fewer than a float layer of eleven channels takes."""

MOST_BITS = 63

Labels = UInt8[Tensor, "n h w"]
Masks = Integer[Tensor, "n h w"]  # int16, int32 or int64: one bit per class


def confusion(truth: Labels, prediction: Labels, num_classes: int) -> Int64[Tensor, "n k1 k1"]:
    """Counts [n, K+1, K+1] as of `confusion.confusion`: rows truth, columns prediction, the last of each void.

    Truth holds 0..K; a larger label is our bug, which the device reports as an index out of bounds.
    """
    side = num_classes + 1
    counts = [
        _histogram(t.long() * side + p.clamp(max=num_classes), side * side) for t, p in _chunks(truth, prediction)
    ]
    return torch.cat(counts).reshape(-1, side, side)


def distance_counts(
    truth: Labels, prediction: Labels, num_classes: int, tolerance_sq: int, void: VoidPolicy = "script"
) -> Int64[Tensor, "n k 4"]:
    """(n_pred, tp_pred, n_gt, tp_gt) of each class as of `boundary.boundary_counts` under "distance".

    `tolerance_sq` is in squared pixels.
    """
    assert void in get_args(VoidPolicy), void
    half_widths = disk_half_widths(tolerance_sq, (truth.shape[1], truth.shape[2])).tolist()
    counts = [_distance_counts(t, p, num_classes, half_widths, void) for t, p in _chunks(truth, prediction)]
    return torch.cat(counts)


def band_counts(truth: Labels, prediction: Labels, num_classes: int, width_px: int) -> Int64[Tensor, "n k 3"]:
    """(n_pred, n_gt, n_both) of each class as of `boundary_iou.band_counts`."""
    return torch.cat([_band_counts(t, p, num_classes, width_px) for t, p in _chunks(truth, prediction)])


def _chunks(truth: Labels, prediction: Labels) -> Iterator[tuple[Labels, Labels]]:
    _, height, width = truth.shape
    images = max(1, PIXELS_AT_ONCE // (height * width))
    return zip(truth.split(images), prediction.split(images), strict=True)


def _histogram(values: Integer[Tensor, "n h w"], bins: int) -> Int64[Tensor, "n bins"]:
    """How often each of 0..bins-1 occurs in each image."""
    index = values.flatten(1).long()
    ones = torch.ones((), dtype=torch.int64, device=index.device).expand_as(index)
    return torch.zeros((len(index), bins), dtype=torch.int64, device=index.device).scatter_add_(1, index, ones)


def _distance_counts(
    truth: Labels, prediction: Labels, num_classes: int, half_widths: list[int], void: VoidPolicy
) -> Int64[Tensor, "n k 4"]:
    if void == "copied":
        prediction = torch.where(truth >= num_classes, truth, prediction)
    left_out = _left_out(truth, num_classes, half_widths, void)
    counts = []
    for first in range(0, num_classes, MOST_BITS):
        size = min(MOST_BITS, num_classes - first)
        found, expected = (_boundary(labels, first, size) for labels in (prediction, truth))
        if left_out is not None:
            found.masked_fill_(left_out, 0)
            expected.masked_fill_(left_out, 0)
        hits, hit = found & _spread(expected, half_widths), expected & _spread(found, half_widths)
        counts.append(_tally(torch.stack([found, hits, expected, hit], 1), size))
    return torch.cat(counts, 1)


def _left_out(
    truth: Labels, num_classes: int, half_widths: list[int], void: VoidPolicy
) -> Bool[Tensor, "n h w"] | None:
    """Where the policy counts no boundary, of either map."""
    if void == "touching":
        here, right, below, across = _windows(truth >= num_classes)
        return here | right | below | across
    return _spread(truth >= num_classes, half_widths) if void == "band" else None


def _boundary(labels: Labels, first: int, size: int) -> Masks:
    """The boundary pixels of the classes first..first+size-1, bit 0 being the first's."""
    dtype = torch.int16 if size <= 15 else torch.int32 if size <= 31 else torch.int64
    here, right, below, across = _windows(labels)
    mixed = (here != right) | (here != below) | (here != across)
    places = labels.to(dtype) - first
    bits = torch.where((places >= 0) & (places < size), 1 << places.clamp(0, size - 1), 0)
    here, right, below, across = _windows(bits)
    return (here | right | below | across).masked_fill_(~mixed, 0)


def _windows(maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each pixel's 2x2 window, the last row and column repeated: here, right, below, across."""
    maps = torch.cat([maps, maps[:, -1:]], 1)
    maps = torch.cat([maps, maps[:, :, -1:]], 2)
    return maps[:, :-1, :-1], maps[:, :-1, 1:], maps[:, 1:, :-1], maps[:, 1:, 1:]


def _spread(maps: Tensor, half_widths: list[int]) -> Tensor:
    """The OR of each pixel's disk. A copy is widened by one pixel at a time; the rows that have its width take it."""
    found, wide = torch.zeros_like(maps), maps.clone()
    for half_width in range(half_widths[0] + 1):
        _or_shifted(wide, maps, 2, half_width)
        for dy in (dy for dy, width in enumerate(half_widths) if width == half_width):
            _or_shifted(found, wide, 1, dy)
    return found


def _or_shifted(into: Tensor, maps: Tensor, dim: int, shift: int) -> None:
    """OR `maps` into `into`, moved by `shift` pixels forwards and backwards."""
    length = maps.shape[dim] - shift
    # Not `into[...] |= ...`, which writes the result a second time.
    into.narrow(dim, shift, length).bitwise_or_(maps.narrow(dim, 0, length))
    into.narrow(dim, 0, length).bitwise_or_(maps.narrow(dim, shift, length))


def _tally(masks: Integer[Tensor, "n maps h w"], size: int) -> Int64[Tensor, "n size maps"]:
    """How many pixels of each map have each bit."""
    # As int32, which a map of 2**31 pixels would need to overflow; the sum makes a copy of its input in this type.
    counts = [((masks >> bit) & 1).sum((2, 3), dtype=torch.int32) for bit in range(size)]
    return torch.stack(counts, 1).long()


def _band_counts(truth: Labels, prediction: Labels, num_classes: int, width_px: int) -> Int64[Tensor, "n k 3"]:
    in_truth, in_prediction = (_band_map(labels, num_classes, width_px) for labels in (truth, prediction))
    pairs = confusion(in_truth, in_prediction, num_classes)
    return torch.stack([pairs.sum(1), pairs.sum(2), pairs.diagonal(dim1=1, dim2=2)], 2)[:, :num_classes]


def _band_map(labels: Labels, num_classes: int, width_px: int) -> Labels:
    """The label where the window of 2d+1 by 2d+1 pixels is not constant or leaves the image; elsewhere void."""
    _, height, width = labels.shape
    side = 2 * width_px + 1
    band = labels.clone()
    if side <= min(height, width):
        constant = _over_windows(torch.minimum, labels, side) == _over_windows(torch.maximum, labels, side)
        inside = band[:, width_px : height - width_px, width_px : width - width_px]
        inside.masked_fill_(constant, num_classes)
    return band


def _over_windows(choose: Callable[[Tensor, Tensor], Tensor], labels: Labels, side: int) -> UInt8[Tensor, "n y x"]:
    """The least or the largest label of each window that lies inside. Windows double until they have the side."""
    for dim in (1, 2):
        covered = 1
        while covered < side:
            step = min(covered, side - covered)
            length = labels.shape[dim] - step
            labels = choose(labels.narrow(dim, 0, length), labels.narrow(dim, step, length))
            covered += step
    return labels
