"""A model from its name and options, and weights from a file. What a user can get wrong raises on one line.

Options are checked against the constructor's signature, names and types, before anything is built.
"""

import inspect
import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from segbench.errors import ModelError, SegbenchError
from segbench.models import MODELS
from segbench.registry import did_you_mean

SHOWN = 3


def build(
    name: str,
    num_classes: int,
    options: Mapping[str, Any] | None = None,
    input_size: tuple[int, int] | None = None,
) -> nn.Module:
    """A registered model with fresh weights from torch's current seed, on torch's current default device.

    `input_size` (height, width) goes to the models that are built for one size, unless the options give their own.
    Raises `SettingError` for a name that is not registered, `ModelError` for wrong options and for whatever somebody
    else's constructor raises.
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
        return constructor(num_classes, **given)
    except SegbenchError:
        raise
    except Exception as error:  # somebody else's constructor may raise anything
        raise ModelError(f'model "{name}" cannot be built: {_first_line(error)}') from error


def checked_options(name: str, allowed: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the types that `allowed` (name to annotation) asks for; `ModelError` for the first that is not."""
    return {key: _checked_option(name, allowed, key, value) for key, value in options.items()}


def _checked_option(name: str, allowed: Mapping[str, Any], key: str, value: Any) -> Any:
    if key not in allowed:
        near = did_you_mean(key, allowed)
        raise ModelError(f'model "{name}": {key} is not an option of it{near} (options: {", ".join(allowed)})')
    try:
        return TypeAdapter(allowed[key]).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ModelError(f'model "{name}": option {key} is {value!r}: {reason}') from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Put a file's weights into the model, on its device: safetensors, or a plain state dict (.pt, .pth).

    Raises `ModelError`, and leaves the model as it was, unless the names and shapes are exactly the model's.
    """
    found, wanted = _read_weights(path), model.state_dict()
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    misshaped = [
        f"{key} {tuple(found[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
    faults = [f"{len(keys)} {kind} ({_shortened(keys)})" for kind, keys in kinds if keys]
    if faults:
        raise ModelError(f"{path} does not fit the model: {'; '.join(faults)}")
    model.load_state_dict(found)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; never runs code from it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: there is no such file of weights") from error
    except Exception as error:  # a pickle of garbage may raise anything
        raise ModelError(f"{path} is not a file of weights (safetensors, or a state dict): {_unread(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path} is not a plain state dict: it must map names to tensors and hold nothing else")
    return found


def _unread(error: Exception) -> str:
    """Why a file was not read. PyTorch's words for a pickle are a page, and advise to run the code in it."""
    if isinstance(error, EOFError):
        return "it is empty or cut short"
    if not isinstance(error, pickle.UnpicklingError):
        return _first_line(error).partition(". ")[0]
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f"it holds a {named[1]}, which is no tensor" if named else "it is no pickle of tensors, or a broken one"


def _shortened(keys: Collection[str]) -> str:
    return ", ".join(list(keys)[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")


def _first_line(error: Exception) -> str:
    """An error of another library on one line, without its trailing detail; named, where its words say little."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    if not lines:
        return kind
    return lines[0] if isinstance(error, TypeError | ValueError | OSError) else f"{kind}: {lines[0]}"
