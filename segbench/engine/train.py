"""Training as a generator: it yields each step and each validation, and can be left and taken up at any of them.

What an iteration does follows from the recipe, the seed, the iteration and the state before it alone: the images
(`order.py`), how they are augmented (`augment.py`) and every random number that the network draws, whose generators are
seeded anew for each iteration. So the state to go on from is weights, optimizer and history, and a training that was
killed and goes on is the training that was not.

Losses are read one iteration late: reading one waits for the device, which would wait for the host in turn. Whatever is
saved is saved after its losses have been read, so no checkpoint holds weights behind a loss that is not finite.

Training never reads the statistics that batch normalisation stores, so replacing them before a validation or a
checkpoint (`batchnorm.py`) changes no weight. Whatever interrupts such a pass, the state saved before it stands.
"""

import math
import time
from collections import deque
from collections.abc import Collection, Generator, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from segbench.data.batches import Batch, Frames
from segbench.data.prefetch import prefetched
from segbench.engine import batchnorm, checkpoint
from segbench.engine.augment import augmented, image_seeds
from segbench.engine.checkpoint import Progress
from segbench.engine.data_parallel import batch_loss, normalised_together, nothing_to_learn, parallel
from segbench.engine.determinism import computing
from segbench.engine.distributed import agreed, is_first, processes, rank, share, told
from segbench.engine.optimizer import make_optimizer, set_rates
from segbench.engine.order import batch_indices
from segbench.engine.recipe import Recipe
from segbench.engine.schedule import factor
from segbench.engine.update import Loss, Update
from segbench.engine.validation import is_best, is_due, out_of_patience, validate
from segbench.errors import RecordError
from segbench.precision import laid_out

SAVE_EVERY_S = 60.0
"""A training that is killed loses at most about this much, and the pass over data that it was in; one that is
interrupted between steps loses nothing."""

UNREAD = 1
"""Iterations that the device may be behind the host."""


class TrainingError(Exception):
    """A training that cannot go on, for a reason in its numbers."""


class Step(NamedTuple):
    """One update: `iteration` counts from 1; `seconds` is what it took, data included."""

    iteration: int
    loss: float
    seconds: float
    images_per_s: float


class Validation(NamedTuple):
    """A score on the validation split; `best` when no earlier one was as high."""

    iteration: int
    score: float
    best: bool


def train(
    model: nn.Module,
    frames: Frames,
    recipe: Recipe,
    num_classes: int,
    seed: int,
    folder: Path,
    device: torch.device,
    *,
    class_weights: Float[Tensor, " k"] | None = None,
    validation: Frames | None = None,
    keep: Collection[int] = (),
) -> Generator[Step | Validation, None, Progress]:
    """Train `model` in place; keeps `<iteration>.safetensors`, the selected `best-<iteration>.safetensors` and
    `resume.safetensors` in folder.

    `recipe.iterations` is known (`order.with_length`). `class_weights` [K]; `keep`: iterations whose weights are kept
    beside the last. When `folder` holds an interrupted training that kept all of them so far, goes on from there.
    Raises `TrainingError` when the loss is not finite. One training at a time: what `computing` sets holds until the
    generator ends, for whoever iterates as well.
    """
    assert recipe.iterations is not None, "a recipe whose length is not known yet"
    with computing(recipe, device):
        laid_out(model.to(device), recipe.channels_last)
        optimizer = make_optimizer(model, recipe)
        weights = None if class_weights is None else class_weights.to(device)
        loss_of = partial(batch_loss, void=num_classes, class_weights=weights, normaliser=recipe.loss_normaliser)
        update = Update(parallel(model, recipe, device), optimizer, recipe, device, loss_of)
        progress = resumed(folder, keep, model, optimizer, update)
        batches = feed(frames, recipe, num_classes, seed, progress.iteration, device)
        unread: deque[Loss] = deque()
        saved = time.monotonic()
        try:
            while agreed(not ended(progress, recipe)):
                began = time.perf_counter()
                given = next(batches)
                progress.waited_s += time.perf_counter() - began
                set_rates(optimizer, factor(recipe.schedule, progress.iteration, recipe.iterations))
                seed_generators(seed, progress.iteration)
                unread.append(update(given))
                progress.iteration += 1
                kept = progress.iteration in keep or progress.iteration == recipe.iterations
                scored = validation if is_due(progress.iteration, recipe) else None
                rests = kept or scored is not None or time.monotonic() - saved > SAVE_EVERY_S
                losses = read(unread, 0 if rests else UNREAD, progress)
                took = time.perf_counter() - began
                if scored is not None and not agreed(True):
                    break  # the first process, which judges them, has found one that is not finite
                if recipe.norm_statistics == "training-set" and (kept or scored is not None):
                    batchnorm.use_training_set(model, frames, normalised_together(recipe), device)
                found = None if scored is None else select(model, scored, recipe, num_classes, folder, device, progress)
                progress.seconds += time.perf_counter() - began
                if kept or ended(progress, recipe):
                    keep_weights(folder / f"{progress.iteration}.safetensors", model, progress.iteration)
                if rests:
                    save(folder, model, optimizer, progress, update)
                    saved = time.monotonic()
                yield from steps(losses, progress, took, recipe)
                if found is not None:
                    yield found
        except GeneratorExit:
            # Whoever took the last step wants no more (Ctrl-C, say): the model stands between two steps.
            with suppress(TrainingError, RecordError):
                read(unread, 0, progress)
                save(folder, model, optimizer, progress, update)
            agreed(False)
            raise
        except TrainingError:
            agreed(False)
            raise
        finally:
            batches.close()
    return progress


def resumed(
    folder: Path, keep: Collection[int], model: nn.Module, optimizer: torch.optim.Optimizer, update: Update
) -> Progress:
    """Bring everything to where an interrupted training stood; to the beginning where there is none, or where it has
    not kept every checkpoint that is now asked for."""
    state = checkpoint.newest_state(folder) if is_first() else None
    if state is not None and not kept_so_far(folder, keep, state.progress.iteration):
        state = None
    state = told(state)
    if state is None:
        return Progress(processes=processes())
    if state.progress.processes != processes():
        raise TrainingError(
            f"{folder}: {state.progress.processes} processes began this training, and {processes()} would normalise "
            "and drop otherwise; go on with as many, or delete the folder"
        )
    update.restore(checkpoint.restore(state, model, optimizer))
    return state.progress


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, update: Update) -> None:
    """Save the state to go on from; of several processes, which have the same, the first one does."""
    if is_first():
        checkpoint.save_state(folder, model, optimizer, progress, update.state())


def keep_weights(path: Path, model: nn.Module, iteration: int) -> None:
    """Keep the weights as they are now, likewise."""
    if is_first():
        checkpoint.save_weights(path, model, iteration)


def kept_so_far(folder: Path, keep: Collection[int], reached: int) -> bool:
    return all((folder / f"{iteration}.safetensors").exists() for iteration in keep if iteration <= reached)


def feed(
    frames: Frames, recipe: Recipe, void: int, seed: int, first: int, device: torch.device
) -> Generator[list[Batch], None, None]:
    """The batches of each iteration from `first` on, this process's part of them, augmented."""
    assert recipe.iterations is not None
    numbers = range(first * recipe.accumulate, recipe.iterations * recipe.accumulate)

    sizes: deque[int] = deque()  # of the batches on their way

    def shown() -> Iterator[list[int]]:
        for number in numbers:
            order = batch_indices(len(frames), recipe.batch_size, recipe.last_batch, seed, number)
            sizes.append(len(order))
            yield share(order) or order[:1]

    with closing(prefetched(frames, shown(), device)) as batches:
        given: list[Batch] = []
        for number, batch in zip(numbers, batches, strict=True):
            place = number * recipe.batch_size
            seeds = image_seeds(seed, range(place, place + sizes.popleft()))
            batch = augmented(batch, recipe.augment, share(seeds) or seeds[:1], void)
            given.append(batch if share(seeds) else nothing_to_learn(batch, void))
            if len(given) == recipe.accumulate:
                yield given
                given = []


def seed_generators(seed: int, iteration: int) -> None:
    """What is drawn in an iteration (dropout) follows from its number; each process of several draws its own."""
    # torch's generator takes 32 bits of a seed, so they are mixed before.
    torch.manual_seed(int(np.random.SeedSequence((seed, iteration, rank())).generate_state(1)[0]))


def read(unread: deque[Loss], leave: int, progress: Progress) -> list[float]:
    """The losses that can be read now, all but the last `leave`; they go into the history."""
    losses = []
    while len(unread) > leave:
        loss = unread.popleft().item()
        if not math.isfinite(loss) and is_first():  # the others are told
            raise TrainingError(f"the loss is {loss} at iteration {len(progress.losses) + 1}; lower optimizer.lr")
        progress.losses.append(loss)
        losses.append(loss)
    return losses


def steps(losses: list[float], progress: Progress, seconds: float, recipe: Recipe) -> Iterator[Step]:
    """What has been read, as events."""
    images = recipe.batch_size * recipe.accumulate
    for number, loss in enumerate(losses, len(progress.losses) - len(losses) + 1):
        yield Step(number, loss, seconds, images / seconds)


def ended(progress: Progress, recipe: Recipe) -> bool:
    """Whether the last iteration is done, or the score has not risen for long enough."""
    stopped = progress.validations and progress.validations[-1][0] == progress.iteration
    return progress.iteration == recipe.iterations or bool(
        stopped and out_of_patience(progress.validations, recipe.patience)
    )


def select(
    model: nn.Module,
    frames: Frames,
    recipe: Recipe,
    num_classes: int,
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> Validation:
    """Score the validation split and keep the weights if they are the best."""
    score = validate(model, frames, num_classes, recipe.select_by, device)
    best = is_best(score, progress.validations)
    progress.validations.append((progress.iteration, score))
    if best:
        progress.selected = progress.iteration
        keep_weights(folder / f"best-{progress.iteration}.safetensors", model, progress.iteration)
    return Validation(progress.iteration, score, best)
