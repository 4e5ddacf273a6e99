"""Counting a split while the network predicts it: the same integers wherever they are counted.

On a GPU a batch is counted where it lies (`metrics/device.py`). Counts and label maps, a byte a pixel, come back by
copies that nobody waits for; threads take them up when they have arrived and count what needs the host, the one-to-one
matching of "bsds" (the compiled counters let go of Python's lock). Meanwhile the GPU is at the next batch.

Label maps on the host, of a CPU or a dense CRF, are counted by the same threads with the host's counters, which are
many times as fast there as those on tensors.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from segbench.engine.predict import PREDICT_BATCH, Predicted, upload
from segbench.metrics import confusion, device
from segbench.metrics.boundary import boundary_counts_of
from segbench.scoring.count import ImageCounts, count_canonical, matchings
from segbench.scoring.spec import ScoreSpec, band_width

BATCHES_IN_FLIGHT = 2
"""One that the device is at and one that the threads are at: what bounds the memory."""


class Counted(NamedTuple):
    """One frame: its counts, class ids, and how unsure the network was where that was asked for."""

    name: str
    counts: ImageCounts
    labels: UInt8[np.ndarray, "h w"]
    uncertainty: Float[np.ndarray, "h w"] | None


class BatchCounts(NamedTuple):
    """What can be counted as tensors of `ImageCounts`: all but the matchings of "bsds"."""

    confusion: Int64[Tensor, "n k1 k1"]
    boundary: dict[str, Int64[Tensor, "n k 4"]]
    bands: dict[str, Int64[Tensor, "n k 3"]]


class Arriving(NamedTuple):
    """A batch that lies in host memory once `ready` has passed; `counts` is None where the host is to count it all."""

    batch: Predicted
    counts: BatchCounts | None
    ready: torch.cuda.Event | None


def count_all(predicted: Iterable[Predicted], num_classes: int, spec: ScoreSpec) -> Iterator[Counted]:
    """Every frame in order, a batch later than it was predicted; BATCHES_IN_FLIGHT of them are in memory."""
    pool = ThreadPoolExecutor(PREDICT_BATCH, thread_name_prefix="counting")
    waiting: deque[list[Future[Counted]]] = deque()
    try:
        for batch in predicted:
            arriving = _send(batch, num_classes, spec)
            images = range(len(batch.names))
            waiting.append([pool.submit(_finish, arriving, i, num_classes, spec) for i in images])
            if len(waiting) == BATCHES_IN_FLIGHT:
                yield from (image.result() for image in waiting.popleft())
        while waiting:
            yield from (image.result() for image in waiting.popleft())
    finally:  # also when the reader stops early, or Ctrl-C: images that have begun are waited for
        pool.shutdown(cancel_futures=True)


def count_batch(
    truth: UInt8[Tensor, "n h w"], labels: UInt8[Tensor, "n h w"], num_classes: int, spec: ScoreSpec
) -> BatchCounts:
    """What `spec` asks but for "bsds", on the device that holds both maps and without waiting for it."""
    boundary, bands = {}, {}
    if spec.boundary:
        size = (truth.shape[1], truth.shape[2])
        boundary = {
            key: device.distance_counts(truth, labels, num_classes, asked.tolerance_sq, asked.void)
            for key, asked in matchings(spec.boundary, size).items()
            if asked.rule == "distance"
        }
        bands = {
            width: device.band_counts(truth, labels, num_classes, band_width(width, size))
            for width in spec.boundary.iou
        }
    return BatchCounts(device.confusion(truth, labels, num_classes), boundary, bands)


def confusion_sum(batch: Predicted, num_classes: int) -> Int64[Tensor, "k1 k1"]:
    """The confusion counts of the whole batch, on its device and without waiting for it."""
    if counted_there(batch.labels):
        return device.confusion(upload(batch.truth, batch.labels.device), batch.labels, num_classes).sum(0)
    pairs = zip(batch.truth.numpy(), batch.labels.numpy(), strict=True)
    return torch.from_numpy(sum(confusion.confusion(truth, labels, num_classes) for truth, labels in pairs))


def counted_there(labels: UInt8[Tensor, "n h w"]) -> bool:
    """Whether label maps are counted as tensors, where they lie."""
    return labels.is_cuda


def _send(batch: Predicted, num_classes: int, spec: ScoreSpec) -> Arriving:
    """Queue up, on the batch's device, its counting and the copies to the host."""
    counts, ready, there = None, None, batch.labels.device
    if counted_there(batch.labels):
        found = count_batch(upload(batch.truth, there), batch.labels, num_classes, spec)
        counts = BatchCounts(
            _fetch(found.confusion),
            {key: _fetch(boundary) for key, boundary in found.boundary.items()},
            {key: _fetch(band) for key, band in found.bands.items()},
        )
    unsure = None if batch.uncertainty is None else _fetch(batch.uncertainty)
    arriving = batch._replace(labels=_fetch(batch.labels), uncertainty=unsure)
    if there.type == "cuda":
        ready = torch.cuda.Event(blocking=True)  # who waits for it sleeps
        ready.record(torch.cuda.current_stream(there))
    return Arriving(arriving, counts, ready)


def _fetch(there: Tensor) -> Tensor:
    """A copy in pinned host memory that the device will fill; what is on the host stays as it is."""
    return there.to("cpu", non_blocking=True)


def _finish(arriving: Arriving, i: int, num_classes: int, spec: ScoreSpec) -> Counted:
    """Image `i` of the batch, when it has arrived: count what is still to be counted."""
    batch, there, ready = arriving
    if ready:
        ready.synchronize()
    truth, labels = batch.truth[i].numpy(), batch.labels[i].numpy()
    counts = (
        count_canonical(truth, labels, num_classes, spec)
        if there is None
        else _completed(there, i, truth, labels, spec)
    )
    return Counted(batch.names[i], counts, labels, None if batch.uncertainty is None else batch.uncertainty[i].numpy())


def _completed(
    there: BatchCounts, i: int, truth: UInt8[np.ndarray, "h w"], labels: UInt8[np.ndarray, "h w"], spec: ScoreSpec
) -> ImageCounts:
    """The device's counts of image `i`, and the matchings that it left to the host."""
    # Copies, for these counts are kept: pinned memory is to be used again for the next batch.
    region = there.confusion[i].numpy().copy()
    boundary = {key: counts[i].numpy().copy() for key, counts in there.boundary.items()}
    bands = {key: counts[i].numpy().copy() for key, counts in there.bands.items()}
    asked = matchings(spec.boundary, (truth.shape[0], truth.shape[1])) if spec.boundary else {}
    missing = {key: matching for key, matching in asked.items() if key not in boundary}
    counted = boundary_counts_of(truth, labels, len(region) - 1, list(missing.values()))
    boundary |= dict(zip(missing, counted, strict=True))
    return ImageCounts(region, {key: boundary[key] for key in asked}, bands)
