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
from segbench.report.costs import cost_words, machine_words, numbers
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
REFERENCE = "segnet"
Values = Mapping[str, int | float | None]


class Measured(NamedTuple):
    """One profile: the row's label, the model and options it was built of, and what it cost."""

    label: str
    model: str
    options: Mapping[str, Any]
    usage: Usage


def table6(measured: Sequence[Measured]) -> Table:
    """Published and measured rows by model, those of the paper first; then models that the paper does not have."""
    paper = published("table6")
    reference = next(row.values for row in paper.rows if row.model == REFERENCE)
    rows, placed = [], set()
    for row in paper.rows:
        rows.append([row.label, "published", *cells(row.values, reference)])
        for index, own in enumerate(measured):
            if is_row(own, row):
                placed.add(index)
                rows.append(measured_row(own, measured))
    rows += [measured_row(own, measured) for index, own in enumerate(measured) if index not in placed]
    heads = [head for key, (name, _) in COLUMNS.items() for head in (name, *(["/SegNet"] if key in COMPARED else []))]
    return Table(f"{paper.title}: published and measured", ["Model", "Source", *heads], rows, notes(measured))


def of_records(kept: Sequence[Kept]) -> Table:
    """The table of all records that hold a profile; seeds share one."""
    shown = [item for item in current(kept) if item.record.usage]
    labels = row_labels(shown)
    groups = {group_of(item.record): item.record for item in shown}
    return table6(
        [
            Measured(labels[group], record.run["model"], record.run["options"], Usage.from_dict(record.usage or {}))
            for group, record in groups.items()
        ]
    )


def is_row(own: Measured, row: Row) -> bool:
    """Whether a measured model is what a published row means: its name, with the options that the row names."""
    return own.model == row.model and all(own.options.get(key) == value for key, value in row.options.items())


def measured_row(own: Measured, measured: Sequence[Measured]) -> list[str]:
    reference = next((numbers(m.usage) for m in measured if m.model == REFERENCE and alike(m.usage, own.usage)), None)
    return [own.label, "measured", *cells(numbers(own.usage), reference)]


def alike(one: Usage, other: Usage) -> bool:
    """Whether two profiles were made under the same conditions."""
    return conditions(one) == conditions(other)


def conditions(usage: Usage) -> tuple[Any, ...]:
    return (
        *(usage.device, usage.threads, usage.res, usage.protocol, usage.scope),
        *(usage.time_batch, usage.train_memory_batch, usage.infer_memory_batch),
        *(usage.precision, usage.backend, usage.channels_last, usage.cuda_graphs),
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
    if any(own.model != REFERENCE and not same_reference(own, measured) for own in measured):
        lines.append("n/a behind a measured number: SegNet was not measured under the same conditions.")
    return list(dict.fromkeys(lines))


def same_reference(own: Measured, measured: Sequence[Measured]) -> bool:
    return any(other.model == REFERENCE and alike(other.usage, own.usage) for other in measured)
