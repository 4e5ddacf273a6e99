"""The next batches are assembled while the device works on this one.

One thread asks for the batches in their order, and the threads of `Frames` decode for it what is not in memory. To a
GPU they are copied on a stream of their own, beside the computation. The stream that takes a batch waits for its copy,
and the memory is marked as used by it (torch's notes on `Tensor.record_stream`), so a caller sees ordinary tensors.
Nothing random is drawn: how many batches are ahead changes no result.

How long the device had no data is what `next` takes: the caller may time it.
"""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from segbench.data.batches import Batch, Frames


class Loaded(NamedTuple):
    """A batch, and the event after its copies where a GPU makes them."""

    batch: Batch
    copied: torch.cuda.Event | None


def prefetched(
    frames: Frames, orders: Iterable[Sequence[int]], device: torch.device | str, ahead: int = 2
) -> Generator[Batch, None, None]:
    """The batch of each of `orders` on a device, while up to `ahead` more are on their way.

    An error is raised where its batch is due (`DataError` for a file that cannot be read). Closing the generator ends
    the thread after the batch that it is at. `orders` is read in the caller's thread.
    """
    device = torch.device(device)
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    coming: deque[Future[Loaded]] = deque()
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        for order in orders:
            coming.append(thread.submit(_load, frames, order, device, side))
            if len(coming) > ahead:
                yield _take(coming.popleft().result())
        while coming:
            yield _take(coming.popleft().result())
    finally:
        thread.shutdown(cancel_futures=True)


def _load(frames: Frames, order: Sequence[int], device: torch.device, side: torch.cuda.Stream | None) -> Loaded:
    if side is None:
        return Loaded(frames.batch(order, device), None)
    with torch.cuda.stream(side):
        return Loaded(frames.batch(order, device), side.record_event())


def _take(loaded: Loaded) -> Batch:
    """The batch, safe to use on the current stream."""
    if loaded.copied is not None:
        stream = torch.cuda.current_stream(loaded.batch.images.device)
        stream.wait_event(loaded.copied)
        for tensor in loaded.batch:
            tensor.record_stream(stream)
    return loaded.batch
