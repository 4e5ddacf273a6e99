"""Frames of a dataset as torch tensors, decoded once and kept as uint8.

A frame is decoded when it is first asked for and stays in memory (4 bytes a pixel with its labels): 367 CamVid
frames of 360x480 take 254 MB. Torch enters the data here and nowhere before.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from segbench.data.dataset import Dataset


class Batch(NamedTuple):
    """RGB frames 0..255 and class ids, K for void."""

    images: UInt8[Tensor, "n 3 h w"]
    labels: UInt8[Tensor, "n h w"]


class Frames:
    """The frames of one split, by index."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.names = list(dataset.names)
        height, width = dataset.size
        # Memory that is never written is never taken, so a split that is not used costs nothing.
        self.images = torch.empty((len(dataset), 3, height, width), dtype=torch.uint8)
        self.labels = torch.empty((len(dataset), height, width), dtype=torch.uint8)
        self._decoded = [False] * len(dataset)
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """The frames of `indices`, in that order, on a device."""
        missing = sorted({i for i in indices if not self._decoded[i]})
        list(self._pool.map(self._decode, missing))
        chosen = torch.as_tensor(indices)
        return Batch(
            self.images[chosen].to(device, non_blocking=True), self.labels[chosen].to(device, non_blocking=True)
        )

    def _decode(self, index: int) -> None:
        sample = self.dataset[index]
        self.images[index] = torch.from_numpy(sample.image.copy()).permute(2, 0, 1)
        self.labels[index] = torch.from_numpy(sample.labels.copy())
        self._decoded[index] = True
