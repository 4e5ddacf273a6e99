"""Recipes: what is refused, how epochs become iterations, and what a training that stops early may be scored at."""

from pathlib import Path
from typing import Any

import pytest

from segbench.engine.recipe import Recipe
from segbench.errors import SettingError
from segbench.suite.load import load
from segbench.suite.plan import Run, resolve_keys, with_lengths

GIVEN: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 4}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "a recipe needs `iterations` or `epochs`; add one of them"),
        ({"iterations": 3, "epochs": 2}, "both say how long to train; leave one of them out"),
        ({"iterations": 3, "patience": 2}, "patience needs validation; set validate_every"),
        ({"iterations": 3, "validate_every": 4}, r"validate_every \(4\) is more than iterations \(3\)"),
        ({"iterations": 3, "cuda_graphs": True}, "add compile: true"),
        ({"iterations": 3, "augment": {"scale": [0.5, 2]}}, "add augment.crop, the size to cut out"),
        ({"iterations": 3, "augment": {"scale": [2, 0.5], "crop": "8x8"}}, "write the smaller factor first"),
        ({"iterations": 3, "augment": {"flip": 1.5}}, "less than or equal to 1"),
        ({"iterations": 3, "schedule": "polly"}, "polly"),
        ({"iterations": 3, "accumulate": 0}, "greater than 0"),
        ({"iterations": 3, "schedule": {"name": "poly", "warmup": 3}}, "the full rate would never be reached"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe.model_validate(GIVEN | changes)


def planned(tmp_path: Path, recipe: str, at: str = "[last]", model: str = "fcn-basic") -> list[Run]:
    path = tmp_path / "s.yaml"
    path.write_text(f"""\
name: s
data: {{name: synthetic}}
models: [{model}]
recipe: {{optimizer: {{name: sgd, lr: 0.1}}, batch_size: 4, {recipe}}}
score: {{at: {at}}}
""")
    return load(path)[1]


def test_epochs_become_iterations_where_the_images_are_counted(tmp_path: Path) -> None:
    (before,) = planned(tmp_path, "epochs: 3")
    assert before.checkpoints == ("last",)
    (after,) = with_lengths([before], 10)
    assert after.recipe is not None and (after.recipe.iterations, after.recipe.epochs) == (8, 3), "ceil(3 * 10 / 4)"
    assert after.checkpoints == ("8",)
    assert with_lengths([before], None) == [before]


def test_a_checkpoint_past_the_epochs_is_refused_when_they_are_counted(tmp_path: Path) -> None:
    runs = planned(tmp_path, "epochs: 3", at="[8]")
    assert with_lengths(runs, 10)[0].checkpoints == ("8",)
    with pytest.raises(SettingError, match=r"s\.yaml:3: models\[0\].*score\.at: 8 is past the last iteration \(6\)"):
        with_lengths(runs, 8)


def test_a_models_own_length_replaces_the_suites(tmp_path: Path) -> None:
    runs = planned(tmp_path, "iterations: 9", model="fcn-basic, {name: segnet-basic, recipe: {epochs: 1}}")
    assert [run.recipe and (run.recipe.iterations, run.recipe.epochs) for run in runs] == [(9, None), (None, 1)]


def test_a_training_that_may_stop_early_is_scored_where_it_ends(tmp_path: Path) -> None:
    patient = "iterations: 9, validate_every: 3, patience: 3"
    (run,) = planned(tmp_path, patient, at="[best, last]")
    assert run.checkpoints == ("best", "last")
    with pytest.raises(SettingError, match=r"with patience a training may end before 6; write best or last"):
        planned(tmp_path, patient, at="[6]")


def test_epochs_and_their_iterations_share_a_training(tmp_path: Path) -> None:
    (epochs,) = with_lengths(planned(tmp_path, "epochs: 3"), 10)
    (iterations,) = planned(tmp_path, "iterations: 8")
    keys = [resolve_keys(run, {"train": "t", "test": "s"}).train for run in (epochs, iterations)]
    assert keys[0] == keys[1]


def test_a_warm_up_longer_than_the_epochs_is_refused_when_they_are_counted(tmp_path: Path) -> None:
    runs = planned(tmp_path, "epochs: 3, schedule: {name: poly, warmup: 8}")
    with pytest.raises(SettingError, match=r"schedule.warmup \(8\) is not less than the 8 iterations of 3 epochs"):
        with_lengths(runs, 10)


def test_epochs_on_the_command_line_replace_the_suites_iterations(tmp_path: Path) -> None:
    planned(tmp_path, "iterations: 9")
    (run,) = load(tmp_path / "s.yaml", ["recipe.epochs=2"])[1]
    assert run.recipe is not None and (run.recipe.iterations, run.recipe.epochs) == (None, 2)
    with pytest.raises(SettingError, match="both say how long"):
        load(tmp_path / "s.yaml", ["recipe.epochs=2", "recipe.iterations=3"])
