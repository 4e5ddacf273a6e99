"""Training: the loss by hand, the order of images, multipliers, and that it can be left and taken up anywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segbench.data import open_dataset
from segbench.data.batches import Frames
from segbench.data.spec import DataSpec
from segbench.engine import checkpoint
from segbench.engine.recipe import Recipe
from segbench.engine.train import (
    Step,
    TrainingError,
    Validation,
    image_order,
    make_optimizer,
    segmentation_loss,
    train,
)
from segbench.errors import RecordError

CPU = torch.device("cpu")
CLASSES = 11


class Tiny(nn.Module):
    """A few thousand weights with everything that has state: normalisation, dropout, momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, CLASSES, 1)
        )

    def input(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "optimizer": {"name": "sgd", "lr": 0.1},
        "batch_size": 4,
        "iterations": 12,
        "validate_every": 4,
    }
    return Recipe.model_validate(settings | changes)


@pytest.fixture(scope="module")
def frames() -> dict[str, Frames]:
    spec = DataSpec(name="synthetic", size=(24, 32), options={"train": 10, "val": 3, "test": 3})
    return {split: Frames(open_dataset(spec, split)) for split in ("train", "val")}


def begin(folder: Path, frames: dict[str, Frames], given: Recipe, **settings: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(3)
    model = Tiny()
    steps = train(
        model, frames["train"], given, CLASSES, 3, folder, CPU, validation=frames["val"], keep={4, 8}, **settings
    )
    return model, steps


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_the_loss_is_the_weighted_sum_over_the_count_of_valid_pixels() -> None:
    # Three pixels: class 0, class 1, void. Logits give -log p = log 2 and log 4; weights 1 and 3.
    logits = torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0], [5.0, 0.0]]).T.reshape(1, 2, 1, 3).float()
    labels = torch.tensor([[[0, 1, 2]]], dtype=torch.uint8)
    expected = (1 * np.log(2) + 3 * np.log(4)) / 2
    assert segmentation_loss(logits, labels, torch.tensor([1.0, 3.0])).item() == pytest.approx(expected, rel=1e-6)
    all_void = segmentation_loss(logits, torch.full_like(labels, 2), None)
    assert all_void.item() == 0.0


def test_every_epoch_shows_each_image_once_and_batches_reach_over_its_end() -> None:
    stream = image_order(10, 5, 0, 30)
    for epoch in range(3):
        assert sorted(stream[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert stream[:10] != stream[10:20]
    assert [image_order(10, 5, first, 4) for first in range(0, 28, 4)] == [stream[i : i + 4] for i in range(0, 28, 4)]
    assert image_order(3, 0, 0, 8) == image_order(3, 0, 0, 8) != image_order(3, 1, 0, 8)


def test_training_learns_validates_and_keeps(tmp_path: Path, frames: dict[str, Frames]) -> None:
    _, steps = begin(tmp_path, frames, recipe(iterations=60, validate_every=20))
    events = list(steps)
    losses = [e.loss for e in events if isinstance(e, Step)]
    validations = [e for e in events if isinstance(e, Validation)]
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])
    assert [v.iteration for v in validations] == [20, 40, 60]
    assert validations[0].best
    best = max(validations, key=lambda v: v.score).iteration
    kept = {p.name for p in tmp_path.glob("*.safetensors")}
    assert kept == {
        "4.safetensors",
        "8.safetensors",
        "60.safetensors",
        f"best-{best}.safetensors",
        "resume.safetensors",
    }
    assert checkpoint.load_weights(tmp_path / f"best-{best}.safetensors", Tiny()) == best


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "lr": 0.1}, {"name": "adamw", "lr": 0.01}])
@pytest.mark.parametrize("stop", [1, 4, 7, 11, 12])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, frames: dict[str, Frames], optimizer: dict[str, Any], stop: int
) -> None:
    given = recipe(optimizer=optimizer)
    whole, steps = begin(tmp_path / "whole", frames, given)
    expected = run_to_end(steps)
    _, steps = begin(tmp_path / "parts", frames, given)
    for event in steps:
        if isinstance(event, Step) and event.iteration == stop:
            break
    steps.close()
    resumed, steps = begin(tmp_path / "parts", frames, given)
    progress = run_to_end(steps)
    assert same(whole, resumed)
    assert progress.losses == expected.losses and progress.validations == expected.validations
    for name in ("4.safetensors", "12.safetensors", f"best-{progress.selected}.safetensors"):
        first, second = (checkpoint.read(tmp_path / part / name)[0] for part in ("whole", "parts"))
        assert all(torch.equal(first[key], second[key]) for key in first)


def run_to_end(steps: Iterator[Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_seeds_differ_and_repeat(tmp_path: Path, frames: dict[str, Frames]) -> None:
    models = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(0)
        model = Tiny()
        torch.manual_seed(seed)
        list(train(model, frames["train"], recipe(), CLASSES, seed, tmp_path / folder, CPU))
        models.append(model)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_a_loss_that_is_not_finite_stops_with_its_place(tmp_path: Path, frames: dict[str, Frames]) -> None:
    _, steps = begin(tmp_path, frames, recipe(optimizer={"name": "sgd", "lr": 1e30}))
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at iteration \d+; lower"):
        list(steps)


def test_a_broken_checkpoint_is_named(tmp_path: Path, frames: dict[str, Frames]) -> None:
    (tmp_path / "resume.safetensors").write_bytes(b"not whole")
    _, steps = begin(tmp_path, frames, recipe())
    with pytest.raises(RecordError, match=r"resume\.safetensors: not a readable checkpoint"):
        next(steps)


class Grouped(Tiny):
    def parameter_groups(self) -> list[dict[str, Any]]:
        names = dict(self.named_parameters())
        biases = [p for n, p in names.items() if n.endswith("bias")]
        others = [p for n, p in names.items() if not n.endswith("bias")]
        return [
            {"params": others, "lr_multiplier": 1.0, "decay_multiplier": 1.0},
            {"params": biases, "lr_multiplier": 2.0, "decay_multiplier": 0.0},
        ]


def test_multipliers_reach_the_optimizer_unless_the_recipe_says_none() -> None:
    given = recipe(optimizer={"name": "sgd", "lr": 0.1, "weight_decay": 0.01})
    groups = make_optimizer(Grouped(), given).param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 0.01), (0.2, 0.0)]
    groups = make_optimizer(Grouped(), recipe(multipliers="none")).param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 5e-4)]


def test_one_step_is_caffes_step() -> None:
    # v = momentum * v + lr * (grad + decay * w); w -= v, twice, against torch's form at a fixed rate.
    weight = nn.Parameter(torch.tensor([2.0]))
    holder = nn.Module()
    holder.register_parameter("weight", weight)
    optimizer = make_optimizer(
        holder, recipe(optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.5})
    )
    w, v = 2.0, 0.0
    for gradient in (1.0, -3.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        v = 0.9 * v + 0.1 * (gradient + 0.5 * w)
        w -= v
    assert weight.item() == pytest.approx(w, rel=1e-6)


def test_frames_are_those_of_the_dataset(frames: dict[str, Frames]) -> None:
    batch = frames["train"].batch([7, 2, 7])
    for place, index in enumerate((7, 2, 7)):
        sample = frames["train"].dataset[index]
        assert np.array_equal(batch.images[place].permute(1, 2, 0).numpy(), sample.image)
        assert np.array_equal(batch.labels[place].numpy(), sample.labels)
