"""The base of every setting, and the small values that settings are written in.

A spec is frozen and forbids keys that it does not know: a misspelt key must stop a suite before a GPU starts.
Sizes are height x width, as in the papers: `360x480`.
"""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer


class Spec(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def parse_size(value: Any) -> Any:
    """`"360x480"` -> (360, 480); other values pass on to pydantic."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([1-9]\d{0,4})\s*x\s*([1-9]\d{0,4})\s*", value)
        if not match:
            raise ValueError(f'"{value}" is not a size; write HEIGHTxWIDTH, as in 360x480')
        return int(match[1]), int(match[2])
    if isinstance(value, tuple | list) and (len(value) != 2 or min(value) < 1):
        raise ValueError("a size is two positive numbers, HEIGHTxWIDTH")
    return value


def write_size(size: tuple[int, int]) -> str:
    """(360, 480) -> `"360x480"`."""
    return f"{size[0]}x{size[1]}"


Size = Annotated[tuple[int, int], BeforeValidator(parse_size), PlainSerializer(write_size)]
