"""The whole benchmark: each run passes through train, evaluate and profile and becomes a record.

`execute` yields what happens: Started, then the stages' own steps, then Finished, for every run. Nothing calls back:
whoever iterates shows progress, and may stop at any event; the same call goes on from there. A run that fails is
recorded with its reason, and the others go on.
"""

import traceback
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from segbench.data.batches import Frames
from segbench.engine.evaluate import Scored
from segbench.engine.train import Step, Validation
from segbench.preparation import Prepared
from segbench.stages import LOCAL, Profiling, Stages, here
from segbench.store.environment import now
from segbench.store.files import Results, Work
from segbench.store.record import Evaluation, Record
from segbench.suite.plan import Keys, Run


class Started(NamedTuple):
    """Run `number` of `total` begins; `skipped` when it has a record already."""

    run: Run
    number: int
    total: int
    skipped: bool


class Finished(NamedTuple):
    """The run has a record now, done or failed, in `folder`."""

    record: Record
    folder: Path


Event = Started | Step | Validation | Scored | Profiling | Finished


def execute(prepared: Prepared, work: Work, results: Results, stages: Stages = LOCAL) -> Iterator[Event]:
    """Do every run that has no record yet; `stages` do the work, in this process unless told otherwise."""
    frames = {split: Frames(dataset) for split, dataset in prepared.datasets.items()}
    planned = list(zip(prepared.runs, prepared.keys, strict=True))
    # All of them first: a record that cannot be read must stop the suite before hours of work.
    existing = [results.find(run.suite, keys.record) for run, keys in planned]
    # What failed before comes last: where a failure ends the job (`together.py`), the others have had their turn.
    todo = sorted(zip(planned, existing, strict=True), key=lambda pair: bool(pair[1] and pair[1].status == "failed"))
    for number, ((run, keys), before) in enumerate(todo, 1):
        done = before is not None and before.status == "done"
        yield Started(run, number, len(prepared.runs), done)
        if done:
            continue
        record = yield from perform(run, keys, prepared, frames, work, stages)
        yield kept(record, run, keys, prepared, work, results)


def kept(record: Record, run: Run, keys: Keys, prepared: Prepared, work: Work, results: Results) -> Finished:
    """Write the record; where the disk does not take it, a small one that says so. What its stages made stays."""
    try:
        return Finished(record, results.write(run.suite, record, kept_files(record, keys, work)))
    except OSError as error:
        record = replace(record, status="failed", reason=reason(error), evaluations=[])
        return Finished(record, results.write(run.suite, record, {}))


def kept_files(record: Record, keys: Keys, work: Work) -> dict[str, Path]:
    """Where the files of a record lie now, by where they go inside its folder."""
    files: dict[str, Path] = {}
    for e in record.evaluations:
        place = work.place("evaluate", keys.evaluate[e.checkpoint])
        files |= {e.counts: place / "counts.npz"}
        kept = (*e.maps.values(), *e.uncertainty_maps.values())
        files |= {path: place / "maps" / Path(path).name for path in kept}
    return files


def perform(
    run: Run, keys: Keys, prepared: Prepared, frames: dict[str, Frames], work: Work, stages: Stages
) -> Generator[Event, None, Record]:
    """The three stages, each adding to the record what it found. One that fails leaves its reason, whatever it was; the
    other checkpoints, the profile and the other runs go on."""
    record = blank(run, keys, prepared)
    if run.recipe:
        try:
            record = replace(record, training=(yield from stages.trained(run, keys, prepared, frames, work)))
        except Exception as error:
            return failed(record, error)  # there is nothing to score
    for at in run.checkpoints:
        try:
            facts = yield from stages.evaluated(run, at, keys, prepared, frames["test"], work)
            record = replace(record, evaluations=[*record.evaluations, Evaluation.of(at, facts)])
        except Exception as error:
            record = failed(record, error)
    if run.profile:
        try:
            costs = yield from stages.profiled(run, keys, prepared, work)
            record = replace(record, usage=costs["usage"], profiled_on=costs["environment"])
        except Exception as error:
            record = failed(record, error)
    return record


def failed(record: Record, error: Exception) -> Record:
    """The record with what went wrong first; to be called where the error is handled."""
    if record.status == "failed":
        return record
    return replace(record, status="failed", reason=reason(error), traceback=traceback.format_exc())


def reason(error: Exception) -> str:
    """What was raised, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def blank(run: Run, keys: Keys, prepared: Prepared) -> Record:
    """The record of a run before its first stage."""
    return Record(
        id=keys.record,
        status="done",
        reason=None,
        run=run.model_dump(mode="json"),
        keys=keys._asdict() | {"data": {split: d.digest() for split, d in prepared.datasets.items()}},
        data=prepared.any_dataset.describe() if prepared.any_dataset else None,
        environment=here(prepared),
        training=None,
        evaluations=[],
        usage=None,
        created=now(),
    )
