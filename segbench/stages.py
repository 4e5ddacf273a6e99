"""Train, evaluate, profile: each is done once for its key, and read from the work folder ever after.

Every stage is a generator of its own steps; what it returns are plain facts for the record. A stage that was left
half-way goes on (training) or starts again (the short ones).
"""

import time
from collections.abc import Callable, Collection, Generator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from segbench.data.batches import Frames
from segbench.data.class_weights import class_weights
from segbench.engine import checkpoint
from segbench.engine.checkpoint import Progress
from segbench.engine.distributed import Ended, ended, first_to_end, is_first, processes, spread, told
from segbench.engine.evaluate import Found, Scored, evaluate
from segbench.engine.train import Step, TrainingError, Validation, train
from segbench.models.build import build
from segbench.models.imagenet import weights_digest
from segbench.precision import products_of
from segbench.preparation import Prepared, network
from segbench.profiling.profile import profile
from segbench.store.environment import environment
from segbench.store.files import Work
from segbench.suite.plan import Keys, Run, kept_iterations

Facts = dict[str, Any]
Event = TypeVar("Event")
Result = TypeVar("Result")


class Profiling(NamedTuple):
    """The costs of a model are about to be measured, in fresh processes and for a while."""

    label: str


def here(prepared: Prepared) -> Facts:
    """On what, and when, a stage ran."""
    return environment(prepared.device_name, torch.get_num_threads()) | {"processes": processes()}


def trained(
    run: Run, keys: Keys, prepared: Prepared, frames: dict[str, Frames], work: Work
) -> Generator[Step | Validation, None, Facts]:
    """Train unless every checkpoint that some run needs is there."""
    assert run.recipe is not None and keys.train is not None and run.seed is not None
    keep = kept_iterations(prepared.runs, prepared.keys, keys.train)
    facts, place = work.facts("train", keys.train), work.place("train", keys.train)
    if facts and kept_all(place, {*keep, facts["iteration"]}, facts["selected"]):
        checkpoint.conclude(place, checkpoint.Progress(selected=facts["selected"]))  # a kill may have cut it short
        return facts
    # Perhaps finished once, for a suite that kept fewer checkpoints; what that one kept stays wanted, and stays there
    # until it has been made again.
    keep |= {int(path.stem) for path in place.glob("*.safetensors") if path.stem.isdecimal()}
    work.begin("train", keys.train)
    progress = yield from led(training, run, keys, keep, prepared, frames, work)
    weights = loss_weights(run, prepared)
    facts = asdict(progress) | {
        "digest": weights_digest(place / f"{progress.iteration}.safetensors"),
        "class_weights": None if weights is None else [round(float(w), 6) for w in weights],
        "environment": here(prepared),
    }
    work.finish("train", keys.train, facts)
    checkpoint.conclude(place, progress)
    return facts


def training(
    run: Run, keys: Keys, keep: Collection[int], prepared: Prepared, frames: dict[str, Frames], work: Work
) -> Generator[Step | Validation, None, Progress]:
    """The part of a training that several processes do together."""
    assert run.recipe is not None and keys.train is not None and run.seed is not None
    return train(
        network(run, prepared),
        frames["train"],
        run.recipe,
        prepared.num_classes,
        run.seed,
        work.place("train", keys.train),
        prepared.device,
        class_weights=loss_weights(run, prepared),
        validation=frames.get("val"),
        keep=keep,
    )


def loss_weights(run: Run, prepared: Prepared) -> Float[Tensor, " k"] | None:
    """A weight for each class, where the recipe asks for some."""
    assert run.recipe is not None
    if run.recipe.class_weights == "natural":
        return None
    assert prepared.train_counts is not None
    shipped = prepared.datasets["train"].shipped_weights
    return torch.from_numpy(class_weights(run.recipe.class_weights, prepared.train_counts, shipped)).float()


def kept_all(place: Path, keep: Collection[int], selected: int | None) -> bool:
    """Whether a finished training's checkpoints are all there."""
    names = [str(iteration) for iteration in keep] + ([f"best-{selected}"] if selected else [])
    return all((place / f"{name}.safetensors").is_file() for name in names)


def evaluated(
    run: Run, at: str, keys: Keys, prepared: Prepared, frames: Frames, work: Work
) -> Generator[Scored, None, Facts]:
    """Predict and count the test split with one checkpoint of the training that is there now."""
    assert run.score is not None
    key = keys.evaluate[at]
    training = work.facts("train", keys.train)
    network_digest = training["digest"] if training else None
    facts = work.facts("evaluate", key)
    # A training that was done again need not have come out the same on a GPU; its old scores are not its own.
    if facts and facts.pop("network") == network_digest and (work.place("evaluate", key) / "counts.npz").is_file():
        return facts
    name = None
    if training and keys.train:
        name = {"best": f"best-{training['selected']}", "last": str(training["iteration"])}.get(at, at)
    work.folder("evaluate", key)
    began = time.perf_counter()
    found, iteration = yield from led(scoring, run, keys, at, name, prepared, {"test": frames}, work)
    facts = {
        "iteration": iteration,
        **found._asdict(),
        "split": frames.dataset.split,
        "images": len(frames),
        "size": "x".join(map(str, frames.dataset.size)),
        "seconds": time.perf_counter() - began,
        "environment": here(prepared),
    }
    work.finish("evaluate", key, facts | {"network": network_digest})
    return facts


def scoring(
    run: Run, keys: Keys, at: str, name: str | None, prepared: Prepared, frames: dict[str, Frames], work: Work
) -> Generator[Scored, None, tuple[Found, int | None]]:
    """The part of an evaluation that several processes do together, with the checkpoint of that name; what was found,
    and of which iteration the checkpoint is."""
    assert run.score is not None
    model, iteration = network(run, prepared, begun=not keys.train), None
    if name is not None and is_first():
        iteration = checkpoint.load_weights(work.place("train", str(keys.train)) / f"{name}.safetensors", model)
    spread(model.state_dict().values())
    folder = work.place("evaluate", keys.evaluate[at])
    with products_of("fp32", prepared.device):  # as in validation, whatever the user's or torch's defaults
        found = yield from evaluate(
            model, frames["test"], prepared.num_classes, run.score, prepared.device, folder, run.inference
        )
    return found, iteration


def led(part: Callable[..., Generator[Event, None, Result]], *arguments: Any) -> Generator[Event, None, Result]:
    """`part(*arguments)`, done together with the other processes where there are any (`together.py`): they are told
    all but the last three arguments, of which each has its own.

    What the first process alone decides leaves all of them ready for the next part. Anything else ends the job.
    """
    *order, prepared, frames, work = arguments
    if ended():
        raise Ended
    told((part, *order))
    try:
        return (yield from part(*order, prepared, frames, work))
    except TrainingError:
        raise
    except BaseException as error:
        if not first_to_end() and isinstance(error, Exception):
            raise Ended from error
        raise


def profiled(run: Run, keys: Keys, prepared: Prepared, work: Work) -> Generator[Profiling, None, Facts]:
    """Measure time, memory and size; runs that differ in seed or recipe alone share the measurement."""
    assert run.profile is not None and keys.profile is not None
    facts = work.facts("profile", keys.profile)
    if facts:
        return facts
    yield Profiling(run.label)
    factory = partial(build, run.model, prepared.num_classes, run.options, run.profile.res, run.input)
    usage = profile(factory, prepared.num_classes, run.profile, str(prepared.device))
    facts = {"usage": usage.to_dict(), "environment": here(prepared)}
    work.folder("profile", keys.profile)
    work.finish("profile", keys.profile, facts)
    return facts


class Stages(NamedTuple):
    """Who does the stages: the functions above, or others that have them done elsewhere."""

    trained: Callable[..., Generator[Step | Validation, None, Facts]]
    evaluated: Callable[..., Generator[Scored, None, Facts]]
    profiled: Callable[..., Generator[Profiling, None, Facts]]


LOCAL = Stages(trained, evaluated, profiled)
