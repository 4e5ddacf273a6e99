"""`segbench clean`: free the work folder."""

from pathlib import Path
from typing import Annotated

import typer

from segbench.cli.options import WorkDir


def clean(
    work: WorkDir = Path(".segbench"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Free the work folder.

    Removes checkpoints, counts and other files that a run can make again. Records in `results/` stay.
    """
    from segbench.store.files import Work

    place = Work(work)
    contents = place.contents()
    if not contents:
        typer.echo(f"{work}: nothing to remove")
        return
    for stage, size in contents.items():
        typer.echo(f"{work / stage}: {size / 1e6:.1f} MB")
    if not yes:
        typer.confirm("Remove these? Finished records stay, interrupted trainings start anew.", abort=True)
    place.clean()
    typer.echo(f"{work}: removed")
