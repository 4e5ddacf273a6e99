"""The SegNet paper's Table 6 with what was measured beside it.

Milliseconds and MiB of another decade's card and library compare with nobody's. What compares is how a network stands
to SegNet under the same conditions, so every time and memory has its ratio to a SegNet: the paper's for published rows,
the one measured with the same settings on the same device for measured rows. The size of a model depends on neither and
is compared as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from segbench.profiling.usage import Usage
from segbench.published import Row, published
from segbench.report.costs import (
    DEVIATION,
    UNSTABLE,
    after_of,
    cost_words,
    deviation_cells,
    doubtful_notes,
    has_variants,
    is_unstable,
    machine_words,
    numbers,
)
from segbench.report.notes import machine_words as environment_words
from segbench.report.table import Table
from segbench.report.tables import Kept, current, group_of, row_labels

COLUMNS = {
    "forward_ms": ("Fwd ms", 1),
    "backward_ms": ("Bwd ms", 1),
    "train_mib": ("Train MiB", 0),
    "infer_mib": ("Infer MiB", 0),
    "parameter_mb": ("Size MB", 1),
}
COMPARED = ("forward_ms", "backward_ms", "train_mib", "infer_mib")
HEADED = [name for key in COLUMNS for name in (key, *([f"{key}/segnet"] if key in COMPARED else []))]
REFERENCE = "segnet"
TIMED_BY = ("torch", "triton", "onnxruntime", "onnxruntime-gpu")
"""The libraries whose version changes a time."""
Values = Mapping[str, int | float | None]


class Measured(NamedTuple):
    """One profile: the row's label, the model, options and classes it was built of, what it cost, and on what."""

    label: str
    model: str
    options: Mapping[str, Any]
    usage: Usage
    classes: int | None = None
    environment: Mapping[str, Any] | None = None


def table6(measured: Sequence[Measured], failures: Mapping[str, str] | None = None) -> Table:
    """Published and measured rows by model, those of the paper first; then models that the paper does not have."""
    paper = published("table6")
    reference = next(row.values for row in paper.rows if row.model == REFERENCE)
    variants = has_variants(own.usage for own in measured)
    rows, placed = [], set()
    for row in paper.rows:
        rows.append([row.label, "published", *cells(row.values, reference)])
        for index, own in enumerate(measured):
            if is_row(own, row):
                placed.add(index)
                rows.append(measured_row(own, measured, variants))
    rows += [measured_row(own, measured, variants) for index, own in enumerate(measured) if index not in placed]
    rows += [[label, "failed"] for label in failures or {}]
    columns = ["Model", "Source", *heads(), *(DEVIATION if variants else [])]
    rows = [[*row, *["n/a"] * (len(columns) - len(row))] for row in rows]
    lines = [*notes(measured), *(f"{label}: failed: {reason}" for label, reason in (failures or {}).items())]
    return Table(f"{paper.title}: published and measured", columns, rows, lines)


def heads() -> list[str]:
    """A name of its own for each column: `Fwd ms`, `Fwd /SegNet`."""
    return [
        head
        for key, (name, _) in COLUMNS.items()
        for head in (name, *([f"{name.rpartition(' ')[0]} /SegNet"] if key in COMPARED else []))
    ]


def of_records(kept: Sequence[Kept]) -> Table:
    """The table of all records that hold a profile, and of those that were to hold one and failed; seeds share one."""
    shown = [item for item in current(kept) if item.record.run["profile"]]
    labels = row_labels(shown)
    groups = {group_of(item.record): item.record for item in shown if item.record.usage}
    failures = {
        labels[group_of(item.record)]: item.record.reason or "" for item in shown if item.record.status == "failed"
    }
    return table6(
        [
            Measured(
                *(labels[group], record.run["model"], record.run["options"], Usage.from_dict(record.usage or {})),
                *(record.run.get("classes"), record.profiled_on),
            )
            for group, record in groups.items()
        ],
        failures,
    )


def is_row(own: Measured, row: Row) -> bool:
    """Whether a measured model is what a published row means: its name, with one of the row's readings as options."""
    return own.model == row.model and dict(own.options) in [dict(reading) for reading in row.readings]


def measured_row(own: Measured, measured: Sequence[Measured], variants: bool) -> list[str]:
    """Numbers with their ratios; beside `variants` also how far the row is from fp32 eager."""
    reference = next((numbers(other.usage) for other in measured if is_reference(other, own)), None)
    found = cells(numbers(own.usage), reference)
    marked = dict(zip(HEADED, found, strict=True)) | {
        key: f"{cell}~" for key, cell in zip(HEADED, found, strict=True) if is_unstable(own.usage, key)
    }
    return [own.label, "measured", *marked.values(), *(deviation_cells(own.usage) if variants else [])]


def conditions(own: Measured) -> tuple[Any, ...]:
    """What changes a time beside the model. What a record does not say is None, and like nothing but None."""
    usage, libraries = own.usage, (own.environment or {}).get("libraries", {})
    return (
        *(usage.device, usage.threads, usage.res, usage.frame, usage.protocol, usage.scope),
        *(usage.time_batch, usage.train_memory_batch, usage.infer_memory_batch),
        *(usage.precision, usage.backend, usage.channels_last, usage.cuda_graphs),
        *(own.classes, after_of(usage.device_state).get("driver")),
        *(libraries.get(name) for name in TIMED_BY),
    )


def cells(values: Values, reference: Values | None) -> list[str]:
    """Each number with its digits, and its ratio to SegNet's where it has one."""
    found = []
    for key, (_, digits) in COLUMNS.items():
        value, base = values.get(key), (reference or {}).get(key)
        found.append("n/a" if value is None else f"{value:.{digits}f}")
        if key in COMPARED:
            found.append("n/a" if value is None or not base else f"{value / base:.2f}")
    return found


def notes(measured: Sequence[Measured]) -> list[str]:
    """What the paper measured, and what was measured here."""
    paper = published("table6")
    lines = [
        f"Published: {paper.citation}: {paper.conditions}.",
        "/SegNet: the ratio to SegNet's number, published to published, measured to measured under the same "
        "conditions. Times of different machines do not compare, ratios roughly do; sizes do.",
    ]
    if usages := [own.usage for own in measured]:
        lines += [cost_words(usages), *machine_words(usages)]
        lines += [f"Timed on: {environment_words(own.environment)}." for own in measured if own.environment]
        lines += doubtful_notes({own.label: own.usage for own in measured})
    if any(is_unstable(own.usage, key) for own in measured for key in COLUMNS):
        lines.append(UNSTABLE)
    if not all(any(is_reference(other, own) for other in measured) for own in measured):
        lines.append("n/a behind a measured number: SegNet was not measured under the same conditions.")
    return list(dict.fromkeys(lines))


def is_reference(other: Measured, own: Measured) -> bool:
    """Whether `other` is the paper's SegNet, not one of other options, under the conditions of `own`."""
    return other.model == REFERENCE and not other.options and conditions(other) == conditions(own)
