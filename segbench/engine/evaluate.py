"""Predict a split, count image by image, and keep the counts, a few label maps and what is unsure in them."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import nn

from segbench.data.batches import Frames
from segbench.engine.counting import count_all
from segbench.engine.inference import PLAIN, Inference
from segbench.engine.predict import predict
from segbench.scoring.count import ImageCounts
from segbench.scoring.counts import gather
from segbench.scoring.spec import ScoreSpec

KEPT_MAPS = 4
"""Label maps kept of every evaluation, evenly spaced over the split: enough to see what a score looks like."""


class Scored(NamedTuple):
    """One image has been counted: the `number`-th of `total`."""

    name: str
    number: int
    total: int


class Found(NamedTuple):
    """Paths of the kept label maps and, where there is one, of their uncertainty, by name; its mean over the split."""

    maps: dict[str, str]
    uncertainty_maps: dict[str, str]
    uncertainty: float | None


def evaluate(
    model: nn.Module,
    frames: Frames,
    num_classes: int,
    spec: ScoreSpec,
    device: torch.device,
    folder: Path,
    inference: Inference = PLAIN,
) -> Generator[Scored, None, Found]:
    """Write `counts.npz` and `maps/<name>.png` to `folder`, an image at a time."""
    counts: list[tuple[str, ImageCounts]] = []
    maps: dict[str, str] = {}
    unsure_maps: dict[str, str] = {}
    unsure: list[float] = []
    palette = [*frames.dataset.palette, frames.dataset.void_colour]
    chosen = {round(i) for i in np.linspace(0, len(frames) - 1, KEPT_MAPS)}
    predicted = predict(model, frames, device, inference)
    for index, found in enumerate(count_all(predicted, num_classes, spec)):
        counts.append((found.name, found.counts))
        if found.uncertainty is not None:
            unsure.append(float(found.uncertainty.mean(dtype=np.float64)))
        if index in chosen:
            maps[found.name] = f"maps/{found.name.replace('/', '_')}.png"
            write_map(folder / maps[found.name], found.labels, palette)
            if found.uncertainty is not None:
                unsure_maps[found.name] = f"maps/{found.name.replace('/', '_')}-uncertainty.png"
                write_uncertainty(folder / unsure_maps[found.name], found.uncertainty)
        yield Scored(found.name, index + 1, len(frames))
    sequences = [frames.dataset.sequence_of(name) or "" for name in frames.names]
    gather(counts, sequences if all(sequences) else ()).save(folder / "counts.npz")
    return Found(maps, unsure_maps, float(np.mean(unsure)) if unsure else None)


def write_map(path: Path, labels: UInt8[np.ndarray, "h w"], palette: Sequence[tuple[int, int, int]]) -> None:
    """An index PNG of class ids that shows in the dataset's colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette([channel for colour in palette for channel in colour])
    image.save(path, optimize=True)


def write_uncertainty(path: Path, variance: Float[np.ndarray, "h w"]) -> None:
    """A 16-bit grey PNG: 65535 is 0.25, the largest variance that a probability can have."""
    Image.fromarray(np.round(variance / 0.25 * 65535).clip(0, 65535).astype(np.uint16)).save(path, optimize=True)
