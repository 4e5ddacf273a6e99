"""What a table says of a training: everything that differs from the defaults, and of old records what they knew."""

from typing import Any

import pytest

from segbench.engine.recipe import Recipe
from segbench.report.recipe_words import recipe_words

OLD: dict[str, Any] = {
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005},
    "batch_size": 4,
    "iterations": 12,
    "class_weights": "natural",
    "select_by": "mean_iou",
    "validate_every": 4,
}
SHORT = "sgd, rate 0.1 and momentum 0.9, weight decay 0.0005, batch 4, 12 iterations, natural class weights"
CHOSEN = "; best by validation mean iou"


def of(**changes: Any) -> str:
    return recipe_words(Recipe.model_validate(OLD | changes).model_dump(mode="json"))


def test_defaults_and_records_that_knew_less_read_alike() -> None:
    assert of() == recipe_words(OLD) == SHORT + CHOSEN


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "poly"}, "weight decay 0.0005, poly schedule (power 0.9), batch 4"),
        (
            {"schedule": {"name": "step", "every": 5, "warmup": 2}},
            "step schedule (every 5, factor 0.1), warm-up of 2 iterations",
        ),
        ({"schedule": {"name": "fixed", "warmup": 2}}, "decay 0.0005, warm-up of 2 iterations, batch"),
        ({"accumulate": 2}, "2 passes of batch 4, 12 iterations"),
        ({"patience": 8}, "at most 12 iterations, or until the score has not risen for 8 iterations, natural"),
        ({"last_batch": "drop"}, "short last batches dropped"),
        (
            {"augment": {"flip": 0.5, "scale": [0.5, 2], "crop": "8x9"}},
            "augmented by flip 0.5, scale [0.5, 2.0], crop 8x9",
        ),
        ({"loss_normaliser": "none"}, "loss summed over the batch"),
        ({"multipliers": "none"}, "one rate and decay for all weights"),
        ({"norm_statistics": "training-set"}, "batch-norm statistics of the training set"),
        ({"norm_eps": 1e-9}, "batch-norm epsilon 1e-09"),
        ({"sync_norm": True}, "batch normalisation over all GPUs"),
        ({"mode": "fast"}, "fast mode (not repeatable to the bit)"),
        ({"precision": "bf16"}, "bf16 training"),
        ({"channels_last": True}, "channels last"),
        ({"compile": True, "cuda_graphs": True}, "torch.compile, CUDA graphs"),
        ({"fused": True}, "fused optimizer"),
        ({"activation_checkpointing": True}, "activation checkpointing"),
        ({"input": {"order": "bgr"}}, "input with order bgr"),
    ],
)
def test_what_differs_is_said(changes: dict[str, Any], words: str) -> None:
    said = of(**changes)
    assert words in said and said.endswith(CHOSEN) and said != of()


def test_epochs_stand_beside_the_iterations_that_they_became() -> None:
    recipe = Recipe.model_validate({key: value for key, value in OLD.items() if key != "iterations"} | {"epochs": 3})
    dumped = recipe.model_copy(update={"iterations": 8}).model_dump(mode="json")
    assert "8 iterations (3 epochs)" in recipe_words(dumped)


def test_every_setting_of_a_recipe_can_be_said() -> None:
    """A setting that no words know would be missing below every table."""
    from segbench.report import recipe_words as words

    spoken = {"optimizer", "schedule", "batch_size", "accumulate", "iterations", "epochs", "patience", "class_weights"}
    assert set(Recipe.model_fields) == spoken | {"input", "select_by", "validate_every"} | set(words.OTHERS)
