"""YAML -> Suite, with errors that name the line, the setting, what is allowed and what was probably meant."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from segbench.data import DATASETS
from segbench.engine.recipe import Recipe
from segbench.errors import SettingError
from segbench.models import MODELS
from segbench.registry import did_you_mean
from segbench.settings_file import Loader, Where, place, read_settings, spell
from segbench.suite.plan import Run, plan
from segbench.suite.schema import Suite

THINGS = {
    "Suite": "a suite",
    "ModelSpec": "a model",
    "Recipe": "a recipe",
    "DataSpec": "data",
    "ScoreSpec": "score",
    "Sgd": "sgd",
    "AdamW": "adamw",
    "InputSpec": "an input",
    "Plain": "plain",
    "MonteCarlo": "monte-carlo",
    "DenseCrf": "dense-crf",
}


FORMS = {
    "tuple_type": "write a list, as in [a, b]",
    "dict_type": "write settings, as in {key: value}",
    "model_type": "write settings, as in {key: value}",
    "model_attributes_type": "write settings, as in {key: value}",
    "string_type": "write a word",
}


@dataclass(frozen=True)
class Source:
    """Where each setting was written: lines of the file, and the settings that the command line gave."""

    path: Path
    lines: dict[Where, int]
    overridden: dict[Where, str]

    def model(self, index: int) -> str:
        """Where a model is written, as an error begins."""
        return str(self.error(("models", index), spell(("models", index))))

    def error(self, where: Where, message: str) -> SettingError:
        """An error at a setting, or at the nearest one that is written down."""
        for length in range(len(where), -1, -1):
            if where[:length] in self.overridden:
                return SettingError(f"--set {self.overridden[where[:length]]}: {message}")
            if where[:length] in self.lines:
                break
        return SettingError(f"{place(self.path, self.lines, where)}: {message}")


def load(path: Path, sets: Sequence[str] = (), allow_code: bool = False) -> tuple[Suite, list[Run]]:
    """Read a suite and plan its runs; `sets` are `recipe.iterations=200` and the like, applied before validation.

    `allow_code`: models may be `package.module:factory`, which is imported later. Raises `SettingError` on the first
    mistake, before anything is imported that a run needs.
    """
    values, lines = read_settings(path, "a suite", "`name`, `models` and something to do")
    overridden: dict[Where, str] = {}
    for text in sets:
        where, value = parse_set(text)
        put(values, where, value, text)
        overridden[where] = text
    for own, other in (("epochs", "iterations"), ("iterations", "epochs")):  # either of them replaces the other
        if ("recipe", own) in overridden and ("recipe", other) not in overridden:
            values["recipe"].pop(other, None)
    source = Source(path, lines, overridden)
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        raise explain(source, error, Suite, ()) from None
    suite = absolute(suite, path.parent)
    if not allow_code:
        for index, model in enumerate(suite.models):
            located(source, ("models", index, "name"), partial(MODELS.check_allowed, model.name))
    check_names(source, suite)
    return suite, plan(suite, merge_errors(source, suite), source.model)


def absolute(suite: Suite, base: Path) -> Suite:
    """Paths in a suite are relative to its file."""
    updates: dict[str, Any] = {
        "models": tuple(
            m.model_copy(update={"weights": base / m.weights}) if isinstance(m.weights, Path) else m
            for m in suite.models
        )
    }
    if suite.data and suite.data.root:
        updates["data"] = suite.data.model_copy(update={"root": base / suite.data.root})
    return suite.model_copy(update=updates)


def parse_set(text: str, flag: str = "--set") -> tuple[Where, Any]:
    """`models[1].options.width=0.5` -> (("models", 1, "options", "width"), 0.5)."""
    key, equals, value = text.partition("=")
    steps = key.strip().replace("[", ".[").split(".")
    if not equals or not all(steps):
        raise SettingError(f"{flag} {text}: write KEY=VALUE, as in recipe.iterations=200")
    where: list[str | int] = []
    for step in steps:
        index = step.removeprefix("[").removesuffix("]")
        where.append(int(index) if step.startswith("[") and index.isdecimal() else step)
    try:
        return tuple(where), yaml.load(value, Loader)
    except (yaml.YAMLError, ValueError):
        raise SettingError(f'{flag} {text}: "{value}" is not a YAML value') from None


def put(values: Any, where: Where, value: Any, text: str) -> None:
    """Set one value in the nested settings, making mappings on the way."""
    for step, following in zip(where, [*where[1:], None], strict=True):
        if isinstance(step, int):
            if not isinstance(values, list) or step >= len(values):
                raise SettingError(f"--set {text}: there is no item [{step}]")
        elif not isinstance(values, dict):
            raise SettingError(f'--set {text}: "{step}" stands below something that has no settings')
        if following is None:
            values[step] = value
        elif isinstance(step, int):
            # A model written as a name alone has room for settings once it is a mapping.
            values[step] = {"name": values[step]} if isinstance(values[step], str) else values[step]
            values = values[step]
        else:
            values = values.setdefault(step, {})


def check_names(source: Source, suite: Suite) -> None:
    """Names of models and datasets exist, and no two models share a label."""
    if suite.data:
        located(source, ("data", "name"), partial(DATASETS.entry, suite.data.name))
    labels: set[str] = set()
    for index, model in enumerate(suite.models):
        located(source, ("models", index, "name"), partial(MODELS.entry, model.name))
        label = model.label or MODELS.label(model.name)
        if label in labels:
            raise source.error(
                ("models", index), f'models[{index}]: another model is called "{label}"; give this one a `label`'
            )
        labels.add(label)
        if not model.train and model.weights is None and (suite.score or suite.recipe):
            raise source.error(("models", index), f"models[{index}]: train: false needs `weights: FILE` to score")
        if suite.score and not suite.recipe and not model.recipe and not model.weights:
            raise source.error(("models", index), f"models[{index}]: nothing to score; add a recipe, or weights to it")
        if isinstance(model.weights, Path) and not model.weights.is_file():
            raise source.error(("models", index, "weights"), f"models[{index}].weights: no file {model.weights}")


def located(source: Source, where: Where, action: Callable[[], object]) -> None:
    """Give an error of the registry its place in the file."""
    try:
        action()
    except SettingError as error:
        raise source.error(where, f"{spell(where)}: {error}") from None


def merge_errors(source: Source, suite: Suite) -> Callable[[int, ValidationError | ValueError], SettingError]:
    """How `plan` words a mistake in the merged recipe of model `index`: at the model's key, else at the suite's."""

    def word(index: int, error: ValidationError | ValueError) -> SettingError:
        model = ("models", index, "recipe")
        if not isinstance(error, ValidationError):
            return source.error(("score", "at"), str(error))
        key = first_of(error)["loc"][:1]
        given = suite.models[index].recipe
        return explain(source, error, Recipe, model if key and key[0] in given else ("recipe",))

    return word


def explain(source: Source, error: ValidationError, root: type[BaseModel], base: Where) -> SettingError:
    """The first mistake of a validation, in a reader's words, at its place."""
    written, words = in_words(error, root)
    where = (*base, *written)
    return source.error(where, f"{spell(where) or 'the suite'}{words}")


def in_words(error: ValidationError, root: type[BaseModel]) -> tuple[Where, str]:
    """The first mistake of a validation: the setting inside `root`, and what to write behind the name of it.

    `: "fp31" is not one of fp32, tf32; did you mean "fp32"?` or ` is missing`: the name is the caller's, for a suite
    calls `time_batch` what the command line calls `--batch`.
    """
    first = first_of(error)
    cls, written = follow(root, first["loc"])
    kind, found = first["type"], first["input"]
    if kind == "extra_forbidden":
        word, known = str(written[-1]), list(cls.model_fields)
        thing = THINGS.get(cls.__name__, cls.__name__.removesuffix("Spec").lower())
        return written, f" is not a setting of {thing} ({', '.join(known)}){did_you_mean(word, known)}"
    if kind == "missing":
        return written, " is missing"
    if kind == "union_tag_not_found":
        return written, ".name is missing; say which, as in {name: ...}"
    if kind in FORMS:
        return written, f": {FORMS[kind]}"
    if kind in ("literal_error", "union_tag_invalid"):
        context = first.get("ctx", {})
        expected = str(context.get("expected") or context.get("expected_tags"))
        given = str(found.get("name") if isinstance(found, dict) else found)
        words = [w.strip("' ") for w in expected.replace(" or ", ", ").split(",")]
        return written, f': "{given}" is not one of {", ".join(words)}{did_you_mean(given, words)}'
    text = first["msg"].removeprefix("Value error, ")
    # Our own validators say what they found; pydantic's do not.
    silent = kind != "value_error" and isinstance(found, str | int | float | None)
    return written, f": {text[0].lower()}{text[1:]}" + (f"; found {json.dumps(found)}" if silent else "")


def first_of(error: ValidationError) -> Any:
    """The mistake to tell: an unknown key before what is missing because of it."""
    return min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")


def follow(cls: type[BaseModel], loc: Iterable[str | int]) -> tuple[type[BaseModel], Where]:
    """The spec that a pydantic location lies in, and the location without the tags of unions."""
    written: list[str | int] = []
    inside: list[type[BaseModel]] = [cls]
    for step in loc:
        if isinstance(step, int):
            if written[-1:] != ["profile"]:  # written once for all points of a sweep
                written.append(step)
            continue
        owners = [c for c in inside if step in c.model_fields]
        tagged = [c for c in inside if "name" in c.model_fields and step in get_args(c.model_fields["name"].annotation)]
        if owners:
            cls = owners[0]
            written.append(step)
            inside = list(specs_in(cls.model_fields[step].annotation)) or inside
        elif tagged:
            inside = tagged
            cls = tagged[0]
        elif len(inside) == 1:
            cls = inside[0]
            written.append(step)
    return cls, tuple(written)


def specs_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The specs that an annotation mentions: those of `tuple[Annotated[ModelSpec, ...], ...]` are [ModelSpec]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from specs_in(part)
