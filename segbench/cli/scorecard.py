"""What `segbench score` prints and writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segbench.errors import SettingError
from segbench.metrics.conventions import Convention, conventions
from segbench.report import render, scorecard
from segbench.report.score_files import as_csv, as_json
from segbench.report.score_words import Data, convention_words
from segbench.scoring.classes import ClassList
from segbench.scoring.scored import Scored, compare
from segbench.scoring.spec import ScoreSpec
from segbench.store.files import check_folder, write_text


@dataclass(frozen=True)
class Output:
    """What is wanted beside the table. `by` orders folders and worst images."""

    by: str = "mean_iou"
    worst: int = 0
    conventions: bool = False
    json: Path | None = None
    csv: Path | None = None


def check_output(output: Output, classes: ClassList) -> None:
    """Raise `SettingError` for what cannot be written or computed, before anything is read."""
    for flag, path in (("--json", output.json), ("--csv", output.csv)):
        if path and path.is_dir():
            raise SettingError(f"{flag} {path}: is a folder; name a file")
        if path:
            check_folder(path.parent, flag)
    if output.json and output.csv and output.json.resolve() == output.csv.resolve():
        raise SettingError(f"--json, --csv: both name {output.json}; name two files")
    if output.conventions and len(classes) < 2:
        raise SettingError("--conventions: found one class; other libraries' scores need two; leave --conventions out")


def show(all_scored: Sequence[Scored], classes: ClassList, spec: ScoreSpec, output: Output, data: Data) -> None:
    """Print the tables of one folder, or of several side by side, and write what was asked for."""
    by = output.by
    comparison = compare(all_scored, by) if len(all_scored) > 1 else None
    rows = [conventions_of(scored, classes) if output.conventions else [] for scored in all_scored]
    notes = [data.sentence, "Scores: percent.", *convention_words(classes, spec)]
    if comparison:
        intervals = [interval for scored in all_scored for interval in scored.intervals.values()]
        words = [*notes, *scorecard.interval_notes(intervals), *scorecard.comparison_notes(comparison)]
        render.show(scorecard.side_by_side(all_scored, comparison, by, words))
        render.show(scorecard.pairs(comparison, by))
    for scored, others in zip(all_scored, rows, strict=True):
        if not comparison:
            render.show(scorecard.overall(scored, [*notes, *scorecard.interval_notes([*scored.intervals.values()])]))
            render.show(scorecard.classes(scored, classes.names))
        for word in scored.words:
            render.warn(f"{scored.name}: {word}")
        if output.worst:
            render.show(scorecard.worst(scored, by, output.worst))
        if others:
            render.show(scorecard.others(scored.name, others))
    if output.json:
        images = str(output.csv) if output.csv else None
        write_text(output.json, as_json(all_scored, classes, spec, data, comparison, by, rows, images))
    if output.csv:
        write_text(output.csv, as_csv(all_scored))


def conventions_of(scored: Scored, classes: ClassList) -> list[Convention]:
    """What other libraries would print, MATLAB's boundary score where its rule and tolerance were counted."""
    boundary = scored.counts.boundary.get("distance@0.75%")
    return conventions(scored.counts.confusion, boundary, classes=classes.names)
