"""The command line: a command a file, each of which parses, makes one call and prints.

Exit codes: 0 all done; 1 a run failed (recorded; the others finished); 2 the input was wrong and nothing was started;
130 interrupted. Nothing heavy is imported here: `segbench --help` must answer at once.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from segbench import __version__
from segbench.cli import clean, datasets, export, models, profile, report, run, score
from segbench.errors import SegbenchError, SegbenchWarning

app = typer.Typer(
    name="segbench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Rich's help would take longer to import than all the rest of this command line.
    rich_markup_mode=None,
    help="Train, score and profile segmentation models from one YAML suite, and compare them in a table.\n\n"
    "Start with `segbench run suites/quickstart.yaml`: synthetic data, no GPU, a table in under three minutes.",
)
for command in (run, report, score, profile, models, export, datasets, clean):
    app.command()(getattr(command, command.__name__.rpartition(".")[2]))


def print_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"segbench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool | None, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    """Options that stand before a command."""


@contextmanager
def warnings_on_one_line() -> Iterator[None]:
    """Nobody at a terminal has use for the line of code that gave a warning of ours."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, SegbenchWarning):
                typer.echo(f"segbench: {message}", err=True)
            else:
                usual(message, category, *where)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def main() -> None:
    """The console script: a user's mistake is one line on the error stream and exit code 2."""
    try:
        with warnings_on_one_line():
            app()
    except SegbenchError as error:
        if os.environ.get("RANK", "0") == "0":  # torchrun's: one of its processes is enough to say it
            typer.echo(f"segbench: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written: nobody's bug, and not worth a traceback
        typer.echo(f"segbench: {error}", err=True)
        sys.exit(1)
