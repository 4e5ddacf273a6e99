"""What papers print: their tables as data, beside this file, each with its citation and its conditions.

A number stands here as it is printed; null is what a paper leaves out. A row says which model of ours it means.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml


class Row(NamedTuple):
    """One row: `values` by column, None where the paper prints none; `model` is a name of `segbench models`, and its
    options are one of `readings`."""

    label: str
    model: str
    readings: tuple[Mapping[str, Any], ...]
    values: Mapping[str, int | float | None]


class Published(NamedTuple):
    """One table of a paper; the names of columns carry their units."""

    title: str
    citation: str
    conditions: str
    rows: tuple[Row, ...]


@cache
def published(name: str, paper: str = "segnet") -> Published:
    """`published("table6")`: a table of the SegNet paper. Raises `KeyError` for one that is not kept."""
    document = yaml.safe_load((files(__package__) / f"{paper}.yaml").read_text(encoding="utf-8"))
    table = document["tables"][name]
    return Published(
        table["title"],
        document["citation"],
        table["conditions"],
        tuple(
            Row(
                row["label"],
                row["model"],
                tuple(row.get("readings", [{}])),
                dict(zip(table["columns"], row["values"], strict=True)),
            )
            for row in table["rows"]
        ),
    )
