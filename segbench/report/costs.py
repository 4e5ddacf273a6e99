"""The costs of models side by side, with the columns of the SegNet paper's Table 6."""

from collections.abc import Mapping

from segbench.profiling.usage import Usage
from segbench.report.notes import cost_words
from segbench.report.table import Table
from segbench.report.tables import COSTS, costs


def table6(usages: Mapping[str, Usage]) -> Table:
    """One row a model: forward, backward, training and inference memory, size; then what the paper does not print."""
    order = ["forward_ms", "backward_ms", "train_mib", "infer_mib", "parameter_mb", "infer_ms", "parameters"]
    rows = []
    for name, usage in usages.items():
        values = costs(usage)
        cells = [cost_cell(values[key], key) for key in order]
        rows.append([name, *cells, "n/a" if usage.macs is None else f"{usage.macs / 1e9:.3f}"])
    columns = ["Model", *(COSTS[key][0] for key in order), "GMAC"]
    notes = dict.fromkeys(line for usage in usages.values() for line in (cost_words(usage), machine_words(usage)))
    for name, usage in usages.items():
        notes |= dict.fromkeys(f"{name}: {note}" for note in usage.notes)
    return Table("Cost of models (columns of Table 6)", columns, rows, list(notes), left=1)


def cost_cell(value: int | float | None, key: str) -> str:
    """A number in the unit and with the digits of its column."""
    _, scale, digits = COSTS[key]
    return "n/a" if value is None else f"{value * scale:.{digits}f}"


def machine_words(usage: Usage) -> str:
    state = ", ".join(f"{key} {value}" for key, value in usage.device_state.items() if value is not None)
    return f"Machine: {usage.device}, {usage.threads} threads{f' ({state})' if state else ''}."
