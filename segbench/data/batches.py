"""Frames of a dataset as torch tensors: decoded once and kept as uint8 where they fit into memory, else decoded anew.

A split of n frames of h x w takes 4 n h w bytes with its labels: 254 MB for the 367 frames of CamVid at 360x480. It is
kept when that is at most half of what this process may take (`memory.py`) at the moment its first batch is asked for,
so that splits filled earlier count as taken, and what they will still fill does too; processes that torchrun starts
on one machine share the half. A frame of a kept split is decoded when it is first asked for. A split that does not fit
keeps nothing.

Files are decoded by threads, which Pillow lets run side by side; so all of them fill one and the same memory, and
nothing is copied between processes. Torch enters the data here and nowhere before.
"""

import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from segbench.data.dataset import Dataset
from segbench.data.memory import available_bytes
from segbench.workers import processors

SHARE = 0.5
"""Of the available memory, what the frames of one split may take."""


KEEPING: "WeakSet[Frames]" = WeakSet()
"""All splits of this process that keep their frames."""


def promised() -> int:
    """Bytes that kept splits will still take: memory counts as free until a frame is written to it."""
    return sum(4 * math.prod(frames.dataset.size) * frames._decoded.count(False) for frames in list(KEEPING))


class Batch(NamedTuple):
    """RGB frames 0..255 and class ids, K for void."""

    images: UInt8[Tensor, "n 3 h w"]
    labels: UInt8[Tensor, "n h w"]


class Arrays(NamedTuple):
    """The same before they are tensors: threads that copy NumPy arrays start no threads of torch's."""

    images: UInt8[np.ndarray, "n 3 h w"]
    labels: UInt8[np.ndarray, "n h w"]


class Frames:
    """The frames of one split, by index. One that is never asked for a batch takes no memory and no thread."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.names = list(dataset.names)
        self._decoded = [False] * len(dataset)
        self._kept: Arrays | None = None
        self._fits: bool | None = None
        self._deciding = threading.Lock()
        # Starts threads when there is work, and ends them when this object is gone.
        self._pool = ThreadPoolExecutor(max_workers=processors(), thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[Callable[[Dataset], "Frames"], tuple[Dataset]]:
        return Frames, (self.dataset,)  # another process decodes for itself

    @property
    def size_bytes(self) -> int:
        """What keeping all frames takes."""
        height, width = self.dataset.size
        return 4 * len(self) * height * width

    @property
    def fits(self) -> bool:
        """Whether decoded frames are kept; decided once."""
        with self._deciding:
            if self._fits is None:
                processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's
                self._fits = self.size_bytes * processes <= SHARE * (available_bytes() - processes * promised())
                # Memory that is never written is never taken.
                self._kept = self._arrays(len(self)) if self._fits else None
                if self._fits:
                    KEEPING.add(self)
            return self._fits

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """The frames of `indices`, in that order, on a device, for the caller to keep. May be called from any thread.

        A GPU's are copied in the order of its current stream; nothing waits for it. Raises `DataError` where a file
        can no longer be read.
        """
        if self.fits:
            assert self._kept is not None
            # Two callers that miss the same frame both decode it, to the same bytes.
            missing = sorted({index for index in indices if not self._decoded[index]})
            self._decode(zip(missing, missing, strict=True), self._kept)
            for index in missing:
                self._decoded[index] = True
            chosen = np.array(indices, np.intp)
            arrays = Arrays(*(np.take(kept, chosen, axis=0) for kept in self._kept))
        else:
            arrays = self._arrays(len(indices))
            self._decode(enumerate(indices), arrays)
        return Batch(*(_upload(torch.from_numpy(array), torch.device(device)) for array in arrays))

    def _arrays(self, count: int) -> Arrays:
        height, width = self.dataset.size
        return Arrays(np.empty((count, 3, height, width), np.uint8), np.empty((count, height, width), np.uint8))

    def _decode(self, places: Iterable[tuple[int, int]], arrays: Arrays) -> None:
        """Write the frame of each (place, index) into its place."""

        def one(place: int, index: int) -> None:
            sample = self.dataset[index]
            arrays.images[place], arrays.labels[place] = sample.image.transpose(2, 0, 1), sample.labels

        list(self._pool.map(lambda pair: one(*pair), places))


def _upload(host: Tensor, device: torch.device) -> Tensor:
    """From pinned memory, which torch keeps until the copy is done: any other copy waits for what the GPU is doing."""
    if device.type != "cuda":
        return host.to(device)
    with torch.cuda.device(device):  # pinning in a new thread would otherwise open the first GPU
        return host.pin_memory().to(device, non_blocking=True)
