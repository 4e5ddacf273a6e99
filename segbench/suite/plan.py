"""Suite -> runs, and the keys under which their stages are kept. Pure: nothing is read, opened or started here.

A key hashes what can change a result and nothing else, so two runs that differ only after training share it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from segbench.data import DATASETS
from segbench.data.spec import DataSpec
from segbench.engine.inference import PLAIN, Inference
from segbench.engine.order import with_length
from segbench.engine.recipe import TRAIN_VERSION, Recipe
from segbench.errors import ModelError, SegbenchError, SettingError
from segbench.models import MODELS
from segbench.models.imagenet import weights_digest
from segbench.models.input_spec import InputSpec, OwnInput
from segbench.profiling.spec import PROFILE_VERSION, ProfileSpec
from segbench.profiling.sweep import told_apart
from segbench.registry import did_you_mean
from segbench.scoring.spec import EVALUATE_VERSION, ScoreSpec
from segbench.spec import Spec
from segbench.suite.schema import ModelSpec, Suite


class Run(Spec):
    """One model, one recipe, one seed. `seed` is None where nothing is random: nothing is trained."""

    suite: str
    label: str
    model: str
    options: dict[str, Any]
    weights: str | None
    recipe: Recipe | None
    input: InputSpec | None = None
    inference: Inference = PLAIN
    seed: int | None
    data: DataSpec | None
    score: ScoreSpec | None
    profile: ProfileSpec | None
    classes: int
    where: Annotated[str, Field(exclude=True)] = ""
    """File, line and key of the model, for messages."""
    point: Annotated[str, Field(exclude=True)] = ""
    """What tells its profile from the others of a sweep; the profile holds it too."""

    @property
    def name(self) -> str:
        """`segnet-basic-s0`, `segnet-bf16`: what progress and records call it."""
        slug = re.sub(r"[^a-z0-9]+", "-", f"{self.label} {self.point}".lower()).strip("-") or "run"
        return slug if self.seed is None else f"{slug}-s{self.seed}"

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Names of the checkpoints that are scored: iterations, `best`, or `given` for weights from elsewhere."""
        if not self.score:
            return ()
        if self.recipe is None:
            return ("given",)
        # Of a training that may stop early nobody knows yet where it ends.
        last = "last" if self.recipe.patience else self.recipe.iterations or "last"
        return tuple(dict.fromkeys(str(last if at == "last" else at) for at in self.score.at))


LENGTHS = {"iterations", "epochs"}


class Given(NamedTuple):
    """Digests of what a run takes from outside: its file of weights, and the code of a model that is not ours."""

    weights: str | None = None
    code: str | None = None


NOTHING_GIVEN = Given()


class Keys(NamedTuple):
    """Keys of a run's stages, the name of its record, and what it shares with runs that differ in the seed alone."""

    train: str | None
    evaluate: dict[str, str]
    profile: str | None
    record: str
    group: str


def plan(
    suite: Suite, word: Callable[[int, ValidationError | ValueError], SettingError], where: Callable[[int], str]
) -> list[Run]:
    """Every run of a suite, a model's points of a sweep together and seeds innermost; `word` turns a mistake in a
    merged recipe into the error to raise, `where` says in which line a model stands."""
    runs = []
    for index, model in enumerate(suite.models):
        try:
            recipe, fed = merged_recipe(suite, model), input_of(model)
            check_checkpoints(suite.score, recipe)
        except ValueError as error:  # pydantic's ValidationError is one
            raise word(index, error) from None
        run = make_run(suite, model, recipe, recipe.input if recipe else fed, where(index))
        for point, seed in product(points_of(suite), suite.seeds if recipe else (None,)):
            runs.append(run.model_copy(update={**point, "seed": seed}))
    return runs


def points_of(suite: Suite) -> list[dict[str, Any]]:
    """What each point of the profile's sweep sets in a run."""
    words = map(" ".join, told_apart(suite.profile))
    return [{"profile": p, "point": w} for p, w in zip(suite.profile, words, strict=True)] or [{"profile": None}]


def merged_recipe(suite: Suite, model: ModelSpec) -> Recipe | None:
    """The suite's recipe with the model's settings over it; None where nothing is trained."""
    if not model.train or (suite.recipe is None and not model.recipe):
        return None
    shared, own = dict(suite.recipe or {}), model.recipe
    if LENGTHS & set(own):  # either of them replaces the other
        shared = {key: value for key, value in shared.items() if key not in LENGTHS}
    return Recipe.model_validate({**shared, **own})


def with_lengths(runs: Sequence[Run], images: int | None) -> list[Run]:
    """The runs with their epochs as iterations, given the number of training images; as they are where there is none.

    Raises `SettingError` where a checkpoint is past the end, which was not known before.
    """
    return [run if run.recipe is None or images is None else with_length_of(run, run.recipe, images) for run in runs]


def with_length_of(run: Run, recipe: Recipe, images: int) -> Run:
    try:
        found = with_length(recipe, images)
        check_checkpoints(run.score, found)
    except (ValueError, SettingError) as error:
        raise SettingError(f"{run.where}: {error}") from None
    return run.model_copy(update={"recipe": found})


def check_checkpoints(score: ScoreSpec | None, recipe: Recipe | None) -> None:
    """Every checkpoint that is to be scored will exist."""
    if not score or not recipe:
        return
    named = [at for at in score.at if isinstance(at, int)]
    if named and recipe.patience:
        raise ValueError(f"score.at: with patience a training may end before {named[0]}; write best or last")
    late = [at for at in named if recipe.iterations and at > recipe.iterations]
    if late:
        raise ValueError(f"score.at: {late[0]} is past the last iteration ({recipe.iterations}); lower it")
    if "best" in score.at and recipe.validate_every is None:
        raise ValueError("score.at: there is no best without validation; set recipe.validate_every")


def inference_of(model: ModelSpec) -> Inference:
    """What the suite asks for, else what the name stands for."""
    declared = MODELS.entry(model.name).inference
    return model.inference or TypeAdapter(Inference).validate_python(declared or {"name": "plain"})


class InputAlone(Spec):
    """All that the recipe of a model that is not trained may hold."""

    input: OwnInput = None


def input_of(model: ModelSpec) -> InputSpec | None:
    """What a model says of its input itself."""
    return InputAlone.model_validate({key: value for key, value in model.recipe.items() if key == "input"}).input


def make_run(suite: Suite, model: ModelSpec, recipe: Recipe | None, fed: InputSpec | None, where: str) -> Run:
    """The run of a model, before it has a seed and a point of the profile."""
    scored = suite.score if recipe or model.weights else None
    return Run(
        suite=suite.name,
        label=model.label or MODELS.label(model.name),
        model=model.name,
        options=model.options,
        weights=str(model.weights) if model.weights else None,
        recipe=recipe,
        input=fed,
        inference=inference_of(model),
        seed=None,
        data=suite.data,
        score=scored,
        profile=None,
        classes=len(DATASETS.resolve(suite.data.name).classes) if suite.data else suite.classes or 11,  # type: ignore[attr-defined]
        where=where,
    )


def digest(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve_keys(
    run: Run,
    data: Mapping[str, str],
    given: Given = NOTHING_GIVEN,
    machine: Mapping[str, str | None] | None = None,
) -> Keys:
    """Keys of a run, given the digests of its splits (`train`, `val`, `test`) and of what it takes from outside, and,
    for the profile, the device, its threads and the library versions."""
    model, weights = [*MODELS.identity(run.model, run.options), run.classes, given.code], given.weights
    score = run.score.model_dump(exclude={"at"}) if run.score else None
    # Epochs have become iterations, where the images could be counted.
    known = {"epochs"} if run.recipe and run.recipe.iterations else None
    recipe = run.recipe.model_dump(exclude=known) if run.recipe else None
    profile = run.profile.measured() if run.profile else None
    seen = data.get("train"), data.get("val") if run.recipe and run.recipe.validate_every else None
    train = digest([TRAIN_VERSION, model, recipe, run.seed, weights, *seen]) if recipe else None
    fed = run.input.model_dump() if run.input else None
    inference = run.inference.model_dump()
    predicted = [train or [model, weights, fed], inference]
    evaluate = {at: digest([EVALUATE_VERSION, predicted, at, score, data.get("test")]) for at in run.checkpoints}
    included = fed if run.profile and "input" in run.profile.scope else None
    timed = digest([PROFILE_VERSION, model, profile, included, machine]) if profile else None
    name = digest([train, evaluate, profile, model, run.label])[:8]
    scored = [inference, score, data.get("test")] if score else None
    group = digest([model, recipe, weights, fed, seen if recipe else None, scored, profile])
    return Keys(train, evaluate, timed, f"{run.name}-{name}", group)


def select(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    """The runs of the models that `only` names, by name or label; all of them where it names none."""
    known = list(dict.fromkeys(word for run in runs for word in (run.model, run.label)))
    for word in only:
        if word not in known:
            raise SettingError(
                f"--only {word}: the suite has no such model{did_you_mean(word, known)} (it has {', '.join(known)})"
            )
    return [run for run in runs if not only or run.model in only or run.label in only]


def needed_splits(runs: Sequence[Run]) -> list[str]:
    """The splits that some run reads."""
    needed = {
        "train": any(run.recipe for run in runs),
        "val": any(run.recipe and run.recipe.validate_every for run in runs),
        "test": any(run.score for run in runs),
    }
    return [split for split, reads in needed.items() if reads]


def given(run: Run) -> Given:
    """The digests of a run's weights and of its model's code; imports that code, and torch, where there is some."""
    weights = weights_digest(run.weights) if run.weights else None
    if not MODELS.is_code(run.model):
        return Given(weights)
    from segbench.models.code import source_digest

    try:
        return Given(weights, source_digest(run.model))
    except SegbenchError as error:
        raise ModelError(f"{run.where}: {error}") from None


def kept_iterations(runs: Sequence[Run], keys: Sequence[Keys], train: str | None) -> set[int]:
    """Iterations whose weights some run needs of the training `train`."""
    wanted = (at for run, key in zip(runs, keys, strict=True) if key.train == train for at in run.checkpoints)
    return {int(at) for at in wanted if at.isdigit()}
