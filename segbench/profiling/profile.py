"""One model's cost at one resolution on one device: times here, memory in fresh processes, size and work by counting.

Random input, random weights, a fixed seed: everything but times, energy and memory repeats exactly. Nothing of the
caller is left changed: its random generators and precision flags return, and the device memory that its caches hold is
given back first. With the backend `compile` alone, what the caller has compiled is compiled again at its next use
(backends.py).
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segbench.errors import ModelError, SegbenchError, SettingError
from segbench.precision import arranged, autocast_of, products_of
from segbench.profiling.backends import Forward, inference, training
from segbench.profiling.complexity import complexity
from segbench.profiling.device import DeviceWatch, cuda_uuid, device_name
from segbench.profiling.energy import Energy, energy_of
from segbench.profiling.failure import in_words
from segbench.profiling.isolation import check_isolation
from segbench.profiling.largest import search
from segbench.profiling.memory import Job, Mib, unmeasured, weigh
from segbench.profiling.scopes import Pipeline, pipeline
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.timing import Times, time_model
from segbench.profiling.usage import ASKED, Usage
from segbench.profiling.variants import deviation, exact_logits, is_reference, without_zeros
from segbench.profiling.workload import Factory, Images, random_batch, seeded
from segbench.spec import write_size

NO_TRAINING = "training memory not measured: training is false in the profile"


class Ran(NamedTuple):
    """What was found by running the model in this process."""

    times: Times
    energy: Energy
    deviation: dict[str, float | None] | None
    state: dict[str, Any]
    notes: tuple[str, ...]


class Memory(NamedTuple):
    """What was found in fresh processes."""

    mib: Mib
    largest: dict[str, int | None]
    notes: tuple[str, ...]


def profile(factory: Factory, num_classes: int, spec: ProfileSpec, device: str = "cpu") -> Usage:
    """Measure what `factory()` costs.

    `factory` gives a model from [n, 3, h, w] to logits [n, num_classes, h, w]; memory needs it picklable by name (a
    module's function or class, or a `functools.partial` of one), else its numbers are None with a note. In a scope
    with `+input` the model's `input` goes from uint8 RGB [n, 3, h, w] to what it is fed. Raises `SettingError`, before
    anything is measured, for a device that is not there and for one that is not ours alone where `isolation` is
    `error`; `ModelError` when the model cannot be built or run as asked, or somebody else came meanwhile.
    """
    chosen = existing_device(device)
    where = f"profile at {write_size(spec.res)} on {chosen}"
    with model_errors(where):
        torch.zeros(1, device=chosen)  # a context, without which NVML's list of processes cannot hold this one
    strangers = check_isolation(cuda_uuid(chosen), spec.isolation)
    with model_errors(where), guarded(chosen):
        counted = complexity(factory, spec.res)
        ran = run_here(factory, num_classes, spec, chosen)
        strangers += check_isolation(cuda_uuid(chosen), spec.isolation)
    weighed = weigh_all(factory, num_classes, spec, chosen)
    notes = (*strangers, *counted.notes, *ran.notes, *weighed.notes)
    return Usage(
        **{key: getattr(spec, key) for key in ASKED},
        device=device_name(chosen),
        threads=torch.get_num_threads(),
        forward_ms=ran.times.forward,
        train_forward_ms=ran.times.train_forward,
        backward_ms=ran.times.backward,
        step_ms=ran.times.step,
        energy_mj=ran.energy.mj,
        energy_source=ran.energy.source,
        deviation=ran.deviation,
        device_state=ran.state,
        memory_mib=weighed.mib,
        largest_batch=weighed.largest,
        parameters=counted.parameters,
        trainable_parameters=counted.trainable_parameters,
        parameter_mb=counted.parameter_mb,
        file_mb=counted.file_mb,
        macs=counted.macs,
        activation_mib=counted.activation_mib,
        notes=tuple(dict.fromkeys(notes)),
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
    """Generators return afterwards; freed device memory is not kept from the children."""
    # A seed is set on every GPU that is in use, whichever this is.
    seeded_too = range(torch.cuda.device_count()) if device.type == "cuda" or torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=seeded_too):
        gc.collect()  # an earlier profile that ran out of memory was held by its error until now
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            yield
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def run_here(factory: Factory, num_classes: int, spec: ProfileSpec, device: torch.device) -> Ran:
    """How far the variant's logits are off, before any training pass changes the statistics of normalisations; then
    times, then energy.

    In a function of its own, so that model and batch are gone before memory is measured.
    """
    network = seeded(factory, device)
    filled = without_zeros(network)
    with (
        pipeline(network, spec, num_classes, device) as around_network,
        products_of(spec.precision, device),
    ):
        trained = training(network, spec) if spec.training else None  # compiles when it is run, below
        autocast = autocast_of(spec.precision, device)
        forward, off = ready(network, around_network.images(), spec, autocast)

        def variant(images: Images) -> Tensor:
            with autocast:
                return forward(images)

        region = around_network.through(variant, num_classes)
        with DeviceWatch(cuda_uuid(device)) as watch:
            times = timed(trained, region, around_network, num_classes, spec, device, watch)
        energy = measured_energy(region, spec, device)
    energy_note = [energy.note] if energy.note else []
    return Ran(times, energy, off, watch.state, (*filled, *forward.notes, *times.notes, *energy_note, *watch.notes))


def ready(
    network: nn.Module, images: Images, spec: ProfileSpec, autocast: torch.autocast
) -> tuple[Forward, dict[str, float | None] | None]:
    """The variant's forward, and its deviation from fp32 eager on these images; the logits are gone afterwards."""
    expected = None if is_reference(spec) else exact_logits(network, images)
    with autocast:
        forward = inference(network, arranged(images, spec.channels_last), spec)
        found = None if expected is None else forward(arranged(images, spec.channels_last))
    return forward, None if expected is None or found is None else deviation(expected, found)


def timed(
    trained: nn.Module | None,
    region: Callable[[], object],
    around_network: Pipeline,
    num_classes: int,
    spec: ProfileSpec,
    device: torch.device,
    watch: DeviceWatch,
) -> Times:
    """Training, where it is asked for and the backend has one, then inference."""
    times = time_model(
        trained,
        region,
        random_batch(spec.time_batch, spec.res, num_classes, device),
        spec,
        images=around_network.images,
        around=partial(autocast_of, spec.precision, device),
        watch=watch,
    )
    if trained is not None:
        return times
    reason = f"{spec.backend} only infers" if spec.training else "training is false in the profile"
    return times._replace(notes=(f"training not timed: {reason}", *times.notes))


@torch.inference_mode()
def measured_energy(region: Callable[[], object], spec: ProfileSpec, device: torch.device) -> Energy:
    if not spec.energy:
        return Energy(None, None, "energy not measured: energy is false in the profile")
    return energy_of(region, spec.time_batch, device, cuda_uuid(device), spec.min_seconds)


def weigh_all(factory: Factory, num_classes: int, spec: ProfileSpec, device: torch.device) -> Memory:
    """Training and inference, one process after the other; then the largest batches, where they are asked for."""
    mib: Mib = {}
    largest: dict[str, int | None] = {}
    notes: list[str] = []
    for train, batch in ((True, spec.train_memory_batch), (False, spec.infer_memory_batch)):
        job = Job(
            factory,
            num_classes,
            spec.res,
            batch,
            train,
            str(device),
            torch.get_num_threads(),
            uuid=cuda_uuid(device) or "",
            scope=spec.scope,
            precision=spec.precision,
            channels_last=spec.channels_last,
        )
        left_out = not_weighed(job, spec)
        weighed = unmeasured(job, left_out) if left_out else weigh(job)
        mib |= weighed.mib
        notes += weighed.notes
        if spec.largest_batch:
            largest[job.mode], more = search(job) if spec.training or not train else (None, (NO_TRAINING,))
            notes += more
    return Memory(mib, largest, (*notes, *memory_notes(spec)))


def not_weighed(job: Job, spec: ProfileSpec) -> str | None:
    """Why this memory was not asked for."""
    if not spec.memory:
        return "memory not measured: memory is false in the profile"
    return NO_TRAINING if job.train and not spec.training else None


def memory_notes(spec: ProfileSpec) -> list[str]:
    """In what the memory is that of another thing than the times are."""
    notes: list[str] = []
    if not (spec.memory or spec.largest_batch):
        return notes
    if spec.backend != "eager" or spec.cuda_graphs:
        notes.append(f"memory is that of eager mode, not of {'CUDA graphs' if spec.cuda_graphs else spec.backend}")
    left_out = [f"+{part}" for part in spec.scope.split("+") if part not in ("model", "input")]
    if left_out:
        notes.append(f"memory is without {', '.join(left_out)} of the scope")
    return notes
