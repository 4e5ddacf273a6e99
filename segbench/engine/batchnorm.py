"""Batch normalisation by statistics of the training set, as caffe-segnet's networks are tested.

That Caffe's layer keeps no running averages. In training and in testing alike it normalises with the mean and variance
of the batch at hand; when training is over, `compute_bn_statistics.py` runs the network once over the training images
with dropout off, averages the means and the variances of the batches, and folds them into scale and shift. The SegNet
paper (arXiv:1511.00561, section 4) repeats the pass before each evaluation that it reports. Here the averages go where
PyTorch keeps its running ones, so that in evaluation mode y = gamma / sqrt(var + eps) * (x - mean) + beta.

Conventions:

- During the pass a layer normalises with its batch's statistics, so what a deeper layer sees is what training shows it.
- A batch's variance is the biased one, which divides by the number of values (as Caffe's does). PyTorch's own average,
  `momentum=None`, takes the unbiased ones.
- Batches have the training's size, and each counts the same.
- A layer given one value a channel has no variance to tell, and keeps what it had. Layers that are frozen keep theirs.

Departures: Caffe's script makes N // B + N % B passes over a data layer that shuffles and wraps (94 at N = 367, B = 4).
Here each image comes once, in order, and the last batch is filled from the beginning. Nothing random is drawn.

Of several processes each makes the whole pass, so all come to the same statistics without a word. A `SyncBatchNorm`,
which would find as many copies of every value as there are processes, normalises like any other layer meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segbench.data.batches import Frames


def use_training_set(model: nn.Module, frames: Frames, batch_size: int, device: torch.device) -> None:
    """Replace the running statistics of every batch normalisation by their averages over the training frames.

    Nothing else of the model changes but its mode. Where no layer keeps running statistics, there is no pass.
    """
    layers = tracking(model)
    if not layers:
        return
    with tallied(model, layers) as tallies, torch.no_grad():
        for first in range(0, len(frames), batch_size):
            batch = frames.batch([index % len(frames) for index in range(first, first + batch_size)], device)
            model(model.input(batch.images))  # type: ignore[operator]
    for tally in tallies:
        tally.store()


def tracking(model: nn.Module) -> list[_BatchNorm]:
    """The layers that normalise with their batch's statistics in training and with stored ones in evaluation."""
    model.train()  # a network that freezes some of its layers does it there
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [layer for layer in layers if layer.training and layer.running_mean is not None]


class Tally:
    """Sums of one layer's batch means and biased batch variances, each [c], in float64."""

    def __init__(self, layer: _BatchNorm) -> None:
        assert layer.running_mean is not None and layer.running_var is not None
        self.layer, self.batches = layer, 0
        self.means = torch.zeros_like(layer.running_mean, dtype=torch.float64)
        self.variances = torch.zeros_like(layer.running_var, dtype=torch.float64)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        """A forward hook: at momentum 1 the layer's running statistics are those of the batch that it just saw."""
        values = inputs[0].numel() // inputs[0].shape[1]
        if values > 1:
            self.means += self.layer.running_mean  # type: ignore[arg-type]
            self.variances += self.layer.running_var.double() * ((values - 1) / values)  # type: ignore[union-attr]
            self.batches += 1

    def store(self) -> None:
        """Put the averages where evaluation reads them."""
        if self.batches:
            self.layer.running_mean.copy_(self.means / self.batches)  # type: ignore[union-attr]
            self.layer.running_var.copy_(self.variances / self.batches)  # type: ignore[union-attr]


@contextmanager
def tallied(model: nn.Module, layers: list[_BatchNorm]) -> Iterator[list[Tally]]:
    """The model in evaluation mode but for `layers`, which follow their batches and are tallied meanwhile."""
    tallies = [Tally(layer) for layer in layers]
    handles = [tally.layer.register_forward_hook(tally) for tally in tallies]
    before = [(layer.momentum, layer.num_batches_tracked.clone()) for layer in layers]  # type: ignore[union-attr]
    model.eval()
    for layer in layers:
        if isinstance(layer, nn.SyncBatchNorm):
            layer.forward = MethodType(_BatchNorm.forward, layer)  # type: ignore[method-assign]
        # The flag and not `train()`, which would reach the dropout that some libraries keep inside their layers.
        layer.training, layer.momentum = True, 1.0
    try:
        yield tallies
    finally:
        model.eval()
        for handle, layer, (momentum, batches) in zip(handles, layers, before, strict=True):
            handle.remove()
            layer.__dict__.pop("forward", None)
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(batches)  # type: ignore[union-attr]
