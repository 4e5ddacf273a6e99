"""Records -> a tidy frame of numbers -> a table that says what it is.

`frame` holds one row a record and evaluated checkpoint, scores as fractions, NaN where nothing was counted or timed.
A run that failed after it was scored keeps its scores: its reason stands below the table.
`summary` averages over seeds and prints percent; "n/a" stands where nothing was measured, never 0.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from segbench.engine.recipe import Recipe
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.usage import Usage
from segbench.report.costs import COSTS, DEVIATION, deviation_cells, has_variants, numbers
from segbench.report.notes import notes
from segbench.report.table import Table
from segbench.scoring.counts import Counts
from segbench.scoring.scores import scores as read_scores
from segbench.store.files import record_folders
from segbench.store.record import Record, read_counts, read_record

SCORES = {"global_accuracy": "G", "class_accuracy": "C", "mean_iou": "mIoU"}
SECTIONS = ("recipe", "data", "score", "profile")


@dataclass(frozen=True)
class Kept:
    """A record and the folder that it was read from."""

    folder: Path
    record: Record


def read(paths: Iterable[Path]) -> list[Kept]:
    """Every record at or below the paths, oldest first."""
    folders = dict.fromkeys(folder for path in paths for folder in record_folders(path))
    return sorted((Kept(f, read_record(f)) for f in folders), key=lambda k: (k.record.created, k.record.id))


def current(kept: Sequence[Kept]) -> list[Kept]:
    """The newest record of each run, done or failed, in the order of `kept`. A run asked otherwise is another run."""
    newest = {(group_of(k.record), k.record.run["seed"]): k for k in kept}
    return [item for item in kept if item in newest.values()]


def group_of(record: Record) -> str:
    """What runs share that differ in the seed alone: suite, label and everything that was asked."""
    return json.dumps([record.run["suite"], record.run["label"], record.keys["group"]])


def row_labels(kept: Sequence[Kept]) -> dict[str, str]:
    """The label of each group of runs; where several share one, with what tells them apart."""
    rows: dict[tuple[str, str], dict[str, Record]] = {}
    for item in kept:
        run = item.record.run
        rows.setdefault((run["suite"], run["label"]), {})[group_of(item.record)] = item.record
    several = len({suite for suite, _ in rows}) > 1
    labels = {}
    for (suite, label), named in rows.items():
        for group, words in zip(named, told_apart(list(named.values())), strict=True):
            inside = ", ".join([*([suite] if several else []), *words])
            labels[group] = f"{label} ({inside})" if inside else label
    return labels


def told_apart(records: Sequence[Record]) -> list[list[str]]:
    """Of each record the settings in which they differ; also where it comes from, if others have the same settings."""
    settings = [settings_of(record.run) for record in records]
    keys = [key for key in dict.fromkeys(k for s in settings for k in s) if differs(key, settings)]
    words = [[f"{called(key)} {s[key]}" for key in keys if key in s] for s in settings]
    alike = [[r for r, theirs in zip(records, words, strict=True) if theirs == own] for own in words]
    return [own + origin(r, rs) * (len(rs) > 1) for own, r, rs in zip(words, records, alike, strict=True)]


def differs(key: str, settings: Sequence[dict[str, str]]) -> bool:
    """Whether a setting has several values; those without its whole section ("none") have no part in it."""
    return len({s.get(key) for s in settings if key in s or key.partition(".")[0] not in s}) > 1


def called(key: str) -> str:
    """`lr` for `recipe.optimizer.lr`, `optimizer` for `recipe.optimizer.name`."""
    return key.removesuffix(".name").rpartition(".")[2]


def origin(record: Record, alike: Sequence[Record]) -> list[str]:
    """The first of data, commit and date that tells a record from the others, else its id."""

    def facts(r: Record) -> list[str]:
        data = [f"{split} data {r.keys['data'].get(split, 'none')[:8]}" for split in ("test", "train", "val")]
        return [*data, f"commit {r.environment['commit'] or 'unknown'}", r.created[:10], r.created, r.id]

    others = [facts(r) for r in alike if r is not record]
    own = facts(record)
    return [next((own[i] for i in range(len(own)) if all(own[i] != other[i] for other in others)), own[-1])]


def settings_of(run: dict[str, Any]) -> dict[str, str]:
    """What was asked, as `recipe.optimizer.lr` -> text; what an older record does not know stands at its default."""
    # A trained run's input is its recipe's.
    repeated = ("suite", "label", "seed", *(["input"] if run["recipe"] else []))
    none = {section: "none" for section in SECTIONS if run.get(section) is None}
    later = {key: value for key, value in LATER.items() if key.partition(".")[0] not in none}
    return none | later | flat({key: value for key, value in run.items() if key not in repeated})


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as `recipe.optimizer.lr` -> text, without those that are null."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        return {prefix: value if isinstance(value, str) else json.dumps(value)}
    parts = (flat(inner, f"{prefix}.{key}" if prefix else key) for key, inner in value.items())
    return {key: text for part in parts for key, text in part.items()}


LATER = flat(
    {
        "recipe": Recipe.model_construct().model_dump(mode="json"),  # all but what must always be said
        "inference": {"name": "plain"},
        "profile": ProfileSpec().model_dump(mode="json"),
    }
)
"""The defaults of settings that came after the first records, but for those that are null."""


def frame(kept: Iterable[Kept]) -> pd.DataFrame:
    """One row a record that is done or scored, and evaluated checkpoint (one for a record that only profiled)."""
    rows = [row for item in kept if has_numbers(item.record) for row in rows_of(item)]
    return pd.DataFrame(rows)


def has_numbers(record: Record) -> bool:
    """Whether there is something to show; what failed in its profile has been scored before."""
    return record.status == "done" or bool(record.evaluations)


def rows_of(item: Kept) -> list[dict[str, Any]]:
    """The numbers of one record."""
    record = item.record
    base = {
        "suite": record.run["suite"],
        "label": record.run["label"],
        "model": record.run["model"],
        "seed": record.run["seed"],
        "group": group_of(record),
        "record": record.id,
        **(numbers(Usage.from_dict(record.usage)) if record.usage else {}),
    }
    scored = [
        base
        | {"checkpoint": e.checkpoint, "iteration": e.iteration, "images": e.images, "size": e.size}
        | scores(read_counts(item.folder, e))
        for e in record.evaluations
    ]
    return scored or [base | {"checkpoint": ""}]


def scores(counts: Counts) -> dict[str, float]:
    """The split's scores, as fractions."""
    return {name: float(score.value) for name, score in read_scores([counts]).overall.items()}


SHOWN_COSTS = ("parameters", "parameter_mb", "infer_ms", "forward_ms", "backward_ms", "train_mib", "infer_mib")


def summary(kept: Sequence[Kept]) -> Table:
    """The comparison of all runs: mean over seeds, with the sample standard deviation where there are several."""
    shown = current(kept)
    data, labels = frame(shown), row_labels(shown)
    # A group's runs differ in the seed alone, and share one profile.
    usages = {group_of(k.record): Usage.from_dict(k.record.usage) for k in shown if k.record.usage}
    columns, rows = ["Model", "At"], []
    if not data.empty:
        names, costs_shown = score_columns(data), [key for key in SHOWN_COSTS if key in data]
        several, variants = data["seed"].nunique() > 1, has_variants(usages.values())
        columns += [*(["Seeds"] if several else []), *names.values(), *(COSTS[key][0] for key in costs_shown)]
        columns += DEVIATION if variants else []
        for (group, checkpoint), part in data.groupby(["group", "checkpoint"], sort=False):
            seeds = [str(len(part))] if several else []
            percents = [spread(part[key] * 100, 2) for key in names]
            times = [spread(part[key].astype(float) * COSTS[key][1], COSTS[key][2]) for key in costs_shown]
            changed = deviation_cells(usages.get(str(group))) if variants else []
            rows.append([labels[str(group)], at(str(checkpoint), part), *seeds, *percents, *times, *changed])
    failed_rows, reasons = failures(shown, labels)
    rows += [[*row, *["n/a"] * (len(columns) - len(row))] for row in failed_rows]
    title = ", ".join(dict.fromkeys(item.record.run["suite"] for item in shown))
    told = [(labels[group_of(item.record)], item.record) for item in shown if has_numbers(item.record)]
    return Table(title, columns, rows, [*notes(told, len(kept) - len(shown)), *reasons])


def failures(shown: Sequence[Kept], labels: Mapping[str, str]) -> tuple[list[list[str]], list[str]]:
    """Of each run that failed its row, unless it was scored and has rows, and its reason."""
    rows, reasons = [], []
    for item in shown:
        if item.record.status == "failed":
            seed, label = item.record.run["seed"], labels[group_of(item.record)]
            words = "failed" if seed is None else f"seed {seed} failed"
            rows += [] if has_numbers(item.record) else [[label, words]]
            reasons.append(f"{label}, {words}: {item.record.reason}")
    return rows, reasons


def score_columns(data: pd.DataFrame) -> dict[str, str]:
    """Score -> heading, for the scores that some run has."""
    boundary = [column for column in data.columns if column.startswith("boundary_f1 ")]
    short = {c: f"BF {c.split()[1]}" if len(boundary) > 1 else "BF" for c in boundary}
    bands = {c: f"BIoU {c.split()[1]}" for c in data.columns if c.startswith("boundary_iou ")}
    return {key: name for key, name in {**SCORES, **short, **bands}.items() if key in data}


def at(checkpoint: str, group: pd.DataFrame) -> str:
    """Which checkpoint a row scores; of the best, and of the last where trainings stop by themselves, of which
    iterations it is."""
    if checkpoint not in ("best", "last"):
        return checkpoint
    found = sorted({int(i) for i in group["iteration"].dropna()})
    return f"{checkpoint} ({', '.join(map(str, found))})" if found else checkpoint


def spread(values: pd.Series, digits: int) -> str:
    """`82.41` or, over several seeds, `82.41 ± 0.30`; `n/a` when nothing was measured.

    Costs are measured once for all seeds: one value that several records share has no deviation to print.
    """
    measured = values.dropna().to_numpy(dtype=float)
    if not measured.size:
        return "n/a"
    mean = f"{measured.mean():.{digits}f}"
    once = values.name in COSTS and len(set(measured)) == 1
    return mean if measured.size == 1 or once else f"{mean} ± {measured.std(ddof=1):.{digits}f}"
