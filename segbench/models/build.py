"""A model from its name and options. What a user can get wrong raises on one line.

Options are checked against the constructor's signature, names and types, before anything is built.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from segbench.errors import ModelError, SegbenchError
from segbench.models import MODELS
from segbench.models.input import overridden
from segbench.models.input_spec import InputSpec
from segbench.registry import did_you_mean


def build(
    name: str,
    num_classes: int,
    options: Mapping[str, Any] | None = None,
    input_size: tuple[int, int] | None = None,
    input: InputSpec | None = None,
) -> nn.Module:
    """A registered model with fresh weights from torch's current seed, on torch's current default device.

    `input_size` (height, width) goes to the models that are built for one size, unless the options give their own;
    `input` replaces what it sets of the model's own. Raises `SettingError` for a name that is not registered,
    `ModelError` for wrong options and for whatever somebody else's constructor raises.
    """
    if num_classes < 1:
        raise ModelError(f'model "{name}": num_classes is {num_classes}; it must be 1 or more')
    constructor = MODELS.resolve(name)
    parameters = inspect.signature(constructor).parameters
    given = dict(options or {})
    # A family checks its members' options itself, against the other library's signature.
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        allowed = {key: value.annotation for key, value in parameters.items() if key != "num_classes"}
        given = checked_options(name, allowed, given)
    if input_size is not None and "input_size" in parameters:
        given.setdefault("input_size", input_size)
    try:
        model = constructor(num_classes, **given)
    except SegbenchError:
        raise
    except Exception as error:  # somebody else's constructor may raise anything
        raise ModelError(f'model "{name}" cannot be built: {first_line(error)}') from error
    if input:
        model.input = overridden(model.input, input)
    return model


def checked_options(name: str, allowed: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the types that `allowed` (name to annotation) asks for; `ModelError` for the first that is not."""
    return {key: _checked_option(name, allowed, key, value) for key, value in options.items()}


def _checked_option(name: str, allowed: Mapping[str, Any], key: str, value: Any) -> Any:
    if key not in allowed:
        near = did_you_mean(key, allowed)
        raise ModelError(f'model "{name}": {key} is not an option of it{near} (options: {", ".join(allowed)})')
    try:
        return TypeAdapter(allowed[key]).validate_python(value, strict=True)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ModelError(f'model "{name}": option {key} is {value!r}: {reason}') from error


def first_line(error: Exception) -> str:
    """An error of another library on one line, without its trailing detail; named, where its words say little."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    if not lines:
        return kind
    return lines[0] if isinstance(error, TypeError | ValueError | OSError) else f"{kind}: {lines[0]}"
