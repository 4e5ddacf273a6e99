"""`segbench models`: what can be compared, and how large it is."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from segbench.cli.options import Classes, Res, read_size


def models(
    costs: Annotated[
        bool, typer.Option(help="Build each model and add parameters, size and multiply-accumulates.")
    ] = False,
    res: Res = "360x480",
    classes: Classes = 11,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the models and the papers that describe them.

    A name that ends in a colon stands for every segmentation model of a library, as in `smp:Unet` or
    `torchvision:deeplabv3_resnet50`. Costs are of one image at --res with --classes; rows with options are other
    readings of a paper.
    """
    import json as encoder

    from segbench.models import MODELS

    if costs:
        rows = list(cost_rows(res, classes))
    else:
        rows = [{"name": name, "label": e.label, "paper": e.source} for name, e in MODELS.entries.items()]
    if json:
        typer.echo(encoder.dumps(rows, indent=1))
        return
    from segbench.report import render

    render.show(costs_table(rows, classes) if costs else names_table(rows))


def names_table(rows: list[dict[str, Any]]) -> Any:
    from segbench.report.table import Table

    cells = [[row["name"] + "NAME" * row["name"].endswith(":"), row["label"], row["paper"]] for row in rows]
    return Table("Models", ["Name", "Model", "Paper"], cells, [], left=3)


def costs_table(rows: list[dict[str, Any]], classes: int) -> Any:
    from segbench.report.table import Table

    cells = []
    for row in rows:
        macs = "n/a" if row["macs"] is None else f"{row['macs'] / 1e9:.3f}"
        trained = "all" if row["trainable_parameters"] == row["parameters"] else f"{row['trainable_parameters']:,}"
        size = f"{row['parameter_mb']:.2f}"
        cells.append([row["name"], written(row["options"]), row["res"], f"{row['parameters']:,}", trained, size, macs])
    notes = [
        f"{classes} classes, one image; MB: 10^6 bytes at 4 bytes a parameter; a multiply-add is one MAC.",
        "Trained: parameters that take gradients; fixed deconvolutions are stored and not trained.",
    ]
    left_out = "normalisation, activations, pooling, unpooling, resizing and sums (--json names the operators)"
    notes += [f"MACs leave out {left_out}."] if any(row["uncounted"] for row in rows) else []
    notes += [f"{row['name']}: {note}." for row in rows if row["macs"] is None for note in row["notes"]]
    columns = ["Name", "Options", "At", "Parameters", "Trained", "MB", "GMAC"]
    return Table("Costs of models", columns, cells, notes, left=3)


def written(options: Mapping[str, Any]) -> str:
    """Options as a suite spells them."""
    spelt = {key: str(value).lower() if isinstance(value, bool) else value for key, value in options.items()}
    return ", ".join(f"{key}: {value}" for key, value in spelt.items())


def cost_rows(res: str, classes: int) -> Iterator[dict[str, Any]]:
    """Each model at `res`, and each other reading of it at the size that it is made for."""
    from segbench.models import MODELS
    from segbench.registry import Form
    from segbench.spec import write_size

    size = read_size(res)
    for name, entry in MODELS.entries.items():
        if not name.endswith(":"):
            for form in (Form({}), *entry.forms):
                shown = {"name": name, "label": entry.label, "paper": entry.source, "options": dict(form.options)}
                yield shown | {"res": write_size(form.res or size)} | count(name, form, size, classes)


def count(name: str, form: Any, size: tuple[int, int], classes: int) -> dict[str, Any]:
    """Parameters (all, trained), size in 10^6 bytes of fp32, and multiply-accumulates."""
    from functools import partial

    from segbench.models.build import build
    from segbench.profiling.complexity import complexity

    at = form.res or size
    counted = complexity(partial(build, name, classes, form.options, at), at)
    keys = ("parameters", "trainable_parameters", "parameter_mb", "macs", "uncounted", "notes")
    return {key: getattr(counted, key) for key in keys}
