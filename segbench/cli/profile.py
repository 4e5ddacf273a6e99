"""`segbench profile`: the cost of models, as in Table 6 of the SegNet paper."""

from pathlib import Path
from typing import Annotated, Any

import typer

from segbench.cli.options import AllowCode, Classes, Device, Option, Res, check_model_name, read_options


def profile(
    model: Annotated[list[str], typer.Option(help="Name of a model, as `segbench models` lists it; may be repeated.")],
    res: Res = "360x480",
    classes: Classes = 11,
    option: Option = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Passes that are timed, after one to warm up.")] = 10,
    memory: Annotated[bool, typer.Option(help="Measure memory too, in fresh processes.")] = True,
    scope: Annotated[
        str, typer.Option(metavar="SCOPE", help="model, or model+input: from 8-bit images, with the model's `input`.")
    ] = "model",
    device: Device = "auto",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every sample to this JSON file.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure time, memory and size of models.

    Each model gets a row of the SegNet paper's Table 6: forward, backward, training and inference memory, size.
    As the paper's `caffe time`: the training network with its loss at batch 1, mean of 10 passes after one to warm up;
    training memory at batch 4, inference memory at batch 1.
    """
    import json as encoder

    from rich.console import Console

    from segbench.report import costs, render
    from segbench.store.files import write_text

    spec = read_spec(res, repetitions, memory, scope)
    options = read_options(option or [])
    for name in model:
        check_model_name(name, allow_code)

    from functools import partial

    from segbench.engine.device import resolve_device
    from segbench.models.build import build
    from segbench.profiling.profile import profile as measure

    target = str(resolve_device(device))
    progress = Console(stderr=True, highlight=False)
    usages = {}
    for name in model:
        progress.print(f"measuring {name} at {res} on {target} ...", style="dim")
        usages[name] = measure(partial(build, name, classes, options, spec.res), classes, spec, target)
    render.show(costs.table6(usages))
    if json:
        rows = [{"model": name, "options": options, "classes": classes} | u.to_dict() for name, u in usages.items()]
        write_text(json, encoder.dumps(rows, indent=1) + "\n")


def read_spec(res: str, repetitions: int, memory: bool, scope: str) -> Any:
    """The settings as a ProfileSpec; a size or scope that is none is the user's mistake."""
    from pydantic import ValidationError

    from segbench.errors import SettingError
    from segbench.profiling.spec import ProfileSpec

    try:
        return ProfileSpec.model_validate({"res": res, "repetitions": repetitions, "memory": memory, "scope": scope})
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingError(f"--{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from None
