"""The file behind `--classes`: the classes of predictions and truth that belong to no dataset of the table.

    classes: [road, pavement, sky]             # ids 0, 1, 2; or by id: {7: road, 8: pavement, 23: sky}
    void: [0, 255]                             # ids that are not scored; none where this is left out
    palette: [[128, 64, 128], [244, 35, 232], [70, 130, 180]]   # for colour images; or {road: [...], ...}
    void_colour: [0, 0, 0]                     # black where this is left out and no class is black
    sequences: "([^_]+)_"                      # its first group is the video sequence in a file's name

Ids go upwards, so that class indices (`--prediction-ids classes`) and a palette written as a list have one order.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segbench.data.dataset import Colour
from segbench.data.labels import lookup
from segbench.data.palette import Palette
from segbench.errors import SettingError
from segbench.registry import did_you_mean
from segbench.scoring.classes import MOST_CLASSES, ClassList
from segbench.settings_file import Where, place, read_settings, spell

KEYS = ("classes", "void", "palette", "void_colour", "sequences")
BLACK = (0, 0, 0)


def read_classes(path: Path) -> ClassList:
    """The classes of a file. Raises `SettingError` naming the line, what was found and what is allowed."""
    written = Written(path, *read_settings(path, "a file of classes", "`classes: [NAME, ...]`"))
    for key in written.values:
        if key not in KEYS:
            raise written.error((str(key),), f'"{key}"', ", ".join(KEYS) + did_you_mean(str(key), KEYS))
    names = _names(written)
    table = {file_id: index for index, file_id in enumerate(names)}
    table |= {file_id: len(names) for file_id in _void(written, names)}
    colours = _palette(written, names)
    void_colour = _void_colour(written, colours)
    try:
        Palette(list(names.values()), colours or (), void_colour)
    except ValueError as error:
        raise written.error(("palette",), str(error), "a colour of its own for each class and for void") from None
    return ClassList(
        tuple(names.values()),
        lookup(table),
        lookup(table),
        colours=colours,
        void_colour=void_colour,
        sequence_pattern=_sequences(written),
    )


@dataclass(frozen=True)
class Written:
    """The values of a file, and where each of them stands."""

    path: Path
    values: Mapping[Any, Any]
    lines: Mapping[Where, int]

    def error(self, where: Where, found: str, allowed: str) -> SettingError:
        """What to raise at a value."""
        name = f"{spell(where)}: " if where else ""
        return SettingError(f"{place(self.path, self.lines, where)}: {name}found {found}; allowed: {allowed}")

    def check_id(self, where: Where, value: Any) -> int:
        """A whole number of a byte."""
        if type(value) is not int or not 0 <= value <= 255:
            raise self.error(where, f"{value!r} as an id", "whole numbers 0..255")
        return value

    def check_name(self, where: Where, value: Any) -> str:
        """A word; YAML takes yes, no, on and off for truth values, and 1 for a number."""
        if not isinstance(value, str) or not value.strip():
            raise self.error(
                where, f"{value!r} as a name", 'a word, in quotes where YAML takes it for something else ("on")'
            )
        if value == "void":
            raise self.error(where, '"void" as the name of a class', "any other name; the ids of void go under `void:`")
        return value


def _names(written: Written) -> dict[int, str]:
    """The name of each id, in the order of the classes."""
    given = written.values.get("classes")
    if not isinstance(given, list | dict) or not given:
        raise written.error(("classes",), repr(given), "a list of names, or {ID: NAME, ...}")
    if len(given) > MOST_CLASSES:
        raise written.error(("classes",), f"{len(given)} classes", f"at most {MOST_CLASSES}")
    items = given.items() if isinstance(given, dict) else enumerate(given)
    names: dict[int, str] = {}
    for key, value in items:
        where = ("classes", str(key) if isinstance(given, dict) else key)
        name = written.check_name(where, value)
        if name in names.values():
            raise written.error(where, f'"{name}" twice', "a name of its own for each class")
        if written.check_id(where, key) <= max(names, default=-1):
            raise written.error(where, f"{key} after {max(names)}", "ids upwards, which is the order of the classes")
        names[key] = name
    return names


def _void(written: Written, names: Mapping[int, str]) -> list[int]:
    given = written.values.get("void")
    listed = given if isinstance(given, list) else [] if given is None else [given]
    ids = [written.check_id(("void", i), value) for i, value in enumerate(listed)]
    for index, file_id in enumerate(ids):
        if file_id in names:
            raise written.error(("void", index), f"{file_id}, the id of {names[file_id]}", "ids that no class has")
    return ids


def _palette(written: Written, names: Mapping[int, str]) -> tuple[Colour, ...] | None:
    """A list in the order of the classes, or a mapping from their names or ids."""
    given = written.values.get("palette")
    if given is None:
        return None
    if not isinstance(given, list | dict) or len(given) != len(names):
        found = f"{len(given)} colours" if isinstance(given, list | dict) else repr(given)
        raise written.error(("palette",), found, f"{len(names)}, one [R, G, B] for each class")
    if isinstance(given, list):
        return tuple(_colour(written, ("palette", index), value) for index, value in enumerate(given))
    by_name: dict[str, Colour] = {}
    for key, value in given.items():
        name, where = names.get(key, key), ("palette", str(key))
        if name not in names.values() or name in by_name:
            near = did_you_mean(str(key), names.values())
            raise written.error(where, f'"{key}"', f"each class once, by its name or id{near}")
        by_name[name] = _colour(written, where, value)
    return tuple(by_name[name] for name in names.values())


def _void_colour(written: Written, colours: tuple[Colour, ...] | None) -> Colour | None:
    given = written.values.get("void_colour")
    if given is None:
        return BLACK if colours and BLACK not in colours else None
    if colours is None:
        raise written.error(("void_colour",), "a colour of void alone", "void_colour beside a palette of the classes")
    return _colour(written, ("void_colour",), given)


def _colour(written: Written, where: Where, value: Any) -> Colour:
    channels = value if isinstance(value, list) else []
    if len(channels) != 3 or any(type(channel) is not int or not 0 <= channel <= 255 for channel in channels):
        raise written.error(where, repr(value), "[R, G, B] of whole numbers 0..255")
    return channels[0], channels[1], channels[2]


def _sequences(written: Written) -> str | None:
    given = written.values.get("sequences")
    if given is None:
        return None
    allowed = 'a regular expression with a group that is the sequence, as in "([^_]+)_"'
    try:
        if not isinstance(given, str) or re.compile(given).groups < 1:
            raise written.error(("sequences",), repr(given), allowed)
    except re.error as error:
        raise written.error(("sequences",), f"{given!r} ({error})", allowed) from None
    return given
