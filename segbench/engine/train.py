"""Training as a generator: it yields each step and each validation, and can be left and taken up at any of them.

The loss is weighted cross-entropy, summed over the batch and divided as the recipe says: by the number of valid pixels
unless told otherwise, as caffe-segnet's `SoftmaxWithLoss` does with `normalize: true`. Images come in a new order each
epoch, and a batch may reach over the end of one into the next (Caffe's data layer).

Training never reads the statistics that batch normalisation stores, so replacing them before a validation or a
checkpoint (`batchnorm.py`) changes no weight. Whatever interrupts such a pass, the state saved before it stands.
"""

import math
import time
from collections.abc import Callable, Collection, Generator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from segbench.data.batches import Batch, Frames
from segbench.engine import batchnorm, checkpoint
from segbench.engine.checkpoint import Progress
from segbench.engine.counting import confusion_sum
from segbench.engine.predict import predict
from segbench.engine.recipe import LossNormaliser, Recipe, Sgd
from segbench.metrics import region

SAVE_EVERY_S = 60.0
"""A training that is killed loses at most about this much, and the pass over data that it was in; one that is
interrupted between steps loses nothing."""


class TrainingError(Exception):
    """A training that cannot go on, for a reason in its numbers."""


class Step(NamedTuple):
    """One update: `iteration` counts from 1; `seconds` is what it took, data included."""

    iteration: int
    loss: float
    seconds: float
    images_per_s: float


class Validation(NamedTuple):
    """A score on the validation split; `best` when no earlier one was higher."""

    iteration: int
    score: float
    best: bool


def image_order(count: int, seed: int, first: int, length: int) -> list[int]:
    """Images first..first+length of the endless stream of shuffled epochs: a function of the seed alone."""
    order: list[int] = []
    for epoch in range(first // count, (first + length - 1) // count + 1):
        # NumPy's legacy generator is frozen for good and mixes both numbers; torch's keeps 32 bits of a seed.
        order += np.random.RandomState((seed, epoch)).permutation(count).tolist()
    start = first % count
    return order[start : start + length]


def segmentation_loss(
    logits: Float[Tensor, "n channels h w"],
    labels: UInt8[Tensor, "n h w"],
    void: int,
    class_weights: Float[Tensor, " k"] | None = None,
    normaliser: LossNormaliser = "valid-pixels",
) -> Float[Tensor, ""]:
    """Sum of w[y] * -log p[y] over the valid pixels, divided by their number, by the sum of their w, or by nothing.

    `void` is K, the label that the loss ignores. Logits of K + 1 channels give void one of its own, the last: no pixel
    is taught it, yet it has its share of the softmax (the released network for SUN RGB-D has 38 outputs).
    A batch without a valid pixel, or whose weights are all 0, has loss 0.
    """
    channels = logits.shape[1]
    assert channels in (void, void + 1), f"{channels} channels for {void} classes"
    weights = None if class_weights is None else F.pad(class_weights, (0, 1))  # void weighs nothing
    taught = None if weights is None else weights[:channels]
    total = F.cross_entropy(logits.float(), labels.long(), taught, ignore_index=void, reduction="sum")
    if normaliser == "none":
        return total
    if normaliser == "weights" and weights is not None:
        divisor = weights[labels.long()].sum()
    else:
        divisor = (labels != void).sum()
    return total / divisor.masked_fill(divisor == 0, 1)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the model's parameter groups, multipliers applied."""
    spec = recipe.optimizer
    given = getattr(model, "parameter_groups", None) if recipe.multipliers == "model" else None
    trainable = [p for p in model.parameters() if p.requires_grad]
    alike: dict[str, Any] = {"params": trainable, "lr_multiplier": 1.0, "decay_multiplier": 1.0}
    groups: list[dict[str, Any]] = given() if given else [alike]
    scaled = [
        {
            "params": group["params"],
            "lr": spec.lr * group["lr_multiplier"],
            "weight_decay": spec.weight_decay * group["decay_multiplier"],
        }
        for group in groups
    ]
    if isinstance(spec, Sgd):
        return torch.optim.SGD(scaled, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    return torch.optim.AdamW(scaled, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay)


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """One step; the loss before it."""
    model.train()
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(model(model.input(batch.images)), batch.labels)  # type: ignore[operator]
    loss.backward()
    optimizer.step()
    return float(loss.item())


def validate(model: nn.Module, frames: Frames, num_classes: int, measure: str, device: torch.device) -> float:
    """The selection score of the validation split, a fraction."""
    total = torch.zeros((num_classes + 1, num_classes + 1), dtype=torch.int64, device=device)
    for batch in predict(model, frames, device):
        total += confusion_sum(batch, num_classes)
    areas = region.areas(total.cpu().numpy())
    score = {"global_accuracy": region.global_accuracy, "mean_iou": region.mean_iou}[measure](areas)
    return float(score)


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

    `class_weights` [K]; `keep`: iterations whose weights are kept beside the last. When `folder` holds an interrupted
    training that kept all of them so far, goes on from there. Raises `TrainingError` when the loss is not finite.
    """
    model.to(device)
    weights = None if class_weights is None else class_weights.to(device)
    loss_of = partial(segmentation_loss, void=num_classes, class_weights=weights, normaliser=recipe.loss_normaliser)
    optimizer = make_optimizer(model, recipe)
    resume = folder / "resume.safetensors"
    progress = checkpoint.load_state(resume, model, optimizer) if can_go_on(folder, keep) else Progress()
    saved = time.monotonic()
    try:
        while progress.iteration < recipe.iterations:
            began = time.perf_counter()
            indices = image_order(len(frames), seed, progress.iteration * recipe.batch_size, recipe.batch_size)
            loss = update(model, optimizer, frames.batch(indices, device), loss_of)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} at iteration {progress.iteration + 1}; lower optimizer.lr")
            elapsed = time.perf_counter() - began
            progress.iteration += 1
            progress.losses.append(loss)
            events: list[Step | Validation] = [Step(progress.iteration, loss, elapsed, recipe.batch_size / elapsed)]
            kept = progress.iteration in keep or progress.iteration == recipe.iterations
            scored = validation if is_due(progress.iteration, recipe) else None
            if recipe.norm_statistics == "training-set" and (kept or scored is not None):
                batchnorm.use_training_set(model, frames, recipe.batch_size, device)
            if scored is not None:
                events.append(select(model, scored, recipe, num_classes, folder, device, progress))
            progress.seconds += time.perf_counter() - began
            if kept:
                checkpoint.save_weights(folder / f"{progress.iteration}.safetensors", model, progress.iteration)
            if time.monotonic() - saved > SAVE_EVERY_S or len(events) > 1 or progress.iteration == recipe.iterations:
                save(folder, model, optimizer, progress)
                saved = time.monotonic()
            yield from events
    except GeneratorExit:
        # Whoever took the last step wants no more (Ctrl-C, say): the model stands between two steps.
        save(folder, model, optimizer, progress)
        raise
    return progress


def can_go_on(folder: Path, keep: Collection[int]) -> bool:
    """Whether an interrupted training is there that kept every checkpoint that is now asked for."""
    resume = folder / "resume.safetensors"
    if not resume.exists():
        return False
    reached = checkpoint.peek(resume).iteration
    return all((folder / f"{iteration}.safetensors").exists() for iteration in keep if iteration <= reached)


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Save the state to go on from; then, not before, the checkpoints that it no longer selects may go."""
    checkpoint.save_state(folder / "resume.safetensors", model, optimizer, progress)
    for path in folder.glob("best-*.safetensors"):
        if path.name != f"best-{progress.selected}.safetensors":
            path.unlink()


def is_due(iteration: int, recipe: Recipe) -> bool:
    """Validation falls on every multiple of `validate_every` and on the last iteration."""
    every = recipe.validate_every
    return every is not None and (iteration % every == 0 or iteration == recipe.iterations)


def select(
    model: nn.Module,
    frames: Frames,
    recipe: Recipe,
    num_classes: int,
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> Validation:
    """Score the validation split; the first of equal scores stays the best."""
    score = validate(model, frames, num_classes, recipe.select_by, device)
    best = all(score > earlier for _, earlier in progress.validations)
    progress.validations.append((progress.iteration, score))
    if best:
        progress.selected = progress.iteration
        checkpoint.save_weights(folder / f"best-{progress.iteration}.safetensors", model, progress.iteration)
    return Validation(progress.iteration, score, best)
