"""How exactly a training repeats: `mode` of a recipe, with the products of its `precision`, for as long as it lasts.

`deterministic`: operators take the form that adds in one order, or refuse, and cuDNN picks algorithms by its heuristics
among those that do. The same machine, libraries, threads and seed then give bit-identical weights
(https://docs.pytorch.org/docs/stable/notes/randomness.html). `fast`: cuDNN tries which algorithms are fastest, so that
two trainings differ by rounding.

What has no deterministic form on a GPU, and becomes a `SettingError` that names the operator: the gradients of pooling
to several places (PSPNet, PAN, UperNet), of reflected padding and of bicubic resizing. PyTorch's bilinear resizing
changes to a slower form that has one; pooling to 1x1 is a mean; our pooling and unpooling write each value once. A
cross-entropy that sums by itself refuses on maps, one with `reduction="none"` does not.

Departures from PyTorch's `use_deterministic_algorithms`: memory without a value is not filled, which costs a pass over
every new tensor and helps only programs that read it. `CUBLAS_WORKSPACE_CONFIG` stays set, for CUDA reads it once.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from segbench.engine.recipe import Recipe
from segbench.errors import SegbenchWarning, SettingError
from segbench.precision import products_of

WORKSPACES, ONE_A_STREAM = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
"""NVIDIA's variable, and the value for which cuBLAS promises to repeat itself: eight workspaces of 4096 KiB."""


@contextmanager
def computing(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Compute on `device` as the recipe's `mode` and `precision` say; the settings before it return after it.

    Raises `SettingError` for a precision that the device lacks, and in place of an operator's refusal to be
    deterministic. Warns where CUDA was started before cuBLAS could be told to repeat itself.
    """
    repeatable = recipe.mode == "deterministic"
    if device.type == "cuda":
        reserve_workspaces(repeatable)
    # Within products_of, which turns autotuning off and brings back what was before it.
    with products_of(recipe.precision, device), algorithms(repeatable), refusals_in_words():
        yield


@contextmanager
def algorithms(repeatable: bool) -> Iterator[None]:
    """Operators that repeat themselves, or the fastest that cuDNN finds by trying."""
    memory: Any = torch.utils.deterministic  # a module with a property, which its type does not tell
    cudnn = torch.backends.cudnn
    enabled = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    filled, picked, tried = memory.fill_uninitialized_memory, cudnn.deterministic, cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(repeatable)
        memory.fill_uninitialized_memory = False
        cudnn.deterministic, cudnn.benchmark = repeatable, not repeatable
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=only_warns)
        memory.fill_uninitialized_memory = filled
        cudnn.deterministic, cudnn.benchmark = picked, tried


def reserve_workspaces(repeatable: bool) -> None:
    """Give cuBLAS workspaces with which it repeats itself, unless the user has chosen.

    Also before a fast training: CUDA is up from then on, and a deterministic one may follow in the same process.
    """
    if WORKSPACES in os.environ:
        return
    late = torch.cuda.is_initialized()
    os.environ[WORKSPACES] = ONE_A_STREAM
    if late and repeatable:
        warnings.warn(
            f"mode: deterministic: CUDA was started without {WORKSPACES}, so matrix products may round differently in "
            f"another process; start with {WORKSPACES}={ONE_A_STREAM} in the environment",
            SegbenchWarning,
            stacklevel=2,
        )


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """`SettingError` with the operator's name where PyTorch has no deterministic form of it."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"(\S+) does not have a deterministic implementation", str(error))
        if not found:
            raise
        raise SettingError(
            f"mode: deterministic: the training needs {found[1]}, of which PyTorch has no deterministic form here; "
            "write mode: fast"
        ) from error
