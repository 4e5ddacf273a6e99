"""`package.module:factory`: a network from Python code that this package does not know.

The module is found in the current directory, as `python -m` finds it, or among the installed packages. Its factory (a
class or a function) gets the options and the number of classes as keywords: `num_classes`, or `classes` or `n_classes`
where its signature has that instead. A signature without `**` is what the options are checked against.

A model whose `input` is a segbench `Input` declares that it keeps the whole contract: it is used as it is, with its
`parameter_groups` if it has them. Any other becomes an `External`: external.py says how its output becomes logits, and
it is fed RGB with ImageNet's mean and deviation.

Importing a module runs it. Whether a suite or a command may do that is not asked here but where its text is read.
"""

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from segbench.errors import ModelError
from segbench.models.build import checked_options, first_line
from segbench.models.external import External
from segbench.models.input import IMAGENET, Input
from segbench.registry import did_you_mean

# What factories call the number of classes: the first that a signature has is used.
CLASSES = ("num_classes", "classes", "n_classes")


def from_code(path: str, num_classes: int, /, **options: Any) -> nn.Module:
    """The model that `package.module:factory` makes.

    Raises `ModelError` for a module or factory that is not there, for options that the factory does not take, and when
    it makes no `nn.Module`.
    """
    factory = _factory(path)
    parameters = _parameters(factory)
    key = _classes_key(path, parameters)
    if not _takes_anything(parameters):
        options = checked_options(path, {name: Any for name in parameters if name != key}, options)
    elif key in options:
        raise ModelError(f'model "{path}": {key} is not an option of it: it is the number of classes')
    model = factory(**options, **{key: num_classes})
    if not isinstance(model, nn.Module):
        raise ModelError(f'model "{path}": its factory made a {type(model).__name__}; allowed: a torch.nn.Module')
    return model if isinstance(getattr(model, "input", None), Input) else External(model, IMAGENET)


def source_digest(path: str) -> str:
    """Hexadecimal SHA-256 of the code of `package.module:factory`: every Python file of its package, or, where the
    module stands alone, its file and those beside it that it imports.

    Other packages are not in it. Raises `ModelError` as `from_code` does, or where the code is in no file.
    """
    module, factory = _module(path), _factory(path)
    origin = sys.modules.get(getattr(factory, "__module__", None) or "", module)
    digest = hashlib.sha256()
    for file in sorted({file for part in (module, origin) for file in _sources(path, part)}):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _sources(path: str, module: ModuleType) -> set[Path]:
    """The files that a module's code may be in."""
    top = sys.modules[module.__name__.partition(".")[0]]
    if getattr(module, "__file__", None) is None or getattr(top, "__file__", None) is None:
        raise ModelError(f'model "{path}": its code is in no file, so that a changed one could not be told')
    assert module.__file__ and top.__file__
    if hasattr(top, "__path__"):
        return set(Path(top.__file__).parent.rglob("*.py"))
    found, left = set[Path](), [Path(module.__file__)]
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            left += [beside for name in _imported(file) if (beside := file.with_name(f"{name}.py")).is_file()]
    return found


def _imported(file: Path) -> set[str]:
    """Names of the modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def _module(path: str) -> ModuleType:
    name = path.partition(":")[0]
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    try:
        # Models are built on the meta device to be counted; the constants of a module must not be made there.
        with torch.device("cpu"):
            return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelError(
                f'model "{path}": there is no module {error.name} in {here} or among the installed packages'
            ) from error
        raise ModelError(f'model "{path}": {name} cannot be imported: {first_line(error)}') from error
    except SystemExit as error:
        raise ModelError(f'model "{path}": {name} is a script that ends the program when it is imported') from error
    except Exception as error:  # somebody's module may raise anything
        raise ModelError(f'model "{path}": {name} cannot be imported: {first_line(error)}') from error


def _factory(path: str) -> Callable[..., Any]:
    module, name = _module(path), path.partition(":")[2]
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        found = "nothing of that name" if factory is None else f"a {type(factory).__name__}"
        raise ModelError(
            f'model "{path}": {module.__name__} has {found}{did_you_mean(name, known)}; allowed: a class or a function'
        )
    return factory


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The keywords of a factory; one without a readable signature is taken to accept any."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}
    unnamed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind not in unnamed}


def _takes_anything(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _classes_key(path: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    for key in CLASSES:
        if key in parameters:
            return key
    if _takes_anything(parameters):
        return CLASSES[0]
    raise ModelError(
        f'model "{path}": its factory does not take the number of classes; give it an argument of one of these names: '
        f"{', '.join(CLASSES)} (it takes {', '.join(parameters) or 'none'})"
    )
