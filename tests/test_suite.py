"""Suites: what they mean, and that every mistake is found with its place before anything starts."""

from pathlib import Path

import pytest

from segbench.errors import SettingError
from segbench.suite.load import load, parse_set
from segbench.suite.plan import Given, Keys, kept_iterations, resolve_keys, select

GOOD = """\
name: mini
data: {name: synthetic, size: 30x40}
models:
  - segnet-basic
  - name: fcn-basic
    label: Natural
    recipe: {class_weights: natural, optimizer: {name: adamw, lr: 1e-3}}
recipe:
  optimizer: {name: sgd, lr: 0.1, momentum: 0.5}
  batch_size: 4
  iterations: 20
  class_weights: median-frequency
  validate_every: 10
seeds: [0, 1]
score: {at: [10, last, best], boundary: {rules: [bsds, distance], tolerances: [0.75%, 2px]}}
profile: {res: 30x40}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return path


def test_a_suite_becomes_runs(tmp_path: Path) -> None:
    suite, runs = load(write(tmp_path, GOOD))
    assert [r.name for r in runs] == ["segnet-basic-s0", "segnet-basic-s1", "natural-s0", "natural-s1"]
    assert runs[0].label == "SegNet-Basic"
    assert runs[0].checkpoints == ("10", "20", "best")
    assert suite.data and suite.data.size == (30, 40)


def test_a_models_recipe_is_merged_key_by_key_and_its_optimizer_replaced_whole(tmp_path: Path) -> None:
    _, runs = load(write(tmp_path, GOOD))
    first, merged = runs[0].recipe, runs[2].recipe
    assert first and merged
    assert (merged.class_weights, merged.batch_size, merged.iterations) == ("natural", 4, 20)
    assert merged.optimizer.name == "adamw" and merged.optimizer.lr == 1e-3
    assert not hasattr(merged.optimizer, "momentum")
    assert first.optimizer.name == "sgd" and first.optimizer.momentum == 0.5


# old text, new text, line, words that the one line must hold
MISTAKES = [
    (
        "fcn-basic\n",
        "fcn-basik\n",
        5,
        ['models[1].name: unknown model "fcn-basik"', 'did you mean "fcn-basic"?', "segnet"],
    ),
    ("  - segnet-basic", "  - segnet-basics", 4, ['unknown model "segnet-basics"', 'did you mean "segnet-basic"?']),
    (
        "    label: Natural",
        "    lable: Natural",
        6,
        ["models[1].lable is not a setting of a model", "name, label, options", 'did you mean "label"?'],
    ),
    ("name: synthetic", "name: sintetic", 2, ['data.name: unknown dataset "sintetic"', 'did you mean "synthetic"?']),
    ("size: 30x40}\nmodels", "size: 30-40}\nmodels", 2, ["data.size", '"30-40" is not a size', "360x480"]),
    (
        "  iterations: 20",
        "  iteratons: 20",
        11,
        ["recipe.iteratons is not a setting of a recipe", 'did you mean "iterations"?'],
    ),
    ("  iterations: 20", "  iterations: 0", 11, ["recipe.iterations: input should be greater than 0; found 0"]),
    ("  iterations: 20", "  iterations: many", 11, ["recipe.iterations", "integer", 'found "many"']),
    ("momentum: 0.5", "momentun: 0.5", 9, ["recipe.optimizer.momentun is not a setting of sgd", "momentum"]),
    ("name: sgd", "name: sdg", 9, ['"sdg" is not one of sgd, adamw', 'did you mean "sgd"?']),
    (
        "{class_weights: natural,",
        "{class_weights: naturel,",
        7,
        ["models[1].recipe.class_weights", '"naturel"', 'did you mean "natural"?'],
    ),
    ("rules: [bsds, distance]", "rules: [bsd]", 15, ["score.boundary.rules[0]", '"bsd" is not one of bsds, distance']),
    ("0.75%, 2px", "0.75", 15, ["score.boundary.tolerances[0]", "0.75%"]),
    ("at: [10,", "at: [30,", 15, ["score.at: 30 is past the last iteration (20)"]),
    ("seeds: [0, 1]", "seeds: [0, 0]", 1, ["a seed stands twice"]),
    ("    label: Natural", "    label: SegNet-Basic", 5, ['another model is called "SegNet-Basic"', "label"]),
    ("profile: {res", "profil: {res", 16, ["profil is not a setting of a suite", 'did you mean "profile"?']),
    ("name: mini\n", "name: mini\nname: maxi\n", 2, ["name is written twice"]),
    ("name: mini\n", "", 1, ["name is missing"]),
    ("  batch_size: 4\n", "  batch_size: 4\n\tx: 1\n", 11, ["not valid YAML"]),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), MISTAKES, ids=[f"{m[1].strip()[:30]}" for m in MISTAKES])
def test_a_mistake_is_named_with_its_place(tmp_path: Path, old: str, new: str, line: int, words: list[str]) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(SettingError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ") or (line == 1 and message.startswith(f"{path}: ")), message
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_best_needs_validation(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"score\.at: there is no best without validation"):
        load(write(tmp_path, GOOD.replace("  validate_every: 10\n", "")))


def test_a_missing_file_and_other_things_than_suites(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.yaml: cannot be read"):
        load(tmp_path / "none.yaml")
    for text, words in (
        ("", "is empty"),
        ("- a\n- b\n", "suite"),
        ("name: !!python/object:os.system x", "not valid YAML"),
    ):
        with pytest.raises(SettingError, match=words):
            load(write(tmp_path, text))


def test_set_changes_settings_and_names_itself_in_errors(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    _, runs = load(path, ["recipe.iterations=12", "models[0].options.width=0.5", "seeds=[7]"])
    assert [(r.seed, r.recipe.iterations if r.recipe else None) for r in runs] == [(7, 12), (7, 12)]
    assert runs[0].options == {"width": 0.5}
    for text, words in (
        ("recipe.iteratons=12", "--set recipe.iteratons=12: recipe.iteratons is not a setting"),
        ("recipe.iterations", "write KEY=VALUE"),
        ("models[9].label=x", "there is no item"),
        ("name.x=1", "has no settings"),
    ):
        with pytest.raises(SettingError, match=words.replace("[", r"\[")):
            load(path, [text])
    assert parse_set("a[1].b=1e-3") == (("a", 1, "b"), 1e-3)


def test_only_selects_by_name_or_label(tmp_path: Path) -> None:
    _, runs = load(write(tmp_path, GOOD))
    assert {r.label for r in select(runs, ["Natural"])} == {"Natural"}
    assert {r.label for r in select(runs, ["segnet-basic"])} == {"SegNet-Basic"}
    with pytest.raises(SettingError, match="did you mean"):
        select(runs, ["segnet-basik"])


DATA = {"train": "a", "val": "b", "test": "c"}


def keys_of(tmp_path: Path, text: str = GOOD, data: dict[str, str] = DATA, run: int = 0) -> Keys:
    _, runs = load(write(tmp_path, text))
    return resolve_keys(runs[run], data, Given(), {"device": "x"})


def test_a_key_follows_what_can_change_the_result_and_nothing_else(tmp_path: Path) -> None:
    base = keys_of(tmp_path)
    assert keys_of(tmp_path) == base
    trains = [
        keys_of(tmp_path, GOOD.replace("lr: 0.1", "lr: 0.2")),
        keys_of(tmp_path, GOOD.replace("  - segnet-basic", "  - {name: segnet-basic, options: {width: 0.5}}")),
        keys_of(tmp_path, data={**DATA, "train": "z"}),
        keys_of(tmp_path, data={**DATA, "val": "z"}),
        keys_of(tmp_path, run=1),
    ]
    assert len({base.train, *(k.train for k in trains)}) == 6
    # What is scored, where it is timed and what it is called change no training.
    scored = keys_of(tmp_path, GOOD.replace("[bsds, distance]", "[bsds]"))
    assert scored.train == base.train and scored.evaluate["best"] != base.evaluate["best"]
    assert keys_of(tmp_path, data={**DATA, "test": "z"}).train == base.train
    _, runs = load(write(tmp_path, GOOD))
    wide = resolve_keys(runs[0].model_copy(update={"classes": 37}), DATA, Given(), {"device": "x"})
    assert wide.train != base.train and wide.profile != base.profile
    elsewhere = resolve_keys(runs[0], DATA, Given(), {"device": "y"})
    assert elsewhere.profile != base.profile and elsewhere.record == base.record
    more = keys_of(tmp_path, GOOD.replace("at: [10, last, best]", "at: [best]"))
    assert more.train == base.train and more.evaluate["best"] == base.evaluate["best"]
    assert more.record != base.record


def test_validation_data_is_in_the_key_only_where_it_is_used(tmp_path: Path) -> None:
    text = GOOD.replace("  validate_every: 10\n", "").replace("last, best]", "last]")
    assert keys_of(tmp_path, text).train == keys_of(tmp_path, text, {**DATA, "val": "z"}).train


def test_what_a_network_is_fed_is_in_the_keys_of_what_it_changes(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"x")
    scored = GOOD.replace("  - segnet-basic", "  - {name: segnet-basic, weights: w.safetensors, train: false%s}")
    fed = ", recipe: {input: {order: rgb}}"
    plain, other = keys_of(tmp_path, scored.replace("%s", "")), keys_of(tmp_path, scored.replace("%s", fed))
    assert plain.evaluate != other.evaluate and plain.group != other.group
    assert plain.profile == other.profile  # without the scope model+input a profile starts behind the input
    assert keys_of(tmp_path, scored.replace("%s", ", recipe: {input: {}}")) == plain
    costs = "name: p\nmodels: [{name: segnet, train: false%s}]\nprofile: {res: 45x60, scope: model+input}\n"
    assert keys_of(tmp_path, costs % "").profile != keys_of(tmp_path, costs % fed).profile
    trained = GOOD.replace("\nrecipe:", "\nrecipe:\n  input: {order: rgb}", 1)
    assert keys_of(tmp_path, trained).train != keys_of(tmp_path).train
    assert keys_of(tmp_path, GOOD.replace("\nrecipe:", "\nrecipe:\n  input: {}", 1)) == keys_of(tmp_path)


def test_weights_and_code_are_in_the_keys(tmp_path: Path) -> None:
    _, runs = load(write(tmp_path, GOOD))
    found = [
        resolve_keys(runs[0], DATA, given, {"device": "x"})
        for given in (Given(), Given(weights="w"), Given(code="c"), Given(code="d"))
    ]
    assert len({k.train for k in found}) == len({k.group for k in found}) == 4
    assert [k.profile == found[0].profile for k in found] == [True, True, False, False]


def test_a_shared_training_keeps_what_any_run_needs(tmp_path: Path) -> None:
    text = GOOD.replace("[10, last, best]", "[5, 10, best]")
    _, runs = load(write(tmp_path, text))
    keys = [resolve_keys(run, DATA) for run in runs]
    assert kept_iterations(runs, keys, keys[0].train) == {5, 10}


def test_profile_only_and_given_weights(tmp_path: Path) -> None:
    suite, runs = load(write(tmp_path, "name: p\nmodels: [segnet]\nprofile: {res: 45x60}\nclasses: 5\n"))
    assert runs[0].seed is None and runs[0].recipe is None and runs[0].checkpoints == () and suite.classes == 5
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"x")
    given = GOOD + "\n"
    given = given.replace("  - segnet-basic", "  - {name: segnet-basic, weights: w.safetensors, train: false}")
    _, runs = load(write(tmp_path, given))
    assert runs[0].checkpoints == ("given",) and runs[0].seed is None and runs[0].weights == str(weights)
    with pytest.raises(SettingError, match="no file"):
        load(write(tmp_path, given.replace("w.safetensors", "v.safetensors")))
    with pytest.raises(SettingError, match="leaves nothing for a recipe to set but `input`"):
        load(write(tmp_path, given.replace("train: false", "train: false, recipe: {batch_size: 2}")))
    with pytest.raises(SettingError, match=r"input.*order.*not one of rgb, bgr"):
        load(write(tmp_path, given.replace("train: false", "train: false, recipe: {input: {order: rbg}}")))
    with pytest.raises(SettingError, match="needs `weights: FILE`"):
        load(write(tmp_path, given.replace("weights: w.safetensors, ", "")))
