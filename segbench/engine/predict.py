"""Label maps from a network, in the way that the inference settings name."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from segbench.data.batches import Frames
from segbench.engine.dense_crf import DenseCrf, refine_all
from segbench.engine.inference import PLAIN, Inference, MonteCarlo, Plain
from segbench.engine.monte_carlo import sample

PREDICT_BATCH = 4
"""Images a forward pass. With normalisation by stored statistics it changes no result but the last float digits."""


class Prediction(NamedTuple):
    """One frame: class ids of truth (K is void) and of the network, and how unsure it is where that was asked for."""

    name: str
    truth: UInt8[np.ndarray, "h w"]
    labels: UInt8[np.ndarray, "h w"]
    uncertainty: Float[np.ndarray, "h w"] | None = None


def predict(
    model: nn.Module, frames: Frames, device: torch.device, inference: Inference = PLAIN
) -> Iterator[Prediction]:
    """Every frame in order; holds a few in memory at a time."""
    model.to(device).eval()
    ways: dict[type, Any] = {Plain: _plain, MonteCarlo: _monte_carlo, DenseCrf: _refined}
    for index, found in enumerate(ways[type(inference)](model, frames, device, inference)):
        truth = frames.batch([index]).labels[0].numpy()
        yield Prediction(frames.names[index], truth, *found)


def _plain(
    model: nn.Module, frames: Frames, device: torch.device, _: Plain
) -> Iterator[tuple[UInt8[np.ndarray, "h w"]]]:
    for logits in _logits(model, frames, device):
        for labels in logits.argmax(1).to(torch.uint8).cpu():
            yield (labels.numpy(),)


def _monte_carlo(
    model: nn.Module, frames: Frames, device: torch.device, settings: MonteCarlo
) -> Iterator[tuple[UInt8[np.ndarray, "h w"], Float[np.ndarray, "h w"]]]:
    """The seed of an image is its place in the split."""
    for index in range(len(frames)):
        image = model.input(frames.batch([index], device).images)  # type: ignore[operator]
        found = sample(model, image, settings.samples, seed=index)
        yield found.probabilities.argmax(0).to(torch.uint8).cpu().numpy(), found.uncertainty.cpu().numpy()


def _refined(
    model: nn.Module, frames: Frames, device: torch.device, settings: DenseCrf
) -> Iterator[tuple[UInt8[np.ndarray, "h w"]]]:
    """The network makes logits here while other processes refine earlier ones."""
    logits = (one for batch in _logits(model, frames, device) for one in batch.float().cpu().numpy())
    images = (frames.batch([index]).images[0].permute(1, 2, 0).numpy() for index in range(len(frames)))
    yield from ((labels,) for labels in refine_all(zip(images, logits, strict=True), settings))


def _logits(model: nn.Module, frames: Frames, device: torch.device) -> Iterator[Float[Tensor, "n k h w"]]:
    for first in range(0, len(frames), PREDICT_BATCH):
        images = frames.batch(range(first, min(first + PREDICT_BATCH, len(frames))), device).images
        with torch.inference_mode():
            logits = model(model.input(images))  # type: ignore[operator]
        yield logits  # out here: whoever is given them must not find itself in inference mode
