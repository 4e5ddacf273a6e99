"""One model's cost at one resolution on one device: times here, memory in fresh processes, size and work by counting.

Random input, random weights, a fixed seed: everything but times and memory repeats exactly. Nothing of the caller is
left changed: its random generators and precision flags return, and the device memory that its caches hold is given
back first.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from segbench.errors import ModelError, SegbenchError, SettingError
from segbench.profiling.complexity import complexity
from segbench.profiling.device import cuda_uuid, device_name, device_state
from segbench.profiling.failure import in_words
from segbench.profiling.memory import Job, Weighed, unmeasured, weigh
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.timing import Times, time_model
from segbench.profiling.usage import Usage
from segbench.profiling.workload import Factory, exact_fp32, random_batch, seeded
from segbench.spec import write_size


def profile(factory: Factory, num_classes: int, spec: ProfileSpec, device: str = "cpu") -> Usage:
    """Measure what `factory()` costs.

    `factory` gives a model from [n, 3, h, w] to logits [n, num_classes, h, w]; memory needs it picklable by name (a
    module's function or class, or a `functools.partial` of one), else its numbers are None with a note. In the scope
    `model+input` the model's `input` goes from uint8 RGB [n, 3, h, w] to what it is fed. Raises `ModelError` when the
    model cannot be built or run at this resolution, or has no `input` to measure, `SettingError` for a device that is
    not there.
    """
    chosen = existing_device(device)
    with model_errors(f"profile at {write_size(spec.res)} on {chosen}"), guarded(chosen):
        counted = complexity(factory, spec.res)
        times = timed(factory, num_classes, spec, chosen)
        state, state_notes = device_state(cuda_uuid(chosen))  # now, while the clocks are still those of the work
    weighed = weigh_both(factory, num_classes, spec, chosen)
    notes = (*counted.notes, *times.notes, *state_notes, *weighed.notes)
    return Usage(
        device=device_name(chosen),
        res=spec.res,
        protocol=spec.protocol,
        time_batch=spec.time_batch,
        train_memory_batch=spec.train_memory_batch,
        infer_memory_batch=spec.infer_memory_batch,
        threads=torch.get_num_threads(),
        forward_ms=times.forward,
        train_forward_ms=times.train_forward,
        backward_ms=times.backward,
        memory_mib=weighed.mib,
        parameters=counted.parameters,
        trainable_parameters=counted.trainable_parameters,
        parameter_mb=counted.parameter_mb,
        macs=counted.macs,
        device_state=state,
        notes=tuple(dict.fromkeys(notes)),
        scope=spec.scope,
    )


def existing_device(device: str) -> torch.device:
    """`cpu`, `cuda` (the current one) or `cuda:1`; raises `SettingError` for others and for absent ones."""
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise SettingError(f'device "{device}" is not a device; write cpu, cuda or cuda:N') from error
    if chosen.type == "cpu":
        return chosen
    count = torch.cuda.device_count() if chosen.type == "cuda" and torch.cuda.is_available() else 0
    if chosen.type != "cuda" or (chosen.index or 0) >= count:
        raise SettingError(f'device "{device}" cannot be profiled: this machine has cpu and {count} CUDA devices')
    return torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)


@contextmanager
def model_errors(where: str) -> Iterator[None]:
    """Whatever the model raises becomes a `ModelError` of one line; our own errors keep their words."""
    try:
        yield
    except SegbenchError as error:
        raise ModelError(f"{where}: {error}") from error
    except Exception as error:  # somebody's model may raise anything
        raise ModelError(f"{where}: {in_words(error)}") from error


@contextmanager
def guarded(device: torch.device) -> Iterator[None]:
    """Generators and precision flags return afterwards; freed device memory is not kept from the children."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), exact_fp32():
        try:
            yield
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def timed(factory: Factory, num_classes: int, spec: ProfileSpec, device: torch.device) -> Times:
    """In a function of its own, so that model and batch are gone before memory is measured."""
    model = seeded(factory, device, spec.scope)
    batch = random_batch(spec.time_batch, spec.res, num_classes, device, spec.scope)
    return time_model(model, batch, num_classes, spec.warmup, spec.repetitions)


def weigh_both(factory: Factory, num_classes: int, spec: ProfileSpec, device: torch.device) -> Weighed:
    """Training and inference, one process after the other."""
    mib: dict[str, float | None] = {}
    notes: list[str] = []
    for train, batch in ((True, spec.train_memory_batch), (False, spec.infer_memory_batch)):
        threads, uuid = torch.get_num_threads(), cuda_uuid(device) or ""
        job = Job(factory, num_classes, spec.res, batch, train, str(device), threads, uuid, spec.scope)
        weighed = weigh(job) if spec.memory else unmeasured(job, "memory not measured: memory is false in the profile")
        mib |= weighed.mib
        notes += weighed.notes
    return Weighed(mib, tuple(notes))
