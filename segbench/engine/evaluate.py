"""Predict a split, count image by image, and keep the counts, a few label maps and what is unsure in them."""

from collections.abc import Collection, Generator, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import nn

from segbench.data.batches import Frames
from segbench.engine.counting import Counted, count_all
from segbench.engine.distributed import gathered, is_first, processes
from segbench.engine.inference import PLAIN, Inference
from segbench.engine.predict import PREDICT_BATCH, own_batches, predict
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


class Kept(NamedTuple):
    """What stays of one image: its counts, how unsure the network was on average, and its maps if they were chosen."""

    name: str
    counts: ImageCounts
    unsure: float | None
    labels: UInt8[np.ndarray, "h w"] | None
    uncertainty: Float[np.ndarray, "h w"] | None


def evaluate(
    model: nn.Module,
    frames: Frames,
    num_classes: int,
    spec: ScoreSpec,
    device: torch.device,
    folder: Path,
    inference: Inference = PLAIN,
) -> Generator[Scored, None, Found]:
    """Write `counts.npz` and `maps/<name>.png` to `folder`.

    Of several processes, which give the same weights, each predicts and counts its part; the first one alone is given
    it all in the order of the images, yields, writes and knows what was found.
    """
    found, images = Found({}, {}, None), []
    palette = [*frames.dataset.palette, frames.dataset.void_colour]
    counted = count_all(predict(model, frames, device, inference), num_classes, spec)
    for number, image in enumerate(of_all(map(partial(reduced, chosen=chosen(frames)), counted), len(frames)), 1):
        images.append(image._replace(labels=None, uncertainty=None))
        path = f"maps/{image.name.replace('/', '_')}"
        if image.labels is not None:
            found.maps[image.name] = f"{path}.png"
            write_map(folder / f"{path}.png", image.labels, palette)
        if image.uncertainty is not None:
            found.uncertainty_maps[image.name] = f"{path}-uncertainty.png"
            write_uncertainty(folder / f"{path}-uncertainty.png", image.uncertainty)
        yield Scored(image.name, number, len(frames))
    if is_first():
        sequences = [frames.dataset.sequence_of(name) or "" for name in frames.names]
        counts = gather(((image.name, image.counts) for image in images), sequences if all(sequences) else ())
        counts.save(folder / "counts.npz")
    unsure = [image.unsure for image in images if image.unsure is not None]
    return found._replace(uncertainty=float(np.mean(unsure)) if unsure else None)


def chosen(frames: Frames) -> set[str]:
    """The images whose label maps are kept."""
    return {frames.names[round(i)] for i in np.linspace(0, len(frames) - 1, KEPT_MAPS)}


def reduced(image: Counted, chosen: Collection[str]) -> Kept:
    """Label maps that nobody asked for end here."""
    unsure = None if image.uncertainty is None else float(image.uncertainty.mean(dtype=np.float64))
    maps = (image.labels, image.uncertainty) if image.name in chosen else (None, None)
    return Kept(image.name, image.counts, unsure, *maps)


def of_all(own: Iterator[Kept], total: int) -> Iterator[Kept]:
    """At the first process the images of all of them in order; elsewhere nothing, once they have been sent.

    They meet once a batch of each, so that nobody is far ahead of the others and the first one can say how far all are.
    """
    batches = [len(batch) for batch in own_batches(total)]
    for meeting in range(-(-total // (PREDICT_BATCH * processes()))):
        size = batches[meeting] if meeting < len(batches) else 0
        yield from chain.from_iterable(gathered(list(islice(own, size))))


def write_map(path: Path, labels: UInt8[np.ndarray, "h w"], palette: Sequence[tuple[int, int, int]]) -> None:
    """An index PNG of class ids that shows in the dataset's colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette([channel for colour in palette for channel in colour])
    image.save(path, optimize=True)


def write_uncertainty(path: Path, variance: Float[np.ndarray, "h w"]) -> None:
    """A 16-bit grey PNG: 65535 is 0.25, the largest variance that a probability can have."""
    Image.fromarray(np.round(variance / 0.25 * 65535).clip(0, 65535).astype(np.uint16)).save(path, optimize=True)
