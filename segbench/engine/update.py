"""One update of a network: `accumulate` passes forward and backward, then the optimizer. The host queues, and waits for
nothing.

The loss of an update is the mean over its passes, as with Caffe's `iter_size`: each pass is divided by their number
before its backward pass. Input and loss are computed in fp32, the network under autocast, and the backward pass
outside of it (PyTorch's guide to mixed precision). In fp16 gradients are scaled (torch.amp.GradScaler): an update whose
scaled gradients overflow is skipped, counts all the same, and halves the scale.

How far the host may run ahead: reading a loss waits until its update is done. A loop that queues update i + 1 before
it reads the loss of update i never lets a GPU wait. What it keeps must come from updates whose losses it has read and
found finite, so it reads the last one before it validates or writes a checkpoint. Where a loss is not finite, one
more update may have been queued behind it, and nothing of either is on disk.

The forward is compiled at fixed sizes: a shorter last batch is compiled once more. What validates and predicts
with the same network stays eager, so its scores do not depend on `compile`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segbench.data.batches import Batch
from segbench.engine.activation_checkpointing import forget_activations
from segbench.engine.distributed import averaged
from segbench.engine.recipe import Recipe
from segbench.errors import SettingError
from segbench.precision import arranged, autocast_of, laid_out, products_of

LossOf = Callable[[Float[Tensor, "n channels h w"], UInt8[Tensor, "n h w"]], Float[Tensor, ""]]


class Loss(NamedTuple):
    """The loss of an update, on its way to the host: `value` is there once `ready` has passed."""

    value: Float[Tensor, ""]
    ready: torch.cuda.Event | None

    def item(self) -> float:
        """Waits for its own update, not for those that were queued after it."""
        if self.ready is not None:
            self.ready.synchronize()
        return float(self.value)


class Update:
    """Updates of one network by one optimizer, for one training. Made before the first and called for each.

    The model, whose `input` takes frames, is on `device`, or is DistributedDataParallel around such a one; that one was
    laid out (`precision.laid_out`) before it was wrapped. `loss_of` takes logits in fp32 and labels; its divisor is its
    own affair. To be called within `computing` (determinism.py), which has the rest of the recipe's precision.

    Raises `SettingError` where `device` cannot do what the recipe asks, at the latest in the first update.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, device: torch.device, loss_of: LossOf
    ) -> None:
        check_device(recipe, device)
        self.model, self.optimizer, self.recipe, self.device = model, optimizer, recipe, device
        self.loss_of = loss_of
        self.network = model.module if isinstance(model, DistributedDataParallel) else model
        # Parameters keep their identity: the optimizer holds them already.
        laid_out(self.network, recipe.channels_last)
        if recipe.activation_checkpointing:
            forget_activations(self.network)
        self.forward = compiled(model, recipe.cuda_graphs) if recipe.compile else model
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        # Also where the outermost module says so already: some libraries leave what is inside in evaluation mode.
        self.model.train()

    def __call__(self, batches: Sequence[Batch]) -> Loss:
        """Update by batches that lie on the device, each a pass; the loss before it. The host waits for no kernel
        (but in fp16 for the gradients' overflow, unless the optimizer is fused)."""
        if not self.network.training:  # a validation came between
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            with self._gradients_sent(last), compiler_in_words(), lone_images_in_words():
                losses.append(self._pass(batch, len(batches)))
            if not last and self.recipe.cuda_graphs:
                self._keep_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return sent(averaged(torch.stack(losses).sum()))

    def _pass(self, batch: Batch, passes: int) -> Float[Tensor, ""]:
        """Add to the gradients those of this batch's share of the loss."""
        images = arranged(self.network.input(batch.images), self.recipe.channels_last)  # type: ignore[operator]
        if self.recipe.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with autocast_of(self.recipe.precision, self.device):
            logits = self.forward(images)
        loss = self.loss_of(logits.float(), batch.labels) / passes
        self.scaler.scale(loss).backward()
        return loss.detach()

    def _gradients_sent(self, last: bool) -> AbstractContextManager[None]:
        """Processes add their gradients once an update, not once a pass."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _keep_gradients(self) -> None:
        """Take the gradients out of the graphs' memory, which the next pass writes to again."""
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

    def state(self) -> dict[str, Tensor]:
        """What the next update depends on beside weights, optimizer and random numbers: fp16's scale, as tensors."""
        found = self.scaler.state_dict()
        return {name: torch.tensor(found[name]) for name in ("scale", "_growth_tracker") if name in found}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave; to be called when the optimizer's own state has been loaded."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(self.scaler.state_dict() | {name: v.item() for name, v in state.items()})
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                # A file has no memory layouts, and a fused optimizer reads momentum in that of its weight.
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter).copy_(value)


def sent(loss: Float[Tensor, ""]) -> Loss:
    """Its copy to the host, queued behind what it waits for and before what comes next."""
    if not loss.is_cuda:
        return Loss(loss, None)
    arriving = loss.to("cpu", non_blocking=True)  # pinned
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(loss.device))
    return Loss(arriving, ready)


def compiled(model: nn.Module, cuda_graphs: bool) -> Callable[[Tensor], Tensor]:
    """The model through torch.compile; the model itself, its modules and their names stay as they are."""
    # After eight sizes of one class in a process, the others would be eager without a word.
    torch.compiler.reset()
    return torch.compile(model, dynamic=False, mode="reduce-overhead" if cuda_graphs else None)


def check_device(recipe: Recipe, device: torch.device) -> None:
    """`SettingError` for numbers or graphs that the device has not."""
    if recipe.cuda_graphs and device.type != "cuda":
        raise SettingError(f"cuda_graphs: {device} has none; leave the setting out, or train on a CUDA device")
    with products_of(recipe.precision, device):
        pass


@contextmanager
def lone_images_in_words() -> Iterator[None]:
    """`SettingError` where batch normalisation finds one value a channel: one image, pooled to one pixel."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise SettingError(
            "recipe.batch_size: this network's batch normalisation cannot learn from one image alone, and a batch "
            "holds no more; write a larger batch_size, or last_batch: wrap or drop"
        ) from error


@contextmanager
def compiler_in_words() -> Iterator[None]:
    """`SettingError` for what torch.compile raises: its own errors are pages long."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        cause = getattr(error, "inner_exception", error)
        first = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
        raise SettingError(f"compile: torch.compile failed ({type(cause).__name__}: {first}); leave it out") from error
