"""What stands below a table of records: a line for each thing that its numbers depend on, in words.

A setting at its default may go unsaid, and the table's labels name what its rows differ in; the records hold it all.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from statistics import fmean
from typing import Any

from segbench.profiling.usage import Usage
from segbench.report.costs import cost_words, doubtful_notes
from segbench.report.recipe_words import plain_words, recipe_words
from segbench.report.score_words import REGION_WORDS, boundary_words
from segbench.store.record import Record


def notes(rows: Sequence[tuple[str, Record]], superseded: int) -> list[str]:
    """What a reader must know to believe a table of these records, each with the label of its row: data, convention,
    options, training, inference, seeds, device, date and commit."""
    done = [record for _, record in rows]
    options = by_words((label, plain_words(record.run.get("options"))) for label, record in rows)
    lines = [
        *distinct("Data", (data_line(r) for r in done)),
        *distinct("Scores", (line for r in done for line in score_lines(r))),
        *(f"Options of {labels}: {words}." for words, labels in options.items()),
        *training_lines(rows),
        *inference_lines(rows),
        *uncertainty_lines(rows),
        *costs_line(done),
        *machine_lines(done),
    ]
    seeds = sorted({r.run["seed"] for r in done if r.run["seed"] is not None})
    if len(seeds) > 1:
        lines.append(f"Seeds: {', '.join(map(str, seeds))}; mean ± sample standard deviation over a row's seeds.")
    elif seeds:
        lines.append(f"Seeds: {seeds[0]} alone, so the spread over seeds is not known.")
    splits = {(r.keys["data"].get("test"), r.evaluations[0].size) for r in done if r.evaluations}
    if len(splits) > 1:
        lines.append("Warning: the rows were scored on different data and do not compare.")
    if superseded:
        lines.append(f"{superseded} older record(s) of the same runs are not shown.")
    doubts = doubtful_notes({label: Usage.from_dict(r.usage) for label, r in rows if r.usage})
    return [*lines, *(f"Note: {note}." for note in doubts)]


def costs_line(records: Sequence[Record]) -> list[str]:
    usages = [Usage.from_dict(record.usage) for record in records if record.usage]
    return [cost_words(usages)] if usages else []


def distinct(heading: str, values: Iterable[str | None]) -> list[str]:
    """One line for each different value."""
    return [f"{heading}: {value}" for value in dict.fromkeys(v for v in values if v)]


def by_words(said: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Pairs of a label and what is said of it -> each saying once, with the labels that it holds for."""
    found: dict[str, dict[str, None]] = {}
    for label, words in said:
        if words:
            found.setdefault(words, {})[label] = None
    return {words: ", ".join(labels) for words, labels in found.items()}


def data_line(record: Record) -> str | None:
    if not record.data or not record.evaluations:
        return None
    first = record.evaluations[0]
    return (
        f"{record.data['origin']}; {first.split} split, {first.images} images scored at {first.size}, "
        f"{len(record.classes)} classes."
    )


def score_lines(record: Record) -> list[str]:
    """The convention of every score, in words."""
    score = record.run["score"]
    if not score or not record.evaluations:
        return []
    return [f"percent. {REGION_WORDS}", *([boundary_words(score["boundary"])] if score["boundary"] else [])]


def training_lines(rows: Sequence[tuple[str, Record]]) -> list[str]:
    """Each training once, with the labels that it made unless it made them all; then what others started from."""
    trained = by_words((label, training_words(record.run)) for label, record in rows if record.run["recipe"])
    given = by_words((label, given_words(record.run)) for label, record in rows if not record.run["recipe"])
    if len(trained) == 1:
        lines = [f"Training: {words}." for words in trained]
    else:
        lines = [f"Training of {labels}: {words}." for words, labels in trained.items()]
    return [*lines, *(f"No training of {labels}: {words}." for words, labels in given.items())]


def training_words(run: dict[str, Any]) -> str:
    """A recipe and the weights that it started from."""
    return recipe_words(run["recipe"]) + (f"; from {weights_words(run)}" if run.get("weights") else "")


def given_words(run: dict[str, Any]) -> str:
    """What a row that was not trained is made of; nothing where it only has the model's own input and no weights."""
    fed = plain_words(run.get("input"))
    return ", ".join([*([weights_words(run)] if run.get("weights") else []), *([f"input with {fed}"] if fed else [])])


def weights_words(run: dict[str, Any]) -> str:
    return f"weights {PurePath(run['weights']).name}"


def inference_lines(rows: Sequence[tuple[str, Record]]) -> list[str]:
    """How labels were made where it was not by the largest logit, each way once."""
    said = by_words((label, inference_words(record)) for label, record in rows if record.evaluations)
    return [f"Labels of {labels}: {words}." for words, labels in said.items()]


def inference_words(record: Record) -> str | None:
    """None for the largest logit, by which a best checkpoint is chosen whatever made the labels that are scored."""
    inference = record.run.get("inference") or {"name": "plain"}
    chosen = "; the best checkpoint was chosen by the largest logit"
    best = chosen if any(evaluation.checkpoint == "best" for evaluation in record.evaluations) else ""
    if inference["name"] == "monte-carlo":
        return f"the largest mean softmax of {inference['samples']} passes with dropout; costs are of one pass{best}"
    if inference["name"] == "dense-crf":
        return (
            f"dense CRF after the network, {inference['iterations']} iterations, bilateral weight "
            f"{inference['bilateral_weight']:g} ({inference['bilateral_xy_std_px']:g} px, "
            f"{inference['bilateral_rgb_std']:g} of 255), Gaussian weight {inference['gaussian_weight']:g} "
            f"({inference['gaussian_xy_std_px']:g} px); costs are of the network alone{best}"
        )
    return None


def uncertainty_lines(rows: Sequence[tuple[str, Record]]) -> list[str]:
    """The uncertainty of each row and checkpoint that has one, as the mean over seeds."""
    found: dict[str, list[float]] = {}
    for label, record in rows:
        for evaluation in record.evaluations:
            if evaluation.uncertainty is not None:
                found.setdefault(f"{label} at {evaluation.checkpoint}", []).append(evaluation.uncertainty)
    means = ", ".join(f"{row} {fmean(values):.3g}" for row, values in found.items())
    over = "mean variance of the softmax over passes, classes and pixels (void pixels included)"
    return [f"Uncertainty: {over}: {means}."] if means else []


def machine_lines(records: Sequence[Record]) -> list[str]:
    """Where, with what and when each stage ran; one line where that is the same for all of them."""
    by_machine: dict[str, dict[str, None]] = {}
    for record in records:
        stages = {
            "trained": [record.training["environment"]] if record.training else [],
            "scored": [evaluation.environment for evaluation in record.evaluations],
            "timed": [record.profiled_on] if record.profiled_on else [],
        }
        for stage, environments in stages.items():
            for environment in environments:
                by_machine.setdefault(machine_words(environment), {})[stage] = None
    return [f"Machine ({', '.join(stages)}): {words}." for words, stages in by_machine.items()]


def machine_words(environment: Mapping[str, Any]) -> str:
    """Device, threads, processes where there were several, versions, commit (`+`: with changes that were not committed)
    and date."""
    together = f"{environment['processes']} processes, " if environment.get("processes", 1) > 1 else ""
    torch, commit = environment["libraries"]["torch"], environment["commit"] or "no commit"
    return (
        f"{environment['device']}, {environment['threads']} CPU threads, {together}torch {torch}, "
        f"segbench {environment['segbench']} ({commit}), {environment['date'][:10]}"
    )
