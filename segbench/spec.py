"""The base of every setting, and the small values that settings are written in.

A spec is frozen and forbids keys that it does not know: a misspelt key must stop a suite before a GPU starts.
Sizes are height x width, as in the papers: `360x480`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""What numbers a network computes in; `precision.py` says what each means."""


def one_or_more(value: Any) -> Any:
    """`seeds: 0` is short for `seeds: [0]`."""
    return value if isinstance(value, list | tuple) else [value]


def name_alone(value: Any) -> Any:
    """`segnet` is short for `{name: segnet}`."""
    return {"name": value} if isinstance(value, str) else value


class Spec(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def parse_size(value: Any) -> Any:
    """`"360x480"` -> (360, 480); a pair of positive integers stays what it is."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([1-9]\d{0,4})\s*x\s*([1-9]\d{0,4})\s*", value)
        if not match:
            raise ValueError(f'"{value}" is not a size; write HEIGHTxWIDTH, as in 360x480')
        return int(match[1]), int(match[2])
    whole = (
        isinstance(value, tuple | list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    )
    if not whole:
        raise ValueError("a size is two positive whole numbers; write HEIGHTxWIDTH, as in 360x480")
    return tuple(value)


def write_size(size: tuple[int, int]) -> str:
    """(360, 480) -> `"360x480"`."""
    return f"{size[0]}x{size[1]}"


Size = Annotated[tuple[int, int], BeforeValidator(parse_size), PlainSerializer(write_size)]
