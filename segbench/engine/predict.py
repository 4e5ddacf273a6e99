"""Label maps from a network: the class with the largest logit at every pixel (the first one of equals)."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from segbench.data.batches import Frames

PREDICT_BATCH = 4
"""Images a forward pass. With normalisation by stored statistics it changes no result but the last float digits."""


def predict(
    model: nn.Module, frames: Frames, device: torch.device
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]]:
    """(name, truth, prediction) of every frame in order; holds one batch in memory at a time."""
    model.to(device).eval()
    for first in range(0, len(frames), PREDICT_BATCH):
        indices = range(first, min(first + PREDICT_BATCH, len(frames)))
        batch = frames.batch(indices)
        with torch.inference_mode():
            logits = model(model.input(batch.images.to(device)))  # type: ignore[operator]
            maps = logits.argmax(1).to(torch.uint8).cpu()
        for index, truth, prediction in zip(indices, batch.labels, maps, strict=True):
            yield frames.names[index], truth.numpy(), prediction.numpy()
