"""`segbench models`: what can be compared, and how large it is."""

from typing import Annotated, Any

import typer


def models(
    costs: Annotated[
        bool, typer.Option(help="Build each model and add parameters, size and multiply-accumulates.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the models and the papers that describe them.

    `smp:NAME` and `torchvision:NAME` stand for every segmentation model of those libraries, as in `smp:Unet` or
    `torchvision:deeplabv3_resnet50`. Costs are for 11 classes at 360x480, batch 1.
    """
    import json as encoder

    from segbench.models import MODELS

    rows: list[dict[str, Any]] = [
        {"name": name, "label": e.label, "paper": e.source} for name, e in MODELS.entries.items()
    ]
    if costs:
        rows = [row | count(row["name"]) for row in rows if not row["name"].endswith(":")]
    if json:
        typer.echo(encoder.dumps(rows, indent=1))
        return
    from segbench.report import render
    from segbench.report.table import Table

    cells = [[row["name"] + "NAME" * row["name"].endswith(":"), row["label"], row["paper"]] for row in rows]
    columns, notes = ["Name", "Model", "Paper"], []
    if costs:
        columns += ["Parameters", "MB", "GMAC"]
        notes.append(
            "11 classes, 360x480, one image; MB: 10^6 bytes at 4 bytes a parameter; a multiply-add is one MAC."
        )
        for line, row in zip(cells, rows, strict=True):
            line += [f"{row['parameters']:,}", f"{row['parameter_mb']:.2f}", f"{row['macs'] / 1e9:.3f}"]
    render.show(Table("Models", columns, cells, notes, left=3))


def count(name: str) -> dict[str, Any]:
    """Parameters, size in 10^6 bytes of fp32, and multiply-accumulates at 360x480 with 11 classes."""
    from functools import partial

    from segbench.models.build import build
    from segbench.profiling.complexity import complexity

    counted = complexity(partial(build, name, 11, {}, (360, 480)), (360, 480))
    return {"parameters": counted.parameters, "parameter_mb": counted.parameter_mb, "macs": counted.macs}
