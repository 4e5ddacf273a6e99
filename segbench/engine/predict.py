"""Label maps from a network, in the way that the inference settings name; they stay where they were made.

Of several processes each takes every so-many-th of the batches that one process would make: the same images stand
together in a forward pass, so the label maps are the same.
"""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from segbench.data.batches import Frames
from segbench.engine.dense_crf import DenseCrf, refine_all
from segbench.engine.distributed import processes, rank
from segbench.engine.inference import PLAIN, Inference, MonteCarlo, Plain
from segbench.engine.monte_carlo import sample

PREDICT_BATCH = 4
"""Images a forward pass. With normalisation by stored statistics it changes no result but the last float digits."""


class Maps(NamedTuple):
    """Class ids, and how unsure the network is of them where that was asked for."""

    labels: UInt8[Tensor, "n h w"]
    uncertainty: Float[Tensor, "n h w"] | None = None


class Predicted(NamedTuple):
    """A few frames. `truth` (K is void) lies on the host; the maps of a GPU lie there and may still be being made."""

    names: list[str]
    truth: UInt8[Tensor, "n h w"]
    labels: UInt8[Tensor, "n h w"]
    uncertainty: Float[Tensor, "n h w"] | None


def predict(
    model: nn.Module, frames: Frames, device: torch.device, inference: Inference = PLAIN
) -> Iterator[Predicted]:
    """Every frame of this process's batches in order, up to PREDICT_BATCH at a time."""
    model.to(device).eval()
    ways: dict[type, Any] = {Plain: _plain, MonteCarlo: _monte_carlo, DenseCrf: _refined}
    own = chain.from_iterable(own_batches(len(frames)))
    for maps in ways[type(inference)](model, frames, device, inference):
        indices = list(islice(own, len(maps.labels)))
        yield Predicted([frames.names[i] for i in indices], frames.batch(indices).labels, *maps)


def own_batches(total: int) -> list[range]:
    """Which of `total` frames this process predicts: of the batches in order, those numbered rank, rank + processes
    and so on. The last batch is short where PREDICT_BATCH does not divide."""
    starts = range(0, total, PREDICT_BATCH)[rank() :: processes()]
    return [range(first, min(first + PREDICT_BATCH, total)) for first in starts]


def upload(host: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`, without waiting for what the device is doing, as a copy from pageable memory would."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def largest(logits: Float[Tensor, "n k h w"]) -> UInt8[Tensor, "n h w"]:
    """The class of the largest value, the first one of equals; NaN is larger than any number, as in torch's argmax."""
    top = None if logits.is_cuda else logits.amax(1)
    # A sum is NaN if a part of it is; inf - inf gives one too, and then argmax is only slower.
    if top is None or top.sum().isnan():
        return logits.argmax(1).to(torch.uint8)
    # torch's argmax over channels reads across memory on a CPU and takes several times as long as this.
    labels = torch.zeros_like(top, dtype=torch.uint8)
    for label in reversed(range(logits.shape[1])):
        labels.masked_fill_(logits[:, label] == top, label)
    return labels


def _plain(model: nn.Module, frames: Frames, device: torch.device, _: Plain) -> Iterator[Maps]:
    for logits in _logits(model, frames, device):
        yield Maps(largest(logits))


def _monte_carlo(model: nn.Module, frames: Frames, device: torch.device, settings: MonteCarlo) -> Iterator[Maps]:
    """An image at a time; its seed is its place in the split."""
    for index in chain.from_iterable(own_batches(len(frames))):
        image = model.input(upload(frames.batch([index]).images, device))  # type: ignore[operator]
        found = sample(model, image, settings.samples, seed=index)
        yield Maps(largest(found.probabilities[None]), found.uncertainty[None])


def _refined(model: nn.Module, frames: Frames, device: torch.device, settings: DenseCrf) -> Iterator[Maps]:
    """The network makes logits here while other processes refine earlier ones; their maps are on the host."""
    logits = (one for batch in _logits(model, frames, device) for one in batch.float().cpu().numpy())
    own = chain.from_iterable(own_batches(len(frames)))
    images = (frames.batch([index]).images[0].permute(1, 2, 0).numpy() for index in own)
    for labels in refine_all(zip(images, logits, strict=True), settings):
        yield Maps(torch.from_numpy(labels)[None])


def _logits(model: nn.Module, frames: Frames, device: torch.device) -> Iterator[Float[Tensor, "n k h w"]]:
    for indices in own_batches(len(frames)):
        images = upload(frames.batch(indices).images, device)
        with torch.inference_mode():
            logits = model(model.input(images))  # type: ignore[operator]
        yield logits  # out here: whoever is given them must not find itself in inference mode
