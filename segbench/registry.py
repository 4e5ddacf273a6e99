"""Names of models and datasets, resolved on use: a table of strings costs no import.

An entry's target is `"module:object"`. A family (`smp:Unet`) is one entry whose object takes the part
behind the colon as its first argument. A name given twice is our own mistake and fails on import.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from segbench.errors import SettingError


class Entry(NamedTuple):
    """One line of a table: where the object is, how papers call it, where it was published."""

    target: str
    label: str
    source: str


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """`; did you mean "segnet"?` when one of the allowed words is near, else an empty string."""
    near = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


class Registry:
    """An explicit table of one kind of thing (`"model"`, `"dataset"`)."""

    def __init__(self, kind: str, entries: Sequence[tuple[str, Entry]]) -> None:
        self.kind = kind
        self.entries = dict(entries)
        if len(self.entries) != len(entries):
            names = [name for name, _ in entries]
            raise ValueError(f"{kind} registered twice: {sorted({n for n in names if names.count(n) > 1})}")

    def entry(self, name: str) -> Entry:
        """The entry of a name, or of its family; raises `SettingError` with the nearest name."""
        if name in self.entries and not name.endswith(":"):
            return self.entries[name]
        family, colon, member = name.partition(":")
        if colon and member and f"{family}:" in self.entries:
            return self.entries[f"{family}:"]
        if name in self.entries:
            raise SettingError(f'{self.kind} "{name}" names a family; put one of its members behind the colon')
        known = ", ".join(f"{n}NAME" if n.endswith(":") else n for n in self.entries)
        raise SettingError(f'unknown {self.kind} "{name}"{did_you_mean(name, self.entries)} (known: {known})')

    def label(self, name: str) -> str:
        """How papers call it; a member of a family goes by its full name."""
        return self.entry(name).label if name in self.entries else name

    def resolve(self, name: str) -> Callable[..., Any]:
        """Import the object of a name: a class or factory."""
        module, _, attribute = self.entry(name).target.partition(":")
        found = getattr(import_module(module), attribute)
        return found if name in self.entries else partial(found, name.partition(":")[2])
