"""The file behind `--translate`: what the classes of a model are among those of the truth, as in Cityscapes' trainIds.

    0: Road                  # an id in the predictions: the name of a class, an id of the truth's files, or void
    1: Pavement
    255: void

With the model's own names, its classes may be called by them:

    classes: [road, sidewalk, sky]       # ids 0, 1, 2
    road: Road
    sidewalk: Pavement
    sky: Sky

Several classes of a model may become one. An id that is not mentioned is out of range where a prediction holds it.
Colour images are read through the palette of the truth's classes and need no translation.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from segbench.data.labels import REFUSED, lookup
from segbench.registry import did_you_mean
from segbench.scoring.class_file import Written
from segbench.scoring.classes import ClassList
from segbench.settings_file import read_settings


def translated(classes: ClassList, path: Path) -> ClassList:
    """The classes with predictions numbered as the file of a translation says.

    Raises `SettingError` naming the line, what was found and what is allowed.
    """
    written = Written(path, *read_settings(path, "a translation", "`ID: CLASS`"))
    model = _model_names(written)
    targets: dict[int, int] = {}
    for key, value in written.values.items():
        if key == "classes":
            continue
        model_id = _model_id(written, key, model)
        if model_id in targets:
            raise written.error(
                (str(key),), f"id {model_id} twice", "each class of the model once, by its id or its name"
            )
        targets[model_id] = _target(written, key, value, classes)
    if not targets:
        raise written.error((), "no class of the model", "at least one `ID: CLASS`")
    return replace(classes, prediction_table=lookup(targets), numbering=str(path))


def _model_names(written: Written) -> list[str]:
    given = written.values.get("classes", [])
    if not isinstance(given, list):
        raise written.error(("classes",), repr(given), "the names of the model's classes, as a list")
    names = [name if name == "void" else written.check_name(("classes", i), name) for i, name in enumerate(given)]
    if len(set(names)) < len(names):
        index = next(i for i, name in enumerate(names) if name in names[:i])
        raise written.error(("classes", index), f'"{names[index]}" twice', "a name of its own for each class")
    return names


def _model_id(written: Written, key: Any, model: list[str]) -> int:
    if isinstance(key, str) and key in model:
        return written.check_id((key,), model.index(key))
    if isinstance(key, str):
        names = f"ids 0..255, or a name of `classes:`{did_you_mean(key, model)}" if model else "ids 0..255"
        raise written.error((key,), f'"{key}"', names)
    return written.check_id((str(key),), key)


def _target(written: Written, key: Any, value: Any, classes: ClassList) -> int:
    """The class, or K for void, that a name or an id of the truth's files stands for."""
    if value == "void":
        return len(classes)
    if isinstance(value, str) and value in classes.names:
        return classes.names.index(value)
    if type(value) is int and 0 <= value <= 255 and classes.file_table[value] != REFUSED:
        return int(classes.file_table[value])
    near = did_you_mean(str(value), [*classes.names, "void"])
    known = ", ".join(classes.names)
    raise written.error((str(key),), repr(value), f"void, an id of the truth's files, or one of {known}{near}")
