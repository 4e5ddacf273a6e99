"""Scores on the validation split while a network is trained: which weights are the best, and when to stop.

The largest logit decides each pixel, whatever `inference` says. The first of equal scores stays the best.
"""

from collections.abc import Sequence

import torch
from torch import nn

from segbench.data.batches import Frames
from segbench.engine.counting import confusion_sum
from segbench.engine.distributed import spread, summed
from segbench.engine.predict import predict
from segbench.engine.recipe import Recipe
from segbench.metrics import region

MEASURES = {"global_accuracy": region.global_accuracy, "mean_iou": region.mean_iou}


def validate(model: nn.Module, frames: Frames, num_classes: int, measure: str, device: torch.device) -> float:
    """The selection score of the validation split, a fraction; each process predicts its part."""
    spread(model.buffers())  # running averages are each process's own
    total = torch.zeros((num_classes + 1, num_classes + 1), dtype=torch.int64, device=device)
    for batch in predict(model, frames, device):
        total += confusion_sum(batch, num_classes)
    return float(MEASURES[measure](region.areas(summed(total).cpu().numpy())))


def is_due(iteration: int, recipe: Recipe) -> bool:
    """Validation falls on every multiple of `validate_every` and on the last iteration."""
    every = recipe.validate_every
    return every is not None and (iteration % every == 0 or iteration == recipe.iterations)


def is_best(score: float, earlier: Sequence[tuple[int, float]]) -> bool:
    return all(score > other for _, other in earlier)


def out_of_patience(validations: Sequence[tuple[int, float]], patience: int | None) -> bool:
    """Whether the last validation found the score not to have risen for `patience` iterations."""
    if patience is None or not validations:
        return False
    best = max(score for _, score in validations)
    first = next(iteration for iteration, score in validations if score == best)
    return validations[-1][0] - first >= patience
