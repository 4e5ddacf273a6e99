"""A table as Rich, Markdown or CSV: three layouts of the same cells."""

import csv
import io

from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text

from segbench.report.tables import Table


def terminal(table: Table) -> Group:
    """For a person at a terminal."""
    grid = RichTable(title=table.title, title_justify="left", title_style="bold")
    for index, column in enumerate(table.columns):
        grid.add_column(column, justify="left" if index < table.left else "right", overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(cell, style="dim" if cell == "n/a" else "") for cell in row))
    return Group(grid, *(Text(note, style="dim") for note in table.notes))


def plain(table: Table) -> str:
    """The terminal's layout without colours, 200 columns wide: for a file."""
    console = Console(width=200, file=io.StringIO(), record=True, color_system=None)
    console.print(terminal(table))
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
