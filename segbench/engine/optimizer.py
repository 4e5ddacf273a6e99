"""The recipe's optimizer, and its rates from update to update.

Each of a model's parameter groups has its own base rate and decay: the recipe's, times the group's multipliers. A
schedule multiplies all base rates by one factor, so their ratios stand. The base rate is kept in the group under
`initial_lr`, as torch's own schedulers do.

Rates are plain numbers, which the optimizer reads at every update. Were it ever captured in a CUDA graph itself, they
would have to be tensors, or the graph would replay the first one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from segbench.engine.recipe import Recipe, Sgd
from segbench.errors import SettingError


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW over the model's parameter groups, multipliers applied; frozen parameters stay out.

    Raises `SettingError` where `fused` is asked for and the installed torch has no such update for the model's device.
    """
    groups = parameter_groups(model, recipe)
    make = maker(recipe)
    if recipe.fused:
        check_fused(make, groups)
    return make(groups)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's base rate times `factor` from the next update on."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The model's own groups, or one of all parameters, with base rates and decays in numbers."""
    spec = recipe.optimizer
    given = getattr(model, "parameter_groups", None) if recipe.multipliers == "model" else None
    alike: dict[str, Any] = {"params": model.parameters(), "lr_multiplier": 1.0, "decay_multiplier": 1.0}
    groups = []
    for group in given() if given else [alike]:
        rate = spec.lr * group["lr_multiplier"]
        trainable = [parameter for parameter in group["params"] if parameter.requires_grad]
        decay = spec.weight_decay * group["decay_multiplier"]
        groups.append({"params": trainable, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    return groups


def maker(recipe: Recipe) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """What makes the recipe's optimizer of parameter groups."""
    spec = recipe.optimizer
    fused = recipe.fused or None  # False would also turn off the update of many tensors at once
    if isinstance(spec, Sgd):
        return lambda groups: torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, fused=fused)
    return lambda groups: torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, fused=fused)


def check_fused(make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], groups: list[dict[str, Any]]) -> None:
    """`SettingError` where torch refuses. It does so in the first update, so one is made, of numbers of no use."""
    kinds = {(parameter.device, parameter.dtype) for group in groups for parameter in group["params"]}
    for device, dtype in kinds:
        probe = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        probe.grad = torch.zeros_like(probe)
        try:
            make([{"params": [probe]}]).step()
        except RuntimeError as error:
            first = str(error).split("\n", 1)[0]
            raise SettingError(
                f"recipe.fused: torch {torch.__version__} has no fused update on {device} ({first}); leave it out"
            ) from error
