"""How much memory a model needs, each number from a fresh process that did nothing else.

*Training* is SGD with momentum: weights, gradients, momentum, activations, images and labels of the batch.
*Inference* is one forward in inference mode, without labels. Weights are in both. Images are what the network is fed,
as floats, and what a model's `input` needs to make them of 8-bit frames (local normalisation included) is in neither;
in a scope with `+input` they are the 8-bit frames, and all that `input` makes of them is in both. What else a scope may
name (resizing, argmax, transfer) is not weighed, nor are other backends than eager; a note says so. In bf16 and fp16
weights are fp32 and cast at each use (precision.py).

CPU, `peak_rss`: the highest resident set above that of a process which has imported torch, the model's modules
included, and has run or trained one tiny convolution; beside it `weights`, the bytes of parameters and buffers.

CUDA, four kinds, because no single one is "the" memory: `allocated` (tensors at their peak), `reserved` (what PyTorch's
caching allocator took for them), `nvml_process` (that, with context and libraries) and `nvml_device` (the rise of the
whole device's use, for where NVML hides the process). NVML has no peak, but the allocator keeps what it reserved until
the reading at the end, unless memory ran short meanwhile; then a note says how much it gave back. They add up so:

    allocated = weights + batch [+ gradients + optimizer] + activations
    reserved = allocated + cached
    nvml_process = context + reserved, and kernels that were loaded after the context was primed

`weights` (buffers included), `batch` (images, labels), `gradients` and `optimizer` (momentum) are summed over their
tensors when the last pass has ended. `activations` is what the peak had beyond them: activations, their gradients, and
the workspaces of cuDNN and cuBLAS, which take them from PyTorch's allocator. Where the peak came before the last
gradient was made, as much more of it was activations. `cached` is what the allocator held and no tensor used: blocks
that were free again and what was lost to rounding, the difference of two peaks that need not have been at one time.
"""

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from segbench.precision import arranged, autocast_of, laid_out, precision_of, products_of
from segbench.profiling.fresh import call_fresh
from segbench.profiling.nvml import NvmlMemory, nvml_memory
from segbench.profiling.resident import MIB, reset_peak, resident_mib
from segbench.profiling.spec import Scope
from segbench.profiling.workload import Factory, check_logits, loss_of, random_batch, random_images, seeded
from segbench.spec import Precision

# The first step makes the momentum, after its activations are gone; only the second holds all at once.
TRAIN_STEPS = 2
CPU_KINDS = ("peak_rss", "weights")
CUDA_KINDS = (
    *("allocated", "reserved", "nvml_process", "nvml_device"),
    *("context", "weights", "batch", "gradients", "optimizer", "activations", "cached"),
)
TRAINING_ONLY = ("gradients", "optimizer")
# Ten minutes, and as many again for each million pixels of the batch.
PATIENCE_S = 600.0

Mib = dict[str, float | None]


class Job(NamedTuple):
    """One measurement, as it is sent to its process; `res` is height x width, `uuid` NVML's name of a CUDA device."""

    factory: Factory
    num_classes: int
    res: tuple[int, int]
    batch: int
    train: bool
    device: str
    threads: int
    uuid: str = ""
    scope: Scope = "model"
    precision: Precision = "fp32"
    channels_last: bool = False

    @property
    def mode(self) -> str:
        return "train" if self.train else "infer"

    @property
    def patience_s(self) -> float:
        """How long a measurement may take before it counts as hung."""
        return PATIENCE_S * (1 + self.batch * self.res[0] * self.res[1] / 1e6)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which kinds this measurement has."""
        kinds = CUDA_KINDS if self.device.startswith("cuda") else CPU_KINDS
        return tuple(kind for kind in kinds if self.train or kind not in TRAINING_ONLY)


class Weighed(NamedTuple):
    """MiB by kind (`train_peak_rss`); None where not measured, and the notes that say why."""

    mib: Mib
    notes: tuple[str, ...]


def unmeasured(job: Job, note: str) -> Weighed:
    return Weighed({f"{job.mode}_{kind}": None for kind in job.kinds}, (note,))


def weigh(job: Job) -> Weighed:
    """Measure in a fresh process. Never raises for the model: a failure is None with its words in a note."""
    value, error = call_fresh(measure, job, timeout_s=job.patience_s)
    if error is not None:
        return unmeasured(job, f"{job.mode} memory at batch {job.batch} not measured: {error}")
    mib, notes = value
    return Weighed({f"{job.mode}_{kind}": mib[kind] for kind in job.kinds}, tuple(notes))


def measure(job: Job) -> tuple[Mib, list[str]]:
    """What the fresh process does: MiB by kind without the prefix, and notes."""
    device = torch.device(job.device)
    torch.set_num_threads(job.threads)
    return measure_cuda(job, device) if device.type == "cuda" else measure_cpu(job, device)


def measure_cpu(job: Job, device: torch.device) -> tuple[Mib, list[str]]:
    prime(job, device)
    notes = import_modules(job.factory)
    baseline, _, source = resident_mib()
    reset = reset_peak()
    held = work(job, device)
    _, peak, _ = resident_mib()
    since = "" if reset else ", not reset before the model"
    notes.append(f"{job.mode}_peak_rss: {source}{since}, above a baseline of {baseline:.0f} MiB")
    if peak <= baseline:
        notes.append(f"{job.mode}_peak_rss not measured: the process had peaked before the model")
    return {"peak_rss": peak - baseline if peak > baseline else None, "weights": held["weights"]}, notes


def measure_cuda(job: Job, device: torch.device) -> tuple[Mib, list[str]]:
    before = nvml_memory(job.uuid, os.getpid())  # first of all: the CUDA context is part of the device's rise
    torch.cuda.set_device(device)
    prime(job, device)
    torch.cuda.empty_cache()
    torch.cuda.synchronize(device)
    primed = Reading(nvml_memory(job.uuid, os.getpid()), torch.cuda.memory_reserved(device) / MIB)
    torch.cuda.reset_peak_memory_stats(device)
    held = work(job, device)
    torch.cuda.synchronize(device)
    after = Reading(nvml_memory(job.uuid, os.getpid()), torch.cuda.memory_reserved(device) / MIB)
    allocated = torch.cuda.max_memory_allocated(device) / MIB
    reserved = torch.cuda.max_memory_reserved(device) / MIB
    mib: Mib = {"allocated": allocated, "reserved": reserved, **held}
    mib["activations"], mib["cached"] = allocated - sum(held.values()), reserved - allocated
    seen, notes = nvml_kinds(before, primed, after)
    notes.append(f"{job.mode}_activations include the workspaces of cuDNN and cuBLAS at the peak")
    if after.reserved_mib < reserved:
        gone = f"PyTorch gave {reserved - after.reserved_mib:.0f} MiB back before NVML was read"
        notes.append(f"{gone}: nvml_process and nvml_device are as much below their peaks")
    return mib | seen, notes


class Reading(NamedTuple):
    """What NVML says is in use, and what PyTorch's allocator says that it holds, at one time."""

    nvml: NvmlMemory
    reserved_mib: float


def nvml_kinds(before: NvmlMemory, primed: Reading, after: Reading) -> tuple[Mib, list[str]]:
    """`nvml_process`, `nvml_device` and `context` of the readings before CUDA, with its context, and at the end."""
    process, notes = after.nvml.process_mib, [after.nvml.note] if after.nvml.note else []
    if process is not None and process < after.reserved_mib:
        # In a container our id may be that of a stranger's process outside it.
        process, notes = None, [*notes, "NVML's number of this process id is below PyTorch's own: another process's"]
    primed_mib = rise(before, primed.nvml) if process is None else primed.nvml.process_mib
    rose = rise(before, after.nvml)
    if rose is not None:
        notes.append(
            "nvml_device is the rise of the device's use; other processes that start or end meanwhile disturb it"
        )
    context = None if primed_mib is None else primed_mib - primed.reserved_mib
    if context is not None and process is None:
        notes.append("context is the rise of the device's use too")
    return {"nvml_process": process, "nvml_device": rose, "context": context}, notes


def rise(before: NvmlMemory, after: NvmlMemory) -> float | None:
    """Of the whole device's use, MiB."""
    if before.device_mib is None or after.device_mib is None:
        return None
    return after.device_mib - before.device_mib


def work(job: Job, device: torch.device) -> dict[str, float]:
    """What is weighed: MiB of the tensors that remain when it ends. They are gone when it returns, the peaks remain."""
    model = laid_out(seeded(job.factory, device, job.scope), job.channels_last)
    return train(job, model, device) if job.train else infer(job, model, device)


def infer(job: Job, model: nn.Module, device: torch.device) -> dict[str, float]:
    images = arranged(random_images(job.batch, job.res, device, job.scope), job.channels_last)
    with torch.inference_mode(), precision_of(job.precision, device):
        check_logits(model.eval()(images), images, job.num_classes)
    return {"weights": size_mib(weights_of(model)), "batch": size_mib([images])}


def train(job: Job, model: nn.Module, device: torch.device) -> dict[str, float]:
    batch = random_batch(job.batch, job.res, job.num_classes, device, job.scope)
    batch = batch._replace(images=arranged(batch.images, job.channels_last))
    optimizer = torch.optim.SGD([p for p in model.train().parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    with products_of(job.precision, device):
        for _ in range(TRAIN_STEPS):
            optimizer.zero_grad(set_to_none=True)
            with autocast_of(job.precision, device):
                loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
        del loss
    momenta = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return {
        "weights": size_mib(weights_of(model)),
        "batch": size_mib(batch),
        "gradients": size_mib(p.grad for p in model.parameters() if p.grad is not None),
        "optimizer": size_mib(momenta),
    }


def weights_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def size_mib(tensors: Iterable[Tensor]) -> float:
    """Of their storages, each counted once, however many tensors look at it."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / MIB


def prime(job: Job, device: torch.device) -> None:
    """One tiny convolution, or training step: contexts, thread pools, late imports (an optimiser's alone: 70 MiB)."""
    model, images = nn.Conv2d(3, 2, 3).to(device), torch.zeros(1, 3, 8, 8, device=device)
    with products_of(job.precision, device):
        with autocast_of(job.precision, device):
            logits = model(images)
            loss = functional.cross_entropy(logits, torch.zeros(1, 6, 6, dtype=torch.long, device=device))
        if not job.train:
            return
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        loss.backward()
        optimizer.step()


def import_modules(factory: Factory) -> list[str]:
    """Build the model on the meta device, without weights, so that the modules that it imports are in the baseline."""
    try:
        with torch.device("meta"):
            factory()
    except Exception:  # it cannot be built there; the real model will tell if it cannot be built at all
        return ["the model cannot be built on the meta device, so the modules that it imports may count as memory"]
    return []
