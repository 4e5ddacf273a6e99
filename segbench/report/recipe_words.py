"""A recipe on one line: what every table says of it, then what differs from the defaults."""

import json
from collections.abc import Callable, Mapping
from typing import Any

LAST_BATCHES = {"keep": "short last batches kept", "drop": "short last batches dropped"}
LOSSES = {"weights": "loss over the sum of weights", "none": "loss summed over the batch"}


def recipe_words(recipe: Mapping[str, Any]) -> str:
    """The settings as a record holds them; what older records did not know stood at its default."""
    said = (words(recipe.get(key)) for key, words in OTHERS.items())
    chosen = f"; best by validation {recipe['select_by'].replace('_', ' ')}" if recipe["validate_every"] else ""
    fed = plain_words(recipe.get("input"))
    parts = [
        optimizer_words(recipe["optimizer"]) + schedule_words(recipe.get("schedule") or {}),
        batch_words(recipe),
        length_words(recipe),
        f"{recipe['class_weights']} class weights",
        *filter(None, said),
        *([f"input with {fed}"] if fed else []),
    ]
    return ", ".join(parts) + chosen


def plain_words(settings: Mapping[str, Any] | None) -> str:
    """`bias true, padding same`: what is set of some settings."""
    spelt = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (settings or {}).items() if v is not None}
    return ", ".join(f"{key} {value}" for key, value in spelt.items())


def optimizer_words(optimizer: Mapping[str, Any]) -> str:
    momentum = f" and momentum {optimizer['momentum']:g}" if "momentum" in optimizer else ""
    betas = f" and betas {', '.join(f'{beta:g}' for beta in optimizer['betas'])}" if "betas" in optimizer else ""
    return f"{optimizer['name']}, rate {optimizer['lr']:g}{momentum}{betas}, weight decay {optimizer['weight_decay']:g}"


def schedule_words(schedule: Mapping[str, Any]) -> str:
    """`, poly schedule (power 0.9), warm-up 100`; nothing of a fixed rate."""
    name, warmup = schedule.get("name", "fixed"), schedule.get("warmup", 0)
    own = plain_words({key: value for key, value in schedule.items() if key not in ("name", "warmup")})
    course = "" if name == "fixed" else f", {name} schedule" + (f" ({own})" if own else "")
    return course + (f", warm-up of {warmup} iterations" if warmup else "")


def batch_words(recipe: Mapping[str, Any]) -> str:
    passes = recipe.get("accumulate", 1)
    return f"batch {recipe['batch_size']}" if passes == 1 else f"{passes} passes of batch {recipe['batch_size']}"


def length_words(recipe: Mapping[str, Any]) -> str:
    asked = f" ({recipe['epochs']} epochs)" if recipe.get("epochs") else ""
    patience = recipe.get("patience")
    until = f", or until the score has not risen for {patience} iterations" if patience else ""
    return f"{'at most ' if patience else ''}{recipe['iterations']} iterations{asked}{until}"


def augment_words(augment: Mapping[str, Any] | None) -> str:
    """Draws that are on; a probability or strength of 0 is off."""
    used = plain_words({key: value for key, value in (augment or {}).items() if value})
    return f"augmented by {used}" if used else ""


def when(value: Any, words: str) -> Callable[[Any], str]:
    """Words for one value of a setting, nothing for others."""
    return lambda found: words if found == value else ""


OTHERS: dict[str, Callable[[Any], str]] = {
    "last_batch": lambda found: LAST_BATCHES.get(found or "", ""),
    "loss_normaliser": lambda found: LOSSES.get(found or "", ""),
    "augment": augment_words,
    "multipliers": when("none", "one rate and decay for all weights"),
    "norm_statistics": when("training-set", "batch-norm statistics of the training set"),
    "norm_eps": lambda found: f"batch-norm epsilon {found:g}" if found else "",
    "sync_norm": when(True, "batch normalisation over all GPUs"),
    "mode": when("fast", "fast mode (not repeatable to the bit)"),
    "precision": lambda found: f"{found} training" if found not in (None, "fp32") else "",
    "channels_last": when(True, "channels last"),
    "compile": when(True, "torch.compile"),
    "cuda_graphs": when(True, "CUDA graphs"),
    "fused": when(True, "fused optimizer"),
    "activation_checkpointing": when(True, "activation checkpointing"),
}
"""By setting, what is said of it; in the order in which it is said."""
