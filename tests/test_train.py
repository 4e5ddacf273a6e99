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
from segbench.engine.augment import augmented, image_seeds
from segbench.engine.order import batch_indices
from segbench.engine.recipe import Recipe
from segbench.engine.train import Step, TrainingError, Validation, seed_generators, train
from segbench.engine.update import Loss, Update
from segbench.engine.validation import validate
from segbench.errors import RecordError, SettingError

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


def test_the_normaliser_of_the_recipe_reaches_the_loss(tmp_path: Path, frames: dict[str, Frames]) -> None:
    first = {}
    for normaliser in ("valid-pixels", "none"):
        _, steps = begin(tmp_path / normaliser, frames, recipe(loss_normaliser=normaliser))
        first[normaliser] = next(steps).loss
        steps.close()
    valid = (frames["train"].batch(batch_indices(10, 4, "wrap", 3, 0)).labels != CLASSES).sum().item()
    assert first["none"] == pytest.approx(first["valid-pixels"] * valid, rel=1e-5)


def test_recipe_and_data_name_the_same_class_weights() -> None:
    assert get_args(Recipe.model_fields["class_weights"].annotation) == get_args(ClassWeights)


def test_training_learns_validates_and_keeps(tmp_path: Path, frames: dict[str, Frames]) -> None:
    _, steps = begin(tmp_path, frames, recipe(iterations=60, validate_every=20))
    events = list(steps)
    losses = [e.loss for e in events if isinstance(e, Step)]
    validations = [e for e in events if isinstance(e, Validation)]
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])
    assert [v.iteration for v in validations] == [20, 40, 60]
    assert validations[0].best
    best = max(validations, key=lambda v: v.score).iteration
    best_before = max(validations[:-1], key=lambda v: v.score).iteration
    kept = {p.name for p in tmp_path.glob("*.safetensors")}
    assert kept == {
        "4.safetensors",
        "8.safetensors",
        "60.safetensors",
        *(f"best-{iteration}.safetensors" for iteration in {best, best_before}),
        "resume.safetensors",
        "resume.previous.safetensors",
    }, "nothing that either state needs is gone"
    assert checkpoint.load_weights(tmp_path / f"best-{best}.safetensors", Tiny()) == best


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"name": "adamw", "lr": 0.01}, "precision": "bf16", "activation_checkpointing": True},
        {"norm_statistics": "training-set", "schedule": {"name": "poly", "warmup": 3}},
        {"augment": {"flip": 0.5, "scale": [0.5, 2], "crop": [20, 28], "hue": 0.2}, "accumulate": 2},
        {"last_batch": "keep", "augment": {"flip": 0.5}, "precision": "fp16", "channels_last": True},
    ],
    ids=["sgd", "adamw", "training-set", "augmented", "short batches"],
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


def test_frames_are_those_of_the_dataset(frames: dict[str, Frames]) -> None:
    batch = frames["train"].batch([7, 2, 7])
    for place, index in enumerate((7, 2, 7)):
        sample = frames["train"].dataset[index]
        assert np.array_equal(batch.images[place].permute(1, 2, 0).numpy(), sample.image)
        assert np.array_equal(batch.labels[place].numpy(), sample.labels)


def test_the_rates_follow_the_schedule(
    tmp_path: Path, frames: dict[str, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    real = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *rest: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return real(self, *rest)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    given = recipe(iterations=4, validate_every=None, schedule={"name": "poly", "power": 1})
    for _ in begin(tmp_path, frames, given)[1]:
        pass
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_every_pass_of_an_update_sees_other_images(
    tmp_path: Path, frames: dict[str, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = Frames.batch

    def noted(self: Frames, indices: Any, *rest: Any) -> Any:
        if self is frames["train"]:
            seen.append(list(indices))
        return real(self, indices, *rest)

    monkeypatch.setattr(Frames, "batch", noted)
    _, steps = begin(tmp_path, frames, recipe(iterations=5, accumulate=2, validate_every=None))
    events = list(steps)
    assert seen == [batch_indices(10, 4, "wrap", 3, number) for number in range(10)]
    assert [event.iteration for event in events] == [1, 2, 3, 4, 5]


def test_a_training_stops_when_the_score_has_not_risen(
    tmp_path: Path, frames: dict[str, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {2: 0.2, 4: 0.5, 6: 0.5, 8: 0.4, 10: 0.9}
    iterations = iter(scores)
    monkeypatch.setattr("segbench.engine.train.validate", lambda *_: scores[next(iterations)])
    given = recipe(iterations=12, validate_every=2, patience=4)
    _, steps = begin(tmp_path, frames, given)
    progress = run_to_end(steps)
    assert (progress.iteration, progress.selected, len(progress.losses)) == (8, 4, 8)
    assert (tmp_path / "8.safetensors").exists()
    _, steps = begin(tmp_path, frames, given)
    assert list(steps) == [], "what has stopped does not go on"


def test_losses_are_read_one_iteration_late_and_all_before_anything_is_saved(
    tmp_path: Path, frames: dict[str, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = Update.__call__
    monkeypatch.setattr(Update, "__call__", lambda self, given: (seen.append("q"), real(self, given))[1])
    monkeypatch.setattr(Loss, "item", lambda self: (seen.append("r"), float(self.value))[1])
    monkeypatch.setattr(checkpoint, "save_weights", lambda *_: seen.append("saved"))
    monkeypatch.setattr(checkpoint, "save_state", lambda *_: seen.append("state"))
    _, steps = begin(tmp_path, frames, recipe(iterations=5, validate_every=None))
    run_to_end(steps)
    # Iterations 4 (asked for) and 5 (the last) are saved.
    assert seen == [*"q", *"qr", *"qr", *"qrr", "saved", "state", *"qr", "saved", "state"]


def test_random_numbers_follow_from_seed_and_iteration() -> None:
    drawn = {}
    for seed, iteration in ((1, 0), (1, 1), (2, 0), (1, 0)):
        seed_generators(seed, iteration)
        drawn.setdefault((seed, iteration), []).append(float(torch.rand(())))
    first, again = drawn[1, 0]
    assert first == again and len({values[0] for values in drawn.values()}) == 3


def test_how_long_the_network_had_no_images_is_told(
    tmp_path: Path, frames: dict[str, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Frames.batch

    def slow(self: Frames, indices: Any, *rest: Any) -> Any:
        time.sleep(0.05)
        return real(self, indices, *rest)

    monkeypatch.setattr(Frames, "batch", slow)
    _, steps = begin(tmp_path, frames, recipe(iterations=6, validate_every=None))
    progress = run_to_end(steps)
    assert 0.1 < progress.waited_s < progress.seconds


def test_class_weights_reach_the_loss(tmp_path: Path, frames: dict[str, Frames]) -> None:
    weights = torch.linspace(0.5, 3, CLASSES)
    _, steps = begin(tmp_path, frames, recipe(loss_normaliser="none"), class_weights=weights)
    first = next(steps).loss
    steps.close()
    torch.manual_seed(3)
    model = Tiny()
    seed_generators(3, 0)  # dropout
    batch = frames["train"].batch(batch_indices(10, 4, "wrap", 3, 0))
    logits = model(model.input(batch.images))
    expected = F.cross_entropy(logits, batch.labels.long(), weights, ignore_index=CLASSES, reduction="sum")
    assert first == pytest.approx(expected.item(), rel=1e-5)


def test_every_image_is_augmented_by_a_seed_of_its_place_in_the_training(
    tmp_path: Path, frames: dict[str, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    real = augmented

    def noted(batch: Any, settings: Any, seeds: Any, void: int) -> Any:
        given.extend(seeds)
        return real(batch, settings, seeds, void)

    monkeypatch.setattr("segbench.engine.train.augmented", noted)
    changes: dict[str, Any] = {"iterations": 4, "accumulate": 2, "validate_every": None, "augment": {"flip": 0.5}}
    list(begin(tmp_path, frames, recipe(**changes))[1])
    assert given == image_seeds(3, range(4 * 2 * 4)) and len(set(given)) == len(given)


class Asleep(Tiny):
    """As some libraries give their networks: what is inside is in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.eval()


class Frozen(Tiny):
    """Its normalisation keeps its statistics in training."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.layers[1].eval()
        return self


@pytest.mark.parametrize("make", [Asleep, Frozen])
def test_a_network_is_in_training_mode_from_the_first_iteration_on(
    make: type[Tiny], tmp_path: Path, frames: dict[str, Frames]
) -> None:
    ends = []
    for stop in (None, 2):
        for _ in range(2 if stop else 1):
            torch.manual_seed(3)
            model = make()
            steps = train(model, frames["train"], recipe(), CLASSES, 3, tmp_path / str(stop), CPU)
            for event in steps:
                if isinstance(event, Step) and event.iteration == stop:
                    break
            steps.close()
        ends.append(model)
    assert same(*ends)
    tracked = ends[0].layers[1].num_batches_tracked
    assert tracked == (12 if make is Asleep else 0), "normalised by batches, or frozen, throughout"


def test_weights_under_two_names_are_kept(tmp_path: Path, frames: dict[str, Frames]) -> None:
    torch.manual_seed(3)
    model = Tiny()
    model.again = model.layers[0]
    progress = run_to_end(train(model, frames["train"], recipe(), CLASSES, 3, tmp_path, CPU))
    other = Tiny()
    other.again = other.layers[0]
    assert checkpoint.load_weights(tmp_path / f"{progress.iteration}.safetensors", other) == 12
    assert same(model, other)


def test_other_processes_do_not_go_on_with_it(
    tmp_path: Path, frames: dict[str, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, steps = begin(tmp_path, frames, recipe())
    next(steps)
    steps.close()
    monkeypatch.setattr("segbench.engine.train.processes", lambda: 2)
    with pytest.raises(TrainingError, match=r"1 processes began this training.* go on with as many, or delete"):
        next(begin(tmp_path, frames, recipe())[1])


def test_one_image_alone_that_cannot_be_normalised_is_told(tmp_path: Path, frames: dict[str, Frames]) -> None:
    model = Tiny()
    model.layers.insert(0, nn.AdaptiveAvgPool2d(1))
    with pytest.raises(SettingError, match="batch normalisation cannot learn from one image"):
        list(train(model, frames["train"], recipe(batch_size=1), CLASSES, 3, tmp_path, CPU))
