"""A record: everything about one run that is worth keeping, as plain JSON of a stated version.

Counts and label maps lie beside it as files that its `evaluations` name. A record that is done is never edited; one
that failed is replaced when the run is tried again.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segbench.errors import RecordError
from segbench.scoring.counts import Counts

RECORD_VERSION = 1
NUMBERS = re.compile(r"\[[\d.eE+\-,\s]+\]")


@dataclass(frozen=True)
class Evaluation:
    """One scoring of one checkpoint. `counts` and both kinds of maps are paths inside the record's folder;
    `uncertainty` is the mean over the split's pixels of what inference by samples gives beside the labels."""

    checkpoint: str
    iteration: int | None
    split: str
    images: int
    size: str
    counts: str
    maps: dict[str, str] = field(default_factory=dict)
    uncertainty_maps: dict[str, str] = field(default_factory=dict)
    uncertainty: float | None = None
    seconds: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(checkpoint: str, facts: Mapping[str, Any]) -> "Evaluation":
        """From what the evaluate stage returned; its files get their places in the record's folder."""
        placed = {
            kind: {name: f"maps/{checkpoint}/{Path(path).name}" for name, path in facts[kind].items()}
            for kind in ("maps", "uncertainty_maps")
        }
        return Evaluation(checkpoint=checkpoint, counts=f"counts-{checkpoint}.npz", **{**facts, **placed})


@dataclass(frozen=True)
class Record:
    """`run` is the plan's Run as JSON; `data`, `training` and `usage` are None where that stage was not asked for.

    Where and when each stage ran stands in `training["environment"]`, in each evaluation's `environment` and in
    `profiled_on`; `environment` is that of the process that put the record together.
    """

    id: str
    status: Literal["done", "failed"]
    reason: str | None
    run: dict[str, Any]
    keys: dict[str, Any]
    data: dict[str, Any] | None
    environment: dict[str, Any]
    training: dict[str, Any] | None
    evaluations: list[Evaluation]
    usage: dict[str, Any] | None
    created: str
    profiled_on: dict[str, Any] | None = None
    traceback: str | None = None
    version: int = RECORD_VERSION

    @property
    def classes(self) -> list[str]:
        """Class names in order of their ids."""
        return list(self.data["classes"]) if self.data else []

    def to_json(self) -> str:
        """Indented, but a list of numbers (a loss a step) on one line."""
        text = json.dumps(asdict(self), indent=1, default=plain)
        return NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n"


def plain(value: Any) -> Any:
    """JSON for what the standard encoder does not know: NumPy's numbers and paths."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path | Mapping):
        return str(value) if isinstance(value, Path) else dict(value)
    raise TypeError(f"a record cannot hold a {type(value).__name__}")


def read_record(folder: Path) -> Record:
    """The record in a folder; `RecordError` when it is missing, broken or of a version that this code cannot read."""
    path = folder / "record.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("version")
    except (OSError, ValueError, AttributeError) as error:
        raise RecordError(f"{path}: not a readable record ({error})") from None
    if version != RECORD_VERSION:
        raise RecordError(f"{path}: is of version {version}; this segbench reads version {RECORD_VERSION}")
    try:
        evaluations = [Evaluation(**e) for e in values.pop("evaluations")]
        return Record(**values, evaluations=evaluations)
    except (TypeError, KeyError) as error:
        raise RecordError(f"{path}: is not a whole record ({error})") from None


def read_counts(folder: Path, evaluation: Evaluation) -> Counts:
    """The counts of one evaluation of the record in `folder`."""
    path = folder / evaluation.counts
    try:
        return Counts.load(path)
    except (OSError, ValueError, KeyError) as error:
        raise RecordError(f"{path}: the counts cannot be read ({error})") from None
