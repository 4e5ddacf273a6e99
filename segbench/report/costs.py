"""What models cost, side by side: the columns of the SegNet paper's Table 6, then what the paper does not print.

A time is the median of its samples, in the protocol `caffe-time` their mean, as `caffe time` prints it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segbench.profiling.usage import REGIONS, Samples, Usage
from segbench.report.table import Table
from segbench.spec import write_size

COSTS = {
    "parameters": ("Params M", 1e-6, 3),
    "parameter_mb": ("Size MB", 1.0, 2),
    "infer_ms": ("Infer ms", 1.0, 1),
    "forward_ms": ("Fwd ms", 1.0, 1),
    "backward_ms": ("Bwd ms", 1.0, 1),
    "train_mib": ("Train MiB", 1.0, 0),
    "infer_mib": ("Infer MiB", 1.0, 0),
    "step_ms": ("Step ms", 1.0, 1),
    "images_per_second": ("Images/s", 1.0, 1),
    "energy_mj": ("mJ/image", 1.0, 1),
    "macs": ("GMAC", 1e-9, 3),
}
"""Heading, scale and digits."""
ORDER = (
    *("forward_ms", "backward_ms", "train_mib", "infer_mib", "parameter_mb"),
    *("infer_ms", "images_per_second", "step_ms", "energy_mj", "parameters", "macs"),
)
UNSTABLE = "~: a time whose samples do not agree with each other, or are too few to tell."
READ = ("load_average", "cpu_clock_mhz", "sm_clock_mhz", "memory_clock_mhz", "temperature_c")
"""What a device reads differently from one profile to the next."""
DEVIATION = ("Changed %", "Logit error")
"""The headings of `deviation_cells`."""
DOUBTFUL = (" not ", "unstable", "throttled", "other process", "max_seconds", "eager mode")
"""What is in a note that says that something was not measured, or may be wrong."""
TOTALS = {
    "nvml_process": "device memory of the process (NVML)",
    "nvml_device": "what the device's memory rose by (NVML)",
    "reserved": "reserved by PyTorch's allocator",
    "peak_rss": "peak resident set above the warm process",
}
"""Kinds of memory that mean the whole of it, from the most complete to the least."""
TIMED = {
    "infer_ms": "forward_ms",
    "forward_ms": "train_forward_ms",
    "backward_ms": "backward_ms",
    "step_ms": "step_ms",
}
"""The column of each region: a paper's "forward" is that of the training network."""


def numbers(usage: Usage) -> dict[str, int | float | None]:
    """What tables show of a profile; None where nothing was measured."""
    times = {column: getattr(usage, region) for column, region in TIMED.items()}
    return {
        **{column: typical(samples, usage.protocol) if samples else None for column, samples in times.items()},
        "images_per_second": 1e3 * usage.time_batch / typical(usage.forward_ms, usage.protocol),
        "energy_mj": usage.energy_mj,
        "train_mib": total(usage, "train"),
        "infer_mib": total(usage, "infer"),
        "parameters": usage.parameters,
        "parameter_mb": usage.parameter_mb,
        "macs": usage.macs,
        "changed_pixels": deviation_of(usage, "changed_pixels"),
        "largest_logit_error": deviation_of(usage, "largest_logit_error"),
    }


def deviation_of(usage: Usage, key: str) -> float | None:
    """How far a variant is from fp32 eager; that itself is 0 from itself. None where it cannot be told."""
    if usage.deviation is None:
        return 0.0 if is_reference(usage) else None
    return usage.deviation.get(key)


def is_reference(usage: Usage) -> bool:
    """Whether this is fp32 eager itself, from which the deviations of others are."""
    return variant_words(usage) == ["fp32"]


def typical(samples: Samples, protocol: str) -> float:
    """The one number for a region, ms."""
    return samples.mean if protocol == "caffe-time" else samples.median


def total(usage: Usage, mode: str) -> float | None:
    """All the memory of training or inference, MiB, by the most complete kind that was measured."""
    kind = kind_of(usage, mode)
    return usage.memory_mib[f"{mode}_{kind}"] if kind else None


def kind_of(usage: Usage, mode: str) -> str | None:
    """The most complete kind that was measured of all modes that were measured at all, so that one kind is compared."""
    modes = [m for m in ("train", "infer") if any(usage.memory_mib.get(f"{m}_{kind}") is not None for kind in TOTALS)]
    if mode not in modes:
        return None
    both = [kind for kind in TOTALS if all(usage.memory_mib.get(f"{m}_{kind}") is not None for m in modes)]
    own = [kind for kind in TOTALS if usage.memory_mib.get(f"{mode}_{kind}") is not None]
    return (both or own)[0]


def cost_table(usages: Mapping[str, Usage], failures: Mapping[str, str] | None = None) -> Table:
    """One row a profile; a profile that failed has a row too, and its reason below."""
    deviates = has_variants(usages.values())
    columns = ["Model", *(COSTS[key][0] for key in ORDER), "Infer ms 5-95 %", *(DEVIATION if deviates else [])]
    rows = []
    for name, usage in usages.items():
        found = numbers(usage)
        spread = f"{usage.forward_ms.p5:.1f}-{usage.forward_ms.p95:.1f}"
        changed = deviation_cells(usage) if deviates else []
        cells = [cost_cell(found[key], key) + ("~" if is_unstable(usage, key) else "") for key in ORDER]
        rows.append([name, *cells, spread, *changed])
    rows += [[name, *["n/a"] * (len(columns) - 1)] for name in failures or {}]
    return Table("Cost of models (first the columns of Table 6)", columns, rows, notes(usages, failures or {}), left=1)


def is_unstable(usage: Usage, column: str) -> bool:
    """Whether a time's samples do not agree with each other, or are too few to tell."""
    samples: Samples | None = getattr(usage, TIMED[column]) if column in TIMED else None
    return samples is not None and usage.protocol == "steady" and samples.stable is not True


def has_variants(usages: Iterable[Usage]) -> bool:
    """Whether some profile is of other numbers or of another backend than fp32 eager."""
    return not all(is_reference(usage) for usage in usages)


def deviation_cells(usage: Usage | None) -> list[str]:
    """The share of pixels whose class is another than that of fp32 eager, in percent, and the largest error of a logit.

    fp32 eager itself changes none. An error that is no number any more is one of fp16, whose numbers end at 65504.
    """
    if usage is None or usage.deviation is None:
        return ["0 (reference)" if usage and is_reference(usage) else "n/a"] * 2
    share, error = (usage.deviation.get(key) for key in ("changed_pixels", "largest_logit_error"))
    return ["n/a" if share is None else f"{100 * share:.3f}", "not finite" if error is None else f"{error:.2g}"]


def cost_cell(value: int | float | None, key: str) -> str:
    """A number in the unit and with the digits of its column."""
    _, scale, digits = COSTS[key]
    return "n/a" if value is None else f"{value * scale:.{digits}f}"


def notes(usages: Mapping[str, Usage], failures: Mapping[str, str]) -> list[str]:
    """What a reader must know to believe the table."""
    lines = [] if not usages else [cost_words(list(usages.values())), *machine_words(list(usages.values()))]
    if any(is_unstable(usage, key) for usage in usages.values() for key in TIMED):
        lines.append(UNSTABLE)
    return [*lines, *profile_notes(usages), *(f"{name}: failed: {reason}" for name, reason in failures.items())]


def profile_notes(usages: Mapping[str, Usage]) -> list[str]:
    """What each profile says of itself; once, and with no name, where all of them say it."""
    said: dict[str, list[str]] = {}
    for name, usage in usages.items():
        for note in usage.notes:
            said.setdefault(note, []).append(name)
    return [note if len(names) == len(usages) else f"{', '.join(names)}: {note}" for note, names in said.items()]


def doubtful_notes(usages: Mapping[str, Usage]) -> list[str]:
    """Those that a reader of any table must see; the others tell how a number was made."""
    return [note for note in profile_notes(usages) if any(word in note for word in DOUBTFUL)]


def cost_words(usages: Sequence[Usage]) -> str:
    """How times, memory and size of these profiles were measured."""
    used = dict.fromkeys(kind_of(usage, mode) for usage in usages for mode in ("train", "infer"))
    kinds = [kind for kind in used if kind]
    train, infer = ({getattr(usage, f"{mode}_memory_batch") for usage in usages} for mode in ("train", "infer"))
    measured = (
        f"memory is {either(TOTALS[kind] for kind in kinds)}, training (with momentum) at batch "
        f"{either(sorted(train))}, inference at batch {either(sorted(infer))}"
        if kinds
        else "memory was not measured"
    )
    statistics = either("mean" if usage.protocol == "caffe-time" else "median" for usage in usages)
    return (
        f"Costs: {either(usage.protocol for usage in usages)} at {either(write_size(usage.res) for usage in usages)}, "
        f"{either(', '.join(variant_words(usage)) for usage in usages)}; {statistics} of {passes_words(usages)} passes "
        f"at batch {either(usage.time_batch for usage in usages)} (Fwd, Bwd: training network with its loss; Infer: "
        f"evaluation mode); {measured}; size is 4 bytes a parameter, in 10^6 bytes"
        f"{scope_words(usages)}{deviation_words(usages)}."
    )


def deviation_words(usages: Sequence[Usage]) -> str:
    """What the numbers of variants beside fp32 eager mean, where there are any."""
    return (
        "; Changed %: pixels whose class is not that of fp32 eager, Logit error: the largest difference of a logit "
        "from its own, both on random weights and noise, where many pixels are near a tie"
        if has_variants(usages)
        else ""
    )


def either(values: Iterable[object]) -> str:
    """`fp32`, or `fp32 or bf16` where there are several."""
    return " or ".join(map(str, dict.fromkeys(values)))


def passes_words(usages: Sequence[Usage]) -> str:
    """`10`, or `20 to 311`: regions are timed until they are known."""
    numbers_of = {len(s.measured_ms) for usage in usages for key in REGIONS if (s := getattr(usage, key)) is not None}
    return str(min(numbers_of)) if len(numbers_of) == 1 else f"{min(numbers_of)} to {max(numbers_of)}"


def scope_words(usages: Sequence[Usage]) -> str:
    scopes = dict.fromkeys(usage.scope for usage in usages if usage.scope != "model")
    return "".join(
        f"; scope {scope}: Infer includes {', '.join(scope.split('+')[1:])}, Fwd what stands before the network"
        for scope in scopes
    )


def variant_words(usage: Usage) -> list[str]:
    """`fp32`, and whatever is not plain eager."""
    named = {"channels_last": "channels-last", "cuda_graphs": "CUDA graphs"}
    words = [word for key, word in named.items() if getattr(usage, key)]
    return [usage.precision, *([usage.backend] if usage.backend != "eager" else []), *words]


def machine_words(usages: Sequence[Usage]) -> list[str]:
    """Each device with its threads and driver, and the range of what changed from one profile to the next."""
    machines: dict[str, list[Mapping[str, Any]]] = {}
    for usage in usages:
        after = after_of(usage.device_state)
        fixed = "".join(f", {key} {after[key]}" for key in ("driver", "power_limit_w") if after.get(key) is not None)
        machines.setdefault(f"{usage.device}, {usage.threads} threads{fixed}", []).append(usage.device_state)
    return [f"Machine: {words}{changing(states)}." for words, states in machines.items()]


def after_of(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was read after a profile. Records of before there was a watch hold one state."""
    found: Mapping[str, Any] = state.get("after", state)
    return found


def changing(states: Sequence[Mapping[str, Any]]) -> str:
    """`; sm_clock_mhz 1755 to 1980 while timed; temperature_c 40`: afterwards, a card's clocks are those of rest."""
    words = ""
    for key in READ:
        timed = [found["median"] for state in states if (found := during_of(state).get(key))]
        after = [after_of(state).get(key) for state in states if not during_of(state).get(key)]
        for values, when in ((timed, " while timed"), (after, "")):
            ordered = sorted({f"{value:.4g}" for value in values if value is not None}, key=float)
            words += f"; {key} {' to '.join(dict.fromkeys([ordered[0], ordered[-1]]))}{when}" if ordered else ""
    return words


def during_of(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of each clock its extremes and median while a GPU was timed; nothing of a CPU."""
    return state.get("during") or {}
