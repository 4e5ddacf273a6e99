"""The optimizer: groups, multipliers and rates worked by hand over a few updates, and what `fused` may be refused."""

from typing import Any

import pytest
import torch
from torch import nn

from segbench.engine.optimizer import make_optimizer, set_rates
from segbench.engine.recipe import Recipe
from segbench.engine.schedule import factor
from segbench.errors import SettingError

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"optimizer": SGD, "batch_size": 4, "iterations": 3} | changes)


class Grouped(nn.Module):
    """A weight and a bias; the bias at twice the rate without decay, and something frozen beside each."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([1.0]))
        self.frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": iter([self.weight, self.frozen]), "lr_multiplier": 1.0, "decay_multiplier": 1.0},
            {"params": [self.bias], "lr_multiplier": 2.0, "decay_multiplier": 0.0},
        ]


def test_multipliers_reach_the_optimizer_unless_the_recipe_says_none() -> None:
    groups = make_optimizer(Grouped(), recipe()).param_groups
    assert [(g["lr"], g["initial_lr"], g["weight_decay"]) for g in groups] == [(0.1, 0.1, 0.5), (0.2, 0.2, 0.0)]
    groups = make_optimizer(Grouped(), recipe(multipliers="none")).param_groups
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [(0.1, 0.5, 2)]


@pytest.mark.parametrize("multipliers", ["model", "none"])
def test_frozen_parameters_stay_out(multipliers: str) -> None:
    model = Grouped()
    held = [p for group in make_optimizer(model, recipe(multipliers=multipliers)).param_groups for p in group["params"]]
    assert len(held) == 2 and all(p is not model.frozen for p in held)


@pytest.mark.parametrize("fused", [False, True])
def test_three_updates_under_poly_by_hand(fused: bool) -> None:
    # v = 0.9 v + g + decay * w; w -= rate * v. Rates 0.1 and 0.2 times 1, 2/3, 1/3.
    given = recipe(schedule={"name": "poly", "power": 1}, fused=fused)
    model = Grouped()
    optimizer = make_optimizer(model, given)
    expected = [(2 - 0.1 * 2, 1 - 0.2 * 1)]  # v: 1 + 0.5 * 2 = 2; 1
    v, u = 0.9 * 2 - 3 + 0.5 * 1.8, 0.9 * 1 - 3  # -0.3; -2.1
    expected += [(1.8 + 0.3 * 0.2 / 3, 0.8 + 2.1 * 0.4 / 3)]  # 1.82; 1.08
    v, u = 0.9 * v + 2 + 0.5 * 1.82, 0.9 * u + 2  # 2.64; 0.11
    expected += [(1.82 - 2.64 * 0.1 / 3, 1.08 - 0.11 * 0.2 / 3)]
    for done, gradient in enumerate((1.0, -3.0, 2.0)):
        set_rates(optimizer, factor(given.schedule, done, 3))
        model.weight.grad, model.bias.grad = torch.tensor([gradient]), torch.tensor([gradient])
        optimizer.step()
        assert (model.weight.item(), model.bias.item()) == pytest.approx(expected[done], rel=1e-6)
    assert (v, u) == pytest.approx((2.64, 0.11)) and model.frozen.item() == 5


def test_at_a_fixed_rate_it_is_caffes_update() -> None:
    # v = momentum * v + lr * (grad + decay * w); w -= v
    holder = nn.Module()
    weight = nn.Parameter(torch.tensor([2.0]))
    holder.register_parameter("weight", weight)
    optimizer = make_optimizer(holder, recipe())
    w, v = 2.0, 0.0
    for gradient in (1.0, -3.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        v = 0.9 * v + 0.1 * (gradient + 0.5 * w)
        w -= v
    assert weight.item() == pytest.approx(w, rel=1e-6)


def test_adamw_takes_a_first_step_of_its_rate_after_decay() -> None:
    # The first step of Adam is lr * sign(grad); decay takes lr * decay * w before it.
    model = Grouped()
    spec = {"name": "adamw", "lr": 0.1, "betas": [0.8, 0.7], "weight_decay": 0.5}
    optimizer = make_optimizer(model, recipe(optimizer=spec))
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["betas"] == (0.8, 0.7)
    model.weight.grad, model.bias.grad = torch.tensor([4.0]), torch.tensor([-4.0])
    optimizer.step()
    assert model.weight.item() == pytest.approx(2 - 0.1 * 0.5 * 2 - 0.1, rel=1e-6)
    assert model.bias.item() == pytest.approx(1 + 0.2, rel=1e-6)


@pytest.mark.parametrize("spec", [SGD, {"name": "adamw", "lr": 0.1}])
def test_fused_is_torchs_flag_and_left_to_torch_otherwise(spec: dict[str, Any]) -> None:
    for asked, flag in ((True, True), (False, None)):
        optimizer = make_optimizer(Grouped(), recipe(optimizer=spec, fused=asked))
        assert optimizer.defaults["fused"] is flag and not optimizer.state


@pytest.mark.parametrize("spec", [SGD, {"name": "adamw", "lr": 0.1}])
def test_fused_where_torch_refuses_is_a_setting_error(spec: dict[str, Any]) -> None:
    model = Grouped().to("meta")
    with pytest.raises(
        SettingError, match=r"^recipe\.fused: torch \S+ has no fused update on meta \(.+\); leave it out$"
    ):
        make_optimizer(model, recipe(optimizer=spec, fused=True))
    make_optimizer(model, recipe(optimizer=spec))
