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

    from rich.console import Console
    from rich.table import Table

    from segbench.models import MODELS

    rows = [{"name": name, "label": e.label, "paper": e.source} for name, e in MODELS.entries.items()]
    if costs:
        rows = [row | count(row["name"]) for row in rows if not row["name"].endswith(":")]
    if json:
        typer.echo(encoder.dumps(rows, indent=1))
        return
    table = Table("Name", "Model", "Paper", *(["Parameters", "MB (10^6)", "GMAC"] if costs else []))
    for row in rows:
        numbers = [f"{row['parameters']:,}", f"{row['parameter_mb']:.2f}", f"{row['macs'] / 1e9:.3f}"] if costs else []  # type: ignore[operator]
        table.add_row(row["name"] + ("NAME" if row["name"].endswith(":") else ""), row["label"], row["paper"], *numbers)
    Console().print(table)


def count(name: str) -> dict[str, Any]:
    """Parameters, size in 10^6 bytes of fp32, and multiply-accumulates at 360x480 with 11 classes."""
    from functools import partial

    from segbench.models.build import build
    from segbench.profiling.complexity import complexity

    counted = complexity(partial(build, name, 11, {}, (360, 480)), (360, 480))
    return {"parameters": counted.parameters, "parameter_mb": counted.parameter_mb, "macs": counted.macs}
