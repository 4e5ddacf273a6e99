"""`segbench export`: a network for other runtimes."""

from pathlib import Path
from typing import Annotated

import typer

from segbench.cli.options import AllowCode, Classes, Option, Res, check_model_name, read_options, read_size

SUFFIXES = (".onnx", ".pt2")


def export(
    model: Annotated[str, typer.Argument(help="Name of a model, as `segbench models` lists it.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="A file that ends in .onnx or .pt2.", show_default=False)],
    res: Res = "360x480",
    classes: Classes = 11,
    option: Option = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The model's own weights, all of them; without, it is as initialised."),
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Write a model as ONNX or as a PyTorch program.

    The network alone, in evaluation mode: float images [n, 3, height, width], as the model's `input` makes them, to
    logits [n, classes, height, width].
    """
    from segbench.errors import ModelError, SettingError

    if output.suffix not in SUFFIXES:
        raise SettingError(f"{output}: ends in none of {', '.join(SUFFIXES)}; name a file that does")
    if output.is_dir():
        raise SettingError(f"{output}: is a folder; name a file")
    if not output.parent.is_dir():
        raise SettingError(f"{output}: there is no folder {output.parent}; make it first")
    check_model_name(model, allow_code)
    size, options = read_size(res), read_options(option or [])

    import torch

    from segbench.models.build import build
    from segbench.models.export import export_onnx, exported
    from segbench.models.weights import load_weights

    torch.manual_seed(0)
    network = build(model, classes, options, size)
    if weights and load_weights(network, weights).left:
        raise ModelError(f"{weights} holds VGG16's weights, which only begin a training; give the network's own")
    if output.suffix == ".onnx":
        export_onnx(network, size, output)
    else:
        torch.export.save(exported(network, size), output)
    typer.echo(f"{output}: {model}, {classes} classes at {res}")
