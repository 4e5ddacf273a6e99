"""How much memory a model needs, each number from a fresh process that did nothing else.

*Training* is SGD with momentum: weights, gradients, momentum, activations, images and labels of the batch.
*Inference* is one forward in inference mode, without labels. Weights are in both. Images are what the network is fed,
as floats, and what a model's `input` needs to make them of 8-bit frames (local normalisation included) is in neither;
in the scope `model+input` they are the 8-bit frames, and all that `input` makes of them is in both.

CPU, `peak_rss`: the highest resident set above that of a process which has imported torch, the model's modules
included, and has run or trained one tiny convolution. CUDA, four kinds, because no single one is "the" memory:
`allocated` (tensors at their peak), `reserved` (what PyTorch's caching allocator took for them), `nvml_process`
(that, with context and libraries) and `nvml_device` (the rise of the whole device's use, for where NVML hides the
process). NVML has no peak, but the allocator keeps what it reserved until the reading at the end.
"""

import ctypes
import gc
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from segbench.profiling.device import MIB, nvml_memory
from segbench.profiling.fresh import call_fresh
from segbench.profiling.spec import Scope
from segbench.profiling.workload import Factory, check_logits, exact_fp32, loss_of, random_batch, random_images, seeded

# The first step makes the momentum, after its activations are gone; only the second holds all at once.
TRAIN_STEPS = 2
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CPU_KINDS = ("peak_rss",)
CUDA_KINDS = ("allocated", "reserved", "nvml_process", "nvml_device")


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

    @property
    def mode(self) -> str:
        return "train" if self.train else "infer"


class Weighed(NamedTuple):
    """MiB by kind (`train_peak_rss`); None where not measured, and the notes that say why."""

    mib: dict[str, float | None]
    notes: tuple[str, ...]


def unmeasured(job: Job, note: str) -> Weighed:
    kinds = CUDA_KINDS if job.device.startswith("cuda") else CPU_KINDS
    return Weighed({f"{job.mode}_{kind}": None for kind in kinds}, (note,))


def weigh(job: Job) -> Weighed:
    """Measure in a fresh process. Never raises for the model: a failure is None with its words in a note."""
    value, error = call_fresh(measure, job)
    if error is not None:
        return unmeasured(job, f"{job.mode} memory at batch {job.batch} not measured: {error}")
    mib, notes = value
    return Weighed({f"{job.mode}_{kind}": number for kind, number in mib.items()}, tuple(notes))


def measure(job: Job) -> tuple[dict[str, float | None], list[str]]:
    """What the fresh process does: MiB by kind without the prefix, and notes."""
    device = torch.device(job.device)
    torch.set_num_threads(job.threads)
    with exact_fp32():
        return measure_cuda(job, device) if device.type == "cuda" else measure_cpu(job, device)


def measure_cpu(job: Job, device: torch.device) -> tuple[dict[str, float | None], list[str]]:
    prime(device, job.train)
    notes = import_modules(job.factory)
    baseline, _, source = resident_mib()
    reset = reset_peak()
    work(job, device)
    _, peak, _ = resident_mib()
    since = "" if reset else ", not reset before the model"
    notes.append(f"{job.mode}_peak_rss: {source}{since}, above a baseline of {baseline:.0f} MiB")
    if peak <= baseline:
        notes.append(f"{job.mode}_peak_rss not measured: the process had peaked before the model")
        return {"peak_rss": None}, notes
    return {"peak_rss": peak - baseline}, notes


def measure_cuda(job: Job, device: torch.device) -> tuple[dict[str, float | None], list[str]]:
    before = nvml_memory(job.uuid, os.getpid())  # first of all: the CUDA context is part of the device's rise
    torch.cuda.set_device(device)
    prime(device, job.train)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work(job, device)
    torch.cuda.synchronize(device)
    after = nvml_memory(job.uuid, os.getpid())
    reserved = torch.cuda.max_memory_reserved(device) / MIB
    mib: dict[str, float | None] = {"allocated": torch.cuda.max_memory_allocated(device) / MIB, "reserved": reserved}
    process, notes = after.process_mib, [after.note] if after.note else []
    if process is not None and process < reserved:
        # In a container our id may be that of a stranger's process outside it.
        process, notes = None, [*notes, "NVML's number of this process id is below PyTorch's own: another process's"]
    mib["nvml_process"], mib["nvml_device"] = process, None
    if before.device_mib is not None and after.device_mib is not None:
        mib["nvml_device"] = after.device_mib - before.device_mib
        notes.append(
            "nvml_device is the rise of the device's use; other processes that start or end meanwhile disturb it"
        )
    return mib, notes


def work(job: Job, device: torch.device) -> None:
    """What is weighed. All tensors are gone when it returns; the peaks remain."""
    model = seeded(job.factory, device, job.scope)
    if not job.train:
        images = random_images(job.batch, job.res, device, job.scope)
        with torch.inference_mode():
            check_logits(model.eval()(images), images, job.num_classes)
        return
    batch = random_batch(job.batch, job.res, job.num_classes, device, job.scope)
    optimizer = torch.optim.SGD([p for p in model.train().parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    for _ in range(TRAIN_STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, batch).backward()
        optimizer.step()


def prime(device: torch.device, train: bool) -> None:
    """One tiny convolution, or training step: contexts, thread pools, late imports (an optimiser's alone: 70 MiB)."""
    model, images = nn.Conv2d(3, 2, 3).to(device), torch.zeros(1, 3, 8, 8, device=device)
    logits = model(images)
    if not train:
        return
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    functional.cross_entropy(logits, torch.zeros(1, 6, 6, dtype=torch.long, device=device)).backward()
    optimizer.step()


def import_modules(factory: Factory) -> list[str]:
    """Build the model on the meta device, without weights, so that the modules that it imports are in the baseline."""
    try:
        with torch.device("meta"):
            factory()
    except Exception:  # it cannot be built there; the real model will tell if it cannot be built at all
        return ["the model cannot be built on the meta device, so the modules that it imports may count as memory"]
    return []


def resident_mib() -> tuple[float, float, str]:
    """Resident set of this process now and at its peak, in MiB, and where they were read.

    Garbage goes first. Without /proc the present size is unknown and the peak so far stands for it.
    """
    gc.collect()
    trim_heap()
    try:
        status = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", STATUS.read_text(), re.MULTILINE))
        return int(status["VmRSS"]) / 1024, int(status["VmHWM"]) / 1024, f"VmHWM of {STATUS}"
    except (OSError, KeyError):
        import resource  # here: Windows has none, and its error then says so

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
        return peak, peak, "ru_maxrss of getrusage"


def reset_peak() -> bool:
    """Set VmHWM back to the present size (Linux, proc(5)); False where that is not allowed."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def trim_heap() -> None:
    """Give freed pages back to the system, where the C library is glibc: they would hide as much of the model."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
