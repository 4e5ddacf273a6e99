"""Predict a split, count image by image, and keep the counts and a few label maps."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import nn

from segbench.data.batches import Frames
from segbench.engine.predict import predict
from segbench.scoring import ImageCounts, ScoreSpec, count, gather

KEPT_MAPS = 4
"""Label maps kept of every evaluation, evenly spaced over the split: enough to see what a score looks like."""


class Scored(NamedTuple):
    """One image has been counted: the `number`-th of `total`."""

    name: str
    number: int
    total: int


def evaluate(
    model: nn.Module, frames: Frames, num_classes: int, spec: ScoreSpec, device: torch.device, folder: Path
) -> Generator[Scored, None, dict[str, str]]:
    """Write `counts.npz` and `maps/<name>.png` to `folder`, an image at a time; returns name -> path of the maps."""
    counts: list[tuple[str, ImageCounts]] = []
    maps: dict[str, str] = {}
    chosen = {round(i) for i in np.linspace(0, len(frames) - 1, KEPT_MAPS)}
    for index, (name, truth, prediction) in enumerate(predict(model, frames, device)):
        counts.append((name, count(truth, prediction, num_classes, spec)))
        if index in chosen:
            maps[name] = f"maps/{name.replace('/', '_')}.png"
            write_map(folder / maps[name], prediction, frames.dataset.palette)
        yield Scored(name, index + 1, len(frames))
    gather(counts).save(folder / "counts.npz")
    return maps


def write_map(path: Path, labels: UInt8[np.ndarray, "h w"], palette: Sequence[tuple[int, int, int]]) -> None:
    """An index PNG of class ids that shows in the dataset's colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette([channel for colour in palette for channel in colour])
    image.save(path, optimize=True)
