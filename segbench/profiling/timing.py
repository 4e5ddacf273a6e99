"""How long a pass takes: each region alone, synchronised before and after, every sample kept.

The protocol is that of `caffe time`, which made SegNet's Table 6: warm-up passes, then the mean of the forward and of
the backward passes of the training network (batch statistics, dropout, loss). So the paper's forward time compares
with `train_forward`; `forward` is inference (eval mode, no graph). Departures: Caffe counts its data layer in the
forward, here images and labels are on the device beforehand; what a model's `input` makes of the 8-bit image
(SegNet-Basic's and FCN-Basic's local response normalisation included, a layer in Caffe's timing) is in both forwards in
the scope `model+input` and left out in the scope `model`; each backward writes new gradients, where Caffe adds to the
old.

On CUDA a region lies between two events on the current stream of an idle device, so launch gaps of small kernels
count: this is latency, not throughput. On a CPU it is the monotonic wall clock.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segbench.profiling.failure import in_words
from segbench.profiling.usage import Samples
from segbench.profiling.workload import Batch, Images, check_logits, loss_of


class Times(NamedTuple):
    """Samples in ms; the training ones None, with a note, where this model cannot train on such a batch."""

    forward: Samples
    train_forward: Samples | None
    backward: Samples | None
    notes: tuple[str, ...]


def clock(region: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """One run of the region: its time in ms and what it gave."""
    if device.type != "cuda":
        begin = time.perf_counter_ns()
        given = region()
        return (time.perf_counter_ns() - begin) / 1e6, given
    with torch.cuda.device(device):  # events and the current stream belong to the current device
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        given = region()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end), given


def samples(times_ms: list[float], warmup: int) -> Samples:
    return Samples(measured_ms=tuple(times_ms[warmup:]), warmup_ms=tuple(times_ms[:warmup]))


@torch.inference_mode()
def time_forward(model: nn.Module, images: Images, num_classes: int, warmup: int, repetitions: int) -> Samples:
    """Inference: eval mode, no graph. Raises `ModelError` when the output is no map of logits."""
    model.eval()
    times = []
    for _ in range(warmup + repetitions):
        elapsed, logits = clock(lambda: model(images), images.device)
        check_logits(logits, images, num_classes)
        times.append(elapsed)
    return samples(times, warmup)


def time_training(model: nn.Module, batch: Batch, warmup: int, repetitions: int) -> tuple[Samples, Samples]:
    """Train mode: the forward with its loss, and the backward, timed apart. No optimiser step."""
    model.train()
    forward, backward = [], []
    for _ in range(warmup + repetitions):
        model.zero_grad(set_to_none=True)
        elapsed, loss = clock(lambda: loss_of(model, batch), batch.images.device)
        forward.append(elapsed)
        elapsed, _ = clock(lambda: _backward(loss), batch.images.device)  # noqa: B023 - called before the loop goes on
        backward.append(elapsed)
    return samples(forward, warmup), samples(backward, warmup)


def _backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss


def time_model(model: nn.Module, batch: Batch, num_classes: int, warmup: int, repetitions: int) -> Times:
    """Training, then inference. An inference that fails raises; a training pass that fails leaves a note instead.

    In this order, because a model that keeps a tensor of its first forward (a grid of positions) would keep one made in
    inference mode, which no backward accepts. Some sound models cannot train on one image (a normalisation over 1x1
    maps, as in DeepLabV3's pooled branch).
    """
    train_forward, backward = None, None
    notes: tuple[str, ...] = ()
    try:
        train_forward, backward = time_training(model, batch, warmup, repetitions)
    except Exception as error:  # somebody's model: whatever it raises is told
        notes = (f"training at batch {len(batch.images)} not timed: {in_words(error)}",)
    model.zero_grad(set_to_none=True)
    return Times(time_forward(model, batch.images, num_classes, warmup, repetitions), train_forward, backward, notes)
