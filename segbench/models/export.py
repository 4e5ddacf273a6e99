"""A network as a file for other runtimes: PyTorch's exported program, and ONNX made from it.

What is exported is the network alone, in eval mode, at one image size: float images [n, 3, height, width], as the
model's `input` makes them, to logits [n, classes, height, width]. The number of images stays open where the network
leaves it open.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from segbench.errors import ModelError
from segbench.models.build import first_line

# One image would make the batch size a constant of the program.
EXAMPLE_IMAGES = 2


def exported(model: nn.Module, size: tuple[int, int]) -> ExportedProgram:
    """The model's program for images of `size` (height, width), on the model's device; leaves it in eval mode.

    Raises `ModelError` for what PyTorch cannot trace.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    images = torch.zeros((EXAMPLE_IMAGES, 3, *size), device=device)
    try:
        return torch.export.export(model.eval(), (images,), dynamic_shapes=({0: Dim.AUTO},))
    except Exception as error:  # tracing runs somebody's code
        raise ModelError(f"{type(model).__name__} cannot be exported: {first_line(error)}") from error


def export_onnx(model: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Write the model for images of `size` (height, width) to an ONNX file, `images` to `logits`.

    Weights beyond ONNX's 2 GB go to a second file beside it. Raises `ModelError` where the exporter is not installed,
    and for what it cannot translate.
    """
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    try:
        import onnxscript  # noqa: F401  # what PyTorch's exporter needs
    except ModuleNotFoundError as error:
        raise ModelError("ONNX: needs onnxscript, which is not installed; pip install 'segbench[onnx]'") from error
    program = exported(model, size)
    try:
        translated = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except Exception as error:  # the exporter raises errors of its own, pages long
        raise ModelError(f"{type(model).__name__} cannot be translated to ONNX: {first_line(error)}") from error
    assert translated is not None
    translated.save(path)
