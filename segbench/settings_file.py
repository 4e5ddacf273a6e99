"""YAML that people write: plain values, and the line on which each of them stands, for error messages.

No code is run, `1e-3` is a number as in YAML 1.2, and a key that is written twice is an error, since YAML would drop
one silently.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from segbench.errors import SettingError

Where = tuple[str | int, ...]
"""The way to a setting: ("models", 2, "name"). Keys are as written, so the number 7 as a key is "7"."""


class Loader(yaml.SafeLoader):
    """Plain YAML without code, in which `1e-3` is a number, as in YAML 1.2."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_settings(path: Path, thing: str, least: str) -> tuple[dict[Any, Any], dict[Where, int]]:
    """Values of a file, and the line of every key and list item in it.

    `thing` is what the file should be ("a suite") and `least` what one holds at the least, for the error messages.
    Raises `SettingError` for a file that cannot be read, is no YAML or holds no settings.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors begin it with a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SettingError(f"{path}: cannot be read as {thing} ({reason})") from None
    loader: Loader | None = None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise SettingError(f"{path}: is empty; {thing} has at least {least}")
        lines = dict(walk(path, node, ()))
        values = loader.construct_document(node)
        if not isinstance(values, dict):
            raise SettingError(f"{path}: is not {thing}; it holds no settings; {thing} has at least {least}")
        return values, lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise SettingError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SettingError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError) as error:  # 2024-13-45 is no date, and an alias may stand inside itself
        raise SettingError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader:
            loader.dispose()


def walk(path: Path, node: yaml.Node, where: Where) -> Iterator[tuple[Where, int]]:
    """The line of each setting below a node; raises `SettingError` for a key that stands twice."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise SettingError(f"{path}:{line}: a setting's name is a word, not a list or mapping")
            if key.value in seen:
                raise SettingError(f"{path}:{line}: {spell((*where, key.value))} is written twice; remove one")
            seen.add(key.value)
            yield (*where, key.value), line
            yield from walk(path, value, (*where, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*where, index), value.start_mark.line + 1
            yield from walk(path, value, (*where, index))


def place(path: Path, lines: Mapping[Where, int], where: Where) -> str:
    """`suite.yaml:7`: the line of a setting, or of the nearest one around it that is written down."""
    nearest = next((where[:length] for length in range(len(where), -1, -1) if where[:length] in lines), None)
    return str(path) if nearest is None else f"{path}:{lines[nearest]}"


def spell(where: Where) -> str:
    """("models", 2, "name") -> `models[2].name`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where)
    return text.removeprefix(".")
