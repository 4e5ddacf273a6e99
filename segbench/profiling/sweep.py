"""Several profiles written as one: a list where one value stands makes a profile of each, in every combination.

`{res: [360x480, 720x960], precision: [fp32, bf16]}` are four, the last setting changing fastest.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from segbench.profiling.spec import ProfileSpec

SWEPT = ("res", "backend", "precision", "time_batch")
NAMES = {"time_batch": "batch {}", "res": "{}", "precision": "{}", "backend": "{}"}


def points(values: Any) -> Any:
    """The settings of each profile, not yet validated; what is no group of settings is left for pydantic to refuse."""
    if values is None:
        return ()
    if isinstance(values, tuple) and all(isinstance(value, ProfileSpec) for value in values):
        return values
    if not isinstance(values, Mapping):
        return (values,)
    lists = {key: values[key] for key in SWEPT if is_list(key, values.get(key))}
    for key, given in lists.items():
        if not given:
            raise ValueError(f"profile.{key} is an empty list; name one value at least")
        if len({repr(value) for value in given}) < len(given):
            raise ValueError(f"profile.{key} names a value twice; name each once")
    return [dict(values) | dict(zip(lists, point, strict=True)) for point in product(*lists.values())]


def is_list(key: str, value: Any) -> bool:
    """A list of values; [360, 480] is one size, not two."""
    return isinstance(value, list | tuple) and not (key == "res" and all(type(side) is int for side in value) and value)


def told_apart(specs: Sequence[ProfileSpec]) -> list[list[str]]:
    """Of each profile the settings in which they differ, in words: ["360x480", "bf16", "batch 4"]."""
    values = [spec.model_dump(mode="json") for spec in specs]
    differing = [key for key in SWEPT if len({str(value[key]) for value in values}) > 1]
    return [[NAMES[key].format(value[key]) for key in differing] for value in values]
