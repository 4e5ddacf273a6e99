"""Profiles as JSON, every sample included, and as CSV, a line a profile."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from segbench.profiling.usage import REGIONS, Samples, Usage
from segbench.report.costs import numbers
from segbench.spec import write_size


class Profiled(NamedTuple):
    """What was asked, and what it cost; or, with no `usage`, why that could not be measured."""

    label: str
    model: str
    options: Mapping[str, Any]
    classes: int
    asked: Mapping[str, Any]
    usage: Usage | None
    failure: str | None = None


def as_json(rows: Sequence[Profiled]) -> str:
    """A list of rows: times in ms, memory in MiB, energy in mJ an image; null is what was not measured."""
    return json.dumps([json_row(row) for row in rows], indent=1, allow_nan=False) + "\n"


def json_row(row: Profiled) -> dict[str, Any]:
    """Everything of one profile; of one that failed what was asked, and the reason."""
    named = {"label": row.label, "model": row.model, "options": dict(row.options), "classes": row.classes}
    if row.usage is None:
        return {**named, **row.asked, "failure": row.failure}
    usage = row.usage
    values = usage.to_dict() | {key: region(getattr(usage, key)) for key in REGIONS}
    values["memory"] = values.pop("memory_mib")
    values["res"] = write_size(usage.res)
    values["flops"] = None if usage.macs is None else 2 * usage.macs
    values["images_per_second"] = usage.images_per_second
    return {**named, **values}


def region(samples: Samples | None) -> dict[str, Any] | None:
    """The statistics of one region, and the samples that anyone may check them with."""
    if samples is None:
        return None
    return {
        "median": samples.median,
        "mean": samples.mean,
        "p5": samples.p5,
        "p95": samples.p95,
        "interval": list(samples.interval) if samples.interval else None,
        "stable": samples.stable,
        "samples": list(samples.measured_ms),
        "warmup": list(samples.warmup_ms),
        "throttled": list(samples.throttled),
    }


def as_csv(rows: Sequence[Profiled]) -> str:
    """The numbers of the table, an empty cell where one was not measured; no samples."""
    keys = ("res", "protocol", "scope", "precision", "backend", "time_batch")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names: list[str] = []
    lines = []
    for row in rows:
        found = numbers(row.usage) if row.usage else {}
        names = names or list(found)
        asked = [row.asked.get(key) for key in keys]
        lines.append(([row.label, row.model, *asked], found, row.failure or ""))
    writer.writerow(["label", "model", *keys, *names, "failure"])
    for words, found, failure in lines:
        writer.writerow([*words, *("" if found.get(name) is None else found[name] for name in names), failure])
    return buffer.getvalue()
