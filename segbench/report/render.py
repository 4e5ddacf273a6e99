"""A table as Rich, Markdown or CSV: three layouts of the same cells."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Literal

from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text

from segbench.report.table import Table

FILE_WIDTH = 180
"""Characters a line where nobody's terminal sets a width: in a file or pipe."""


def terminal(table: Table, width: int) -> Group:
    """For a person at a terminal of `width` characters: a table too wide for it goes on below, models repeated."""
    words = list(range(table.left))
    grids = [grid(table, [*words, *numbers], table.title if first else None) for first, numbers in blocks(table, width)]
    return Group(*grids, *(Text(note, style="dim") for note in table.notes))


def blocks(table: Table, width: int) -> Iterator[tuple[bool, list[int]]]:
    """The numeric columns in groups that fit beside the words; whether a group is the first."""
    widths = [max(map(len, cells)) + 3 for cells in zip(table.columns, *table.rows, strict=True)]
    room = width - sum(widths[: table.left]) - 1
    block: list[int] = []
    first = True
    for index in range(table.left, len(widths)):
        if block and sum(widths[i] for i in block) + widths[index] > room:
            yield first, block
            first, block = False, []
        block.append(index)
    yield first, block


def grid(table: Table, chosen: Sequence[int], title: str | None) -> RichTable:
    """Some columns of a table."""
    # As Text: a folder's name may hold what Rich would take for markup.
    result = RichTable(title=Text(title, style="bold") if title else None, title_justify="left")
    for index in chosen:
        justify: Literal["left", "right"] = "left" if index < table.left else "right"
        result.add_column(Text(table.columns[index]), justify=justify, overflow="fold", no_wrap=index >= table.left)
    for row in table.rows:
        result.add_row(*(Text(row[i], style="dim" if row[i] == "n/a" else "") for i in chosen))
    return result


def show(table: Table) -> None:
    """Print to the standard output, in colour on a terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    console.print(terminal(table, console.width))


def warn(words: str) -> None:
    """A doubt about what was just shown, on the error stream."""
    Console(stderr=True, highlight=False).print(f"segbench: {words}", style="yellow", soft_wrap=True, markup=False)


def plain(table: Table) -> str:
    """The terminal's layout without colours, for a file."""
    console = Console(width=FILE_WIDTH, file=io.StringIO(), record=True, color_system=None)
    console.print(terminal(table, FILE_WIDTH))
    return console.export_text()


def markdown(table: Table) -> str:
    """A pipe table with its notes below."""
    rules = [":--" if index < table.left else "--:" for index in range(len(table.columns))]
    lines = [table.columns, rules, *table.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    notes = "\n".join(f"- {note}" for note in table.notes)
    return f"## {table.title}\n\n{body}\n\n{notes}\n"


def comma_separated(table: Table) -> str:
    """The cells alone, as printed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return buffer.getvalue()
