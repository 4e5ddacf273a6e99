"""Training: the loss by hand, the order of images, multipliers, and that it can be left and taken up anywhere."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.data import open_dataset
from segbench.data.batches import Frames
from segbench.data.class_weights import ClassWeights
from segbench.data.spec import DataSpec
from segbench.engine import batchnorm, checkpoint
from segbench.engine.recipe import Recipe
from segbench.engine.train import (
    Step,
    TrainingError,
    Validation,
    image_order,
    make_optimizer,
    segmentation_loss,
    train,
    validate,
)
from segbench.errors import RecordError

CPU = torch.device("cpu")
CLASSES = 11


class Tiny(nn.Module):
    """A few thousand weights with everything that has state: normalisation, dropout, momentum."""

    def __init__(self, channels: int = CLASSES) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, channels, 1)
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
    weights = torch.tensor([1.0, 3.0])
    assert segmentation_loss(logits, labels, 2, weights).item() == pytest.approx(expected, rel=1e-6)
    unweighted = (np.log(2) + np.log(4)) / 2
    assert segmentation_loss(logits, labels, 2).item() == pytest.approx(unweighted, rel=1e-6)


def test_the_loss_is_divided_by_the_weights_or_by_nothing_where_the_recipe_says_so() -> None:
    # The same three pixels, and a fourth of class 1 with -log p = log 2.
    logits = torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0], [5.0, 0.0], [0.0, 0.0]]).T.reshape(1, 2, 2, 2).float()
    labels = torch.tensor([[[0, 1], [2, 1]]], dtype=torch.uint8)
    weights = torch.tensor([0.25, 0.125])
    total = 0.25 * np.log(2) + 0.125 * (np.log(4) + np.log(2))
    for normaliser, divisor in (("valid-pixels", 3), ("weights", 0.25 + 2 * 0.125), ("none", 1)):
        loss = segmentation_loss(logits, labels, 2, weights, normaliser)  # type: ignore[arg-type]
        assert loss.item() == pytest.approx(total / divisor, rel=1e-6), normaliser
    torchs = F.cross_entropy(logits, labels.long(), weights, ignore_index=2)
    assert segmentation_loss(logits, labels, 2, weights, "weights").item() == pytest.approx(torchs.item(), rel=1e-6)
    plain = segmentation_loss(logits, labels, 2, None, "weights")
    assert torch.equal(plain, segmentation_loss(logits, labels, 2))


def test_the_normaliser_of_the_recipe_reaches_the_loss(tmp_path: Path, frames: dict[str, Frames]) -> None:
    first = {}
    for normaliser in ("valid-pixels", "none"):
        _, steps = begin(tmp_path / normaliser, frames, recipe(loss_normaliser=normaliser))
        first[normaliser] = next(steps).loss
        steps.close()
    valid = (frames["train"].batch(image_order(10, 3, 0, 4)).labels != CLASSES).sum().item()
    assert first["none"] == pytest.approx(first["valid-pixels"] * valid, rel=1e-5)


@pytest.mark.parametrize("normaliser", ["valid-pixels", "weights", "none"])
def test_a_batch_with_nothing_to_teach_has_loss_0(normaliser: Any) -> None:
    logits = torch.zeros(1, 2, 1, 3, requires_grad=True)
    void, worthless = torch.full((1, 1, 3), 2, dtype=torch.uint8), torch.zeros(1, 1, 3, dtype=torch.uint8)
    for labels, weights in ((void, None), (void, torch.tensor([1.0, 3.0])), (worthless, torch.tensor([0.0, 3.0]))):
        loss = segmentation_loss(logits, labels, 2, weights, normaliser)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0.0 and not gradient.any()


def test_a_channel_for_void_is_never_taught_but_shares_the_softmax() -> None:
    # Two classes and void's channel: p of the first pixel's class is 2 / (2 + 1 + 5), of the second's 1 / (1 + 1 + 2).
    logits = torch.tensor([[2.0, 1.0, 5.0], [1.0, 1.0, 2.0], [1.0, 1.0, 1.0]]).log().T.reshape(1, 3, 1, 3)
    logits = logits.clone().requires_grad_()
    labels = torch.tensor([[[0, 1, 2]]], dtype=torch.uint8)
    loss = segmentation_loss(logits, labels, 2, torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((1 * np.log(4) + 3 * np.log(4)) / 2, rel=1e-6)
    loss.backward()
    # d loss / d logit of void = w p / 2: pushed down where a class is, untouched where the label is void.
    assert logits.grad is not None
    assert logits.grad[0, 2, 0].tolist() == pytest.approx([5 / 8 / 2, 3 * 2 / 4 / 2, 0])
    by_weight = segmentation_loss(logits, labels, 2, torch.tensor([1.0, 3.0]), "weights")
    assert by_weight.item() == pytest.approx(np.log(4), rel=1e-6)
    assert segmentation_loss(logits, labels, 2).item() == pytest.approx(np.log(4), rel=1e-6)


def test_logits_of_another_number_of_channels_are_our_bug() -> None:
    labels = torch.zeros(1, 1, 1, dtype=torch.uint8)
    with pytest.raises(AssertionError, match="4 channels for 2 classes"):
        segmentation_loss(torch.zeros(1, 4, 1, 1), labels, 2)


def test_recipe_and_data_name_the_same_class_weights() -> None:
    assert get_args(Recipe.model_fields["class_weights"].annotation) == get_args(ClassWeights)


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


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": {"name": "adamw", "lr": 0.01}}, {"norm_statistics": "training-set"}],
    ids=["sgd", "adamw", "training-set"],
)
@pytest.mark.parametrize("stop", [1, 4, 7, 11, 12])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, frames: dict[str, Frames], changes: dict[str, Any], stop: int
) -> None:
    given = recipe(**changes)
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


def test_every_kept_checkpoint_holds_the_statistics_of_the_training_set(
    tmp_path: Path, frames: dict[str, Frames]
) -> None:
    settings: dict[str, Any] = {"iterations": 9, "validate_every": 3}
    running, steps = begin(tmp_path / "running", frames, recipe(**settings))
    before = run_to_end(steps)
    measured, steps = begin(tmp_path / "measured", frames, recipe(**settings, norm_statistics="training-set"))
    after = run_to_end(steps)
    assert after.losses == before.losses, "training does not read them"
    assert all(torch.equal(a, b) for a, b in zip(running.parameters(), measured.parameters(), strict=True))
    assert after.validations != before.validations
    for name in ("4", "8", "9", f"best-{after.selected}"):
        kept = Tiny()
        checkpoint.load_weights(tmp_path / "measured" / f"{name}.safetensors", kept)
        again = Tiny()
        again.load_state_dict(kept.state_dict())
        batchnorm.use_training_set(again, frames["train"], 4, CPU)
        assert same(kept, again), name
    selected = next(score for iteration, score in after.validations if iteration == after.selected)
    assert validate(kept, frames["val"], CLASSES, "global_accuracy", CPU) == selected


def test_a_pass_over_the_training_set_can_be_interrupted(
    tmp_path: Path, frames: dict[str, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = recipe(norm_statistics="training-set")
    whole, steps = begin(tmp_path / "whole", frames, given)
    expected = run_to_end(steps)

    passes = 0
    real = Frames.batch

    def interrupted(self: Frames, indices: Any, *rest: Any) -> Any:
        nonlocal passes
        passes += list(indices) == [4, 5, 6, 7]  # the second batch of a pass
        if passes == 2 and list(indices) == [4, 5, 6, 7]:
            raise KeyboardInterrupt
        return real(self, indices, *rest)

    monkeypatch.setattr(Frames, "batch", interrupted)
    _, steps = begin(tmp_path / "parts", frames, given)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(steps)
    monkeypatch.undo()
    assert checkpoint.peek(tmp_path / "parts" / "resume.safetensors").iteration == 4, "the state before the pass"
    assert not (tmp_path / "parts" / "8.safetensors").exists() and not list(tmp_path.rglob("*.partial"))
    resumed, steps = begin(tmp_path / "parts", frames, given)
    progress = run_to_end(steps)
    assert same(whole, resumed)
    assert (progress.losses, progress.validations) == (expected.losses, expected.validations)


def test_there_is_one_pass_an_iteration_that_needs_it_and_the_seconds_include_it(
    tmp_path: Path, frames: dict[str, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Any] = []
    monkeypatch.setattr(batchnorm, "use_training_set", lambda *given: (passes.append(given), time.sleep(0.2)))
    given = recipe(iterations=9, validate_every=3, norm_statistics="training-set")
    model, steps = begin(tmp_path, frames, given)
    progress = run_to_end(steps)
    assert passes == [(model, frames["train"], 4, CPU)] * 5, "at iterations 3, 6, 9 for a score and 4, 8, 9 to keep"
    assert progress.seconds > 5 * 0.2


def test_a_network_with_a_channel_for_void_trains_and_is_scored(tmp_path: Path, frames: dict[str, Frames]) -> None:
    torch.manual_seed(0)
    model = Tiny(CLASSES + 1)
    with torch.no_grad():
        model.layers[-1].bias[CLASSES] = 50  # void wins everywhere  # type: ignore[operator]
    assert validate(model, frames["val"], CLASSES, "global_accuracy", CPU) == 0.0
    weights = torch.ones(CLASSES)
    steps = train(model, frames["train"], recipe(), CLASSES, 0, tmp_path, CPU, class_weights=weights)
    losses = [event.loss for event in steps if isinstance(event, Step)]
    assert losses[0] > 40 and losses[-1] < losses[0], "it learns to say a class"


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
