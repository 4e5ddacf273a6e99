"""Names of models and datasets, resolved on use: a table of strings costs no import.

An entry's target is `"module:object"`, and its `options` are those of the object that make the name what it is: several
names may share an object. A family (`smp:Unet`) is one entry whose object takes the part behind the colon as its first
argument. Where a table allows it, `package.module:object` names code outside of it. A name given twice is our own
mistake and fails on import.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from segbench.errors import SettingError


class Form(NamedTuple):
    """Another reading of a paper: the options that make it, and the size that it is made for where there is one."""

    options: Mapping[str, Any]
    res: tuple[int, int] | None = None


class Entry(NamedTuple):
    """One line of a table: where the object is, how papers call it, where it was published.

    `options` are preset; `inference` says how label maps are made where it is not the largest logit (the settings of
    one of segbench.engine.inference); `forms` are readings worth counting beside the default.
    """

    target: str
    label: str
    source: str
    options: Mapping[str, Any] = {}
    inference: Mapping[str, Any] | None = None
    forms: tuple[Form, ...] = ()


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """`; did you mean "segnet"?` when one of the allowed words is near, else an empty string."""
    near = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


class Registry:
    """An explicit table of one kind of thing (`"model"`, `"dataset"`); `code` is the entry of names outside of it."""

    def __init__(self, kind: str, entries: Sequence[tuple[str, Entry]], code: Entry | None = None) -> None:
        self.kind = kind
        self.code = code
        self.entries = dict(entries)
        if len(self.entries) != len(entries):
            names = [name for name, _ in entries]
            raise ValueError(f"{kind} registered twice: {sorted({n for n in names if names.count(n) > 1})}")

    def entry(self, name: str) -> Entry:
        """The entry of a name, of its family, or of code; raises `SettingError` with the nearest name."""
        if name in self.entries and not name.endswith(":"):
            return self.entries[name]
        family, colon, member = name.partition(":")
        if colon and member and f"{family}:" in self.entries:
            return self.entries[f"{family}:"]
        if name in self.entries:
            raise SettingError(f'{self.kind} "{name}" names a family; put one of its members behind the colon')
        if self.is_code(name):
            assert self.code
            return self.code
        known = ", ".join(f"{n}NAME" if n.endswith(":") else n for n in self.entries)
        raise SettingError(f'unknown {self.kind} "{name}"{did_you_mean(name, self.entries)} (known: {known})')

    def is_code(self, name: str) -> bool:
        """Whether a name is `package.module:object`: using it runs code, which its user must have allowed."""
        module, _, attribute = name.partition(":")
        words = [*module.split("."), attribute]
        return self.code is not None and f"{module}:" not in self.entries and all(word.isidentifier() for word in words)

    def check_allowed(self, name: str) -> None:
        """Raises `SettingError` for a name of code."""
        if self.is_code(name):
            families = [n for n in self.entries if n.endswith(":")]
            near = did_you_mean(name.partition(":")[0] + ":", families)
            raise SettingError(f'"{name}" is no {self.kind} of the table{near}; code of yours runs with --allow-code')

    def label(self, name: str) -> str:
        """How papers call it; a member of a family goes by its full name."""
        return self.entry(name).label if name in self.entries else name

    def resolve(self, name: str) -> Callable[..., Any]:
        """Import the object of a name: a class or factory."""
        module, _, attribute = self.entry(name).target.partition(":")
        found = getattr(import_module(module), attribute)
        if name not in self.entries:
            return partial(found, name if self.is_code(name) else name.partition(":")[2])
        preset = self.entries[name].options
        return partial(found, **preset) if preset else found

    def identity(self, name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """What a name and its options stand for: equal for names that differ only in how they are called."""
        entry = self.entry(name)
        own = name in self.entries
        return entry.target if own else name, {**entry.options, **options} if own else dict(options)
