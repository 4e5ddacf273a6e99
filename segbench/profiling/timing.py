"""How long a pass takes: each region alone, synchronised before and after, every sample kept.

Two protocols. `steady`: passes are run until they no longer drift (steady.py) and took `min_seconds` together, then
measured until there are `min_samples` that took `min_seconds` together; `max_seconds` end both, the first by half of
it. What is measured is judged stable or not.

`caffe-time` is what made SegNet's Table 6: warm-up passes, then the mean of the forward and of the backward passes of
the training network (batch statistics, dropout, loss). So the paper's forward time compares with `train_forward`;
`forward` is inference (eval mode, no graph). Departures: Caffe counts its data layer in the forward, here images and
labels are on the device beforehand; what a model's `input` makes of the 8-bit image (SegNet-Basic's and FCN-Basic's
local response normalisation included, a layer in Caffe's timing) is in both forwards where the scope has `+input` and
left out where it has not; each backward writes new gradients, where Caffe adds to the old.

On CUDA a region lies between two events on the current stream of an idle device, so launch gaps of small kernels
count: this is latency, not throughput. On a CPU it is the monotonic wall clock. Python's garbage collector, which may
stop any region for longer than it lasts, is off inside them.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segbench.profiling.failure import in_words
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.steady import stable, unrest, warm
from segbench.profiling.usage import Samples
from segbench.profiling.workload import Batch, Images, loss_of

FEWEST = 3
"""Samples that are measured however long they take."""

Region = Callable[[], object]
Around = Callable[[], AbstractContextManager[object]]
Watch = Callable[[], bool | None]


class Times(NamedTuple):
    """Samples in ms; the training ones None, with a note, where they were not asked for or this model cannot train on
    such a batch."""

    forward: Samples
    train_forward: Samples | None
    backward: Samples | None
    step: Samples | None
    notes: tuple[str, ...]


class Pass(NamedTuple):
    """One run of every region: its times in ms, and whether the device was throttled after each (None: not told)."""

    times_ms: tuple[float, ...]
    throttled: tuple[bool | None, ...]


def time_model(
    trained: nn.Module | None,
    infer: Region,
    batch: Batch,
    spec: ProfileSpec,
    images: Callable[[], Images],
    around: Around,
    watch: Watch | None,
) -> Times:
    """Training, then inference. An inference that fails raises; a training pass that fails leaves a note instead.

    In this order, because a model that keeps a tensor of its first forward (a grid of positions) would keep one made in
    inference mode, which no backward accepts. Some sound models cannot train on one image (a normalisation over 1x1
    maps, as in DeepLabV3's pooled branch).

    `trained` is the module in training passes, None for none of them, and in eval mode afterwards. `infer` is timed as
    the forward as it is, in inference mode. `images` makes what each training pass is fed, inside what is timed, in
    place of the batch's own. `around` is set around the training forward and its loss, as autocast is. `watch` is asked
    after each region whether the device slows itself down.
    """
    training: dict[str, Samples] = {}
    notes: list[str] = []
    if trained is not None:
        # Passes move the statistics of normalisations, and an infinite gradient, as fp16 may have, makes weights NaN.
        kept = [(tensor, tensor.detach().clone()) for tensor in (*trained.parameters(), *trained.buffers())]
        try:
            training, notes = time_training(trained, batch, images, spec, around, watch)
        except Exception as error:  # somebody's model: whatever it raises is told
            notes = [f"training at batch {len(batch.images)} not timed: {in_words(error)}"]
        trained.zero_grad(set_to_none=True)
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
        del kept
        trained.eval()
    forward, more = time_inference(infer, batch.images.device, spec, watch)
    return Times(
        forward, training.get("train_forward"), training.get("backward"), training.get("step"), (*notes, *more)
    )


@torch.inference_mode()
def time_inference(
    infer: Region, device: torch.device, spec: ProfileSpec, watch: Watch | None
) -> tuple[Samples, list[str]]:
    samples, notes = sampled(passes((infer,), device, watch), ("forward",), spec)
    return samples["forward"], notes


def time_training(
    module: nn.Module,
    batch: Batch,
    images: Callable[[], Images],
    spec: ProfileSpec,
    around: Around,
    watch: Watch | None,
) -> tuple[dict[str, Samples], list[str]]:
    """Train mode, pass by pass: the forward with its loss, the backward, and the optimizer's step where it is due."""
    training = Training(module.train(), batch, images, around)
    regions: dict[str, Region] = {"train_forward": training.forward, "backward": training.backward}
    if spec.protocol == "steady":
        regions["step"] = training.optimizer.step
    endless = passes(tuple(regions.values()), batch.images.device, watch, training.begin)
    samples, notes = sampled(endless, tuple(regions), spec)
    if spec.protocol == "caffe-time":
        notes.append("optimizer step not timed: the protocol caffe-time has none")
    return samples, notes


class Training:
    """A training pass in its order: `begin`, which is not timed, forward, backward, the optimizer's step.

    The optimizer is SGD with momentum 0.9 at a learning rate of 0: the work of any other rate, while the weights stay
    those of the seed, so that no pass depends on how many went before it.
    """

    def __init__(self, module: nn.Module, batch: Batch, images: Callable[[], Images], around: Around) -> None:
        self.module, self.batch, self.images, self.around = module, batch, images, around
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trainable, lr=0.0, momentum=0.9)
        self.loss: Tensor | None = None

    def begin(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = None

    def forward(self) -> None:
        fed = self.batch._replace(images=self.images())
        with self.around():
            self.loss = loss_of(self.module, fed)

    def backward(self) -> None:
        assert self.loss is not None, "backward before forward"
        self.loss.backward()


def sampled(endless: Iterator[Pass], names: Sequence[str], spec: ProfileSpec) -> tuple[dict[str, Samples], list[str]]:
    """The samples of each region by the spec's protocol, and what must be said of them."""
    steady = spec.protocol == "steady"
    with collector_off():
        warmup, measured, notes = steadily(endless, names[0], spec) if steady else caffe_time(endless, spec)
    regions = {}
    for index, name in enumerate(names):
        times = column(measured, index)
        verdict = stable(times) if steady else None
        if steady and not verdict:
            notes.append(f"{name} {'not judged' if verdict is None else 'unstable'}: {unrest(times)}")
        marks, untold = throttle_marks(measured, index)
        notes += [f"{name}: {words}" for words in untold]
        regions[name] = Samples(times, column(warmup, index), verdict, marks)
    return regions, notes


def throttle_marks(measured: Sequence[Pass], index: int) -> tuple[tuple[bool, ...], list[str]]:
    """A mark for each sample of one region; none where some cannot be told, and then words if others were throttled."""
    found = [one.throttled[index] for one in measured]
    told = tuple(mark for mark in found if mark is not None)
    if len(told) == len(found):
        return told, []
    words = f"throttled in {sum(told)} samples, not told in {len(found) - len(told)}; none marked"
    return (), [words] if any(told) else []


def caffe_time(endless: Iterator[Pass], spec: ProfileSpec) -> tuple[list[Pass], list[Pass], list[str]]:
    """Warm-up passes, measured ones, no notes."""
    return list(islice(endless, spec.warmup)), list(islice(endless, spec.repetitions)), []


def steadily(endless: Iterator[Pass], name: str, spec: ProfileSpec) -> tuple[list[Pass], list[Pass], list[str]]:
    """Warm-up passes, measured ones, and notes where `max_seconds` ended either."""
    began, notes = time.perf_counter_ns(), []
    half, whole = (began + round(share * spec.max_seconds * 1e9) for share in (0.5, 1.0))
    warmup, done = collect(endless, to_settle, spec.min_seconds, half)
    if not done:
        notes.append(f"{name}: half of max_seconds ended its warm-up at pass {len(warmup)}, before it was steady")
    measured, done = collect(endless, lambda taken: spec.min_samples, spec.min_seconds, whole, FEWEST)
    if not done:
        notes.append(f"{name}: max_seconds ended its measurement after {len(measured)} samples")
    return warmup, measured, notes


def collect(
    endless: Iterator[Pass],
    wanted: Callable[[list[Pass]], int],
    min_seconds: float,
    deadline_ns: int,
    fewest: int = 1,
) -> tuple[list[Pass], bool]:
    """Passes until there are as many as wanted that took `min_seconds` together (True), or the deadline (False).

    `wanted` is asked when there are as many as it last said, and may then want more.
    """
    taken: list[Pass] = []
    seconds, goal = 0.0, 0
    while True:
        if seconds >= min_seconds and len(taken) >= goal:
            goal = wanted(taken)
            if len(taken) >= goal:
                return taken, True
        if len(taken) >= fewest and time.perf_counter_ns() >= deadline_ns:
            return taken, False
        taken.append(next(endless))
        seconds += sum(taken[-1].times_ms) / 1e3


def to_settle(warmup: Sequence[Pass]) -> int:
    """As many passes as there are, where they have settled, else a tenth more: to judge a hundred thousand of them
    takes longer than many a pass, and a device that waits meanwhile cools down."""
    if warmup and all(warm(column(warmup, index)) for index in range(len(warmup[0].times_ms))):
        return len(warmup)
    return len(warmup) + max(1, len(warmup) // 10)


def column(passes: Sequence[Pass], index: int) -> tuple[float, ...]:
    """One region's times in ms."""
    return tuple(one.times_ms[index] for one in passes)


def passes(
    regions: Sequence[Region], device: torch.device, watch: Watch | None, begin: Callable[[], None] | None = None
) -> Iterator[Pass]:
    """One pass after the other, without end; `begin` is called before each, and nothing of it is timed."""
    while True:
        if begin:
            begin()
        # With the collector off, what passes leave in cycles (activations, perhaps) would pile up. Only the youngest
        # objects are looked at: a full collection takes longer than many a pass.
        gc.collect(0)
        times, marks = [], []
        for region in regions:
            times.append(clock(region, device))
            marks.append(watch() if watch else None)
        yield Pass(tuple(times), tuple(marks))


def clock(region: Region, device: torch.device) -> float:
    """One run of the region: its time in ms."""
    if device.type != "cuda":
        begin = time.perf_counter_ns()
        region()
        return (time.perf_counter_ns() - begin) / 1e6
    with torch.cuda.device(device):  # events and the current stream belong to the current device
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        region()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end)


@contextmanager
def collector_off() -> Iterator[None]:
    """Python's garbage is collected now, and not again while this lasts."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
