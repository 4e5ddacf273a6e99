"""`segbench report`: the table of a results folder."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """Layouts of a table."""

    terminal = "terminal"
    markdown = "markdown"
    csv = "csv"


class Style(StrEnum):
    """Tables that can be made of records."""

    summary = "summary"
    table6 = "table6"


def report(
    results: Annotated[list[Path], typer.Argument(help="Results folders, such as results/quickstart.")],
    style: Annotated[
        Style, typer.Option(help="summary, or a table of the SegNet paper with what was measured beside it.")
    ] = Style.summary,
    format: Annotated[Format, typer.Option(help="Layout of the table.")] = Format.terminal,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
) -> None:
    """Print the table of results folders.

    It compares their runs by accuracy, size, time and memory, and says what each number means.
    """
    from segbench.errors import SettingError
    from segbench.report import render, table6, tables
    from segbench.store.files import write_text

    if output and output.is_dir():
        raise SettingError(f"--output {output}: is a folder; name a file")
    kept = tables.read(results)
    table = tables.summary(kept) if style is Style.summary else table6.of_records(kept)
    if format is Format.terminal and output is None:
        render.show(table)
        return
    layout = {Format.markdown: render.markdown, Format.csv: render.comma_separated, Format.terminal: render.plain}
    text = layout[format](table)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
