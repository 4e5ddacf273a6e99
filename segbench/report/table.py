"""A table of text, between the numbers that it was made of and the layout that it gets."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """The first `left` columns are words, the others numbers; `notes` say what the table is."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    left: int = 2
