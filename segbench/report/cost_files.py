"""Profiles as JSON, every sample included, and as CSV, a line a profile."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from segbench.profiling.usage import REGIONS, Samples, Usage
from segbench.report.costs import numbers, typical
from segbench.spec import write_size

ASKED = ("res", "frame", "protocol", "scope", "precision", "backend", "channels_last", "cuda_graphs", "time_batch")
COUNTED = ("energy_mj", "parameters", "parameter_mb", "file_mb", "macs")
MEMORY = ("train_mib", "infer_mib")
DEVIATES = ("changed_pixels", "largest_logit_error")
DERIVED = ("flops", "images_per_second")


class Profiled(NamedTuple):
    """What was asked, and what it cost; or, with no `usage`, why that could not be measured."""

    label: str
    model: str
    options: Mapping[str, Any]
    classes: int
    asked: Mapping[str, Any]
    environment: Mapping[str, Any]
    usage: Usage | None
    failure: str | None = None


def as_json(rows: Sequence[Profiled]) -> str:
    """A list of rows: times in ms, memory in MiB, energy in mJ an image; null is what was not measured."""
    return json.dumps([json_row(row) for row in rows], indent=1, allow_nan=False) + "\n"


def json_row(row: Profiled) -> dict[str, Any]:
    """Everything of one profile under the same keys, null of one that failed; `asked` holds all its settings."""
    named = {
        "label": row.label,
        "model": row.model,
        "options": dict(row.options),
        "classes": row.classes,
        "failure": row.failure,
        "asked": dict(row.asked),
        "environment": dict(row.environment),
    }
    usage = row.usage
    if usage is None:
        keys = [*(field.name for field in fields(Usage) if field.name != "memory_mib"), "memory", *DERIVED]
        return named | dict.fromkeys(keys) | {key: row.asked.get(key) for key in ASKED}
    values = usage.to_dict() | {key: region(getattr(usage, key)) for key in REGIONS}
    values["memory"] = values.pop("memory_mib")
    values["res"] = write_size(usage.res)
    values["flops"] = None if usage.macs is None else 2 * usage.macs
    values["frame"] = write_size(usage.frame) if usage.frame else None
    values["images_per_second"] = numbers(usage)["images_per_second"]
    return named | values


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
    """A line a profile, under the names that JSON has; no samples. An empty cell is what was not measured.

    A time is the one that the tables print: the median, in `caffe-time` the mean. `changed_pixels` is a fraction.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    timed = [name for region in REGIONS for name in (region, f"{region.removesuffix('_ms')}_stable")]
    measured = ["device", *timed, *MEMORY, *COUNTED, *DEVIATES]
    writer.writerow(["label", "model", *ASKED, *measured, "failure"])
    for row in rows:
        asked = [row.asked.get(key) for key in ASKED]
        found = values_of(row.usage) if row.usage else [None] * len(measured)
        cells = [row.label, row.model, *asked, *found, row.failure]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return buffer.getvalue()


def values_of(usage: Usage) -> list[Any]:
    """Device, times with their verdicts, memory, what was counted, and how far a variant is from fp32 eager."""
    times: list[Any] = []
    for key in REGIONS:
        samples: Samples | None = getattr(usage, key)
        times += [typical(samples, usage.protocol), samples.stable] if samples else [None, None]
    found = numbers(usage)
    counted = [getattr(usage, key) for key in COUNTED]
    return [usage.device, *times, *(found[key] for key in MEMORY), *counted, *(found[key] for key in DEVIATES)]
