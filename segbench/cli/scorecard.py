"""What `segbench score` prints and writes."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segbench import __version__
from segbench.errors import SettingError
from segbench.metrics.comparison import Comparison
from segbench.metrics.conventions import Convention, conventions
from segbench.report import render, score_json, scorecard
from segbench.report.score_words import OTHER_REGION_WORDS, REGION_WORDS, SURFACE_WORDS, boundary_words
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


@dataclass(frozen=True)
class Data:
    """What was scored: `split` of a dataset's own folder, else the files in `truth` themselves; `classes` names the
    dataset or the file whose classes they are."""

    truth: str
    classes: str
    split: str | None
    images: int
    left_out: int

    @property
    def sentence(self) -> str:
        """For below a table."""
        where = (
            f"{self.classes} {self.split} in {self.truth}" if self.split else f"{self.truth}, classes of {self.classes}"
        )
        return f"Data: {where}, {self.images} images{f' ({self.left_out} more left out)' if self.left_out else ''}."


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
        write_text(output.json, as_json(all_scored, classes, spec, output, rows, comparison, data))
    if output.csv:
        write_text(output.csv, as_csv(all_scored))


def convention_words(classes: ClassList, spec: ScoreSpec) -> list[str]:
    """What every score means, in sentences."""
    boundary = [boundary_words(spec.boundary.model_dump(mode="json"))] if spec.boundary else []
    surface = [SURFACE_WORDS] if spec.boundary and "distance" in spec.boundary.rules else []
    numbering = {
        "files": "Predictions hold the ids of the truth's files.",
        "classes": "Predictions hold class indices from 0.",
    }.get(classes.numbering, f"Predictions are translated by {classes.numbering}.")
    return [REGION_WORDS, OTHER_REGION_WORDS, *boundary, *surface, numbering]


def conventions_of(scored: Scored, classes: ClassList) -> list[Convention]:
    """What other libraries would print, MATLAB's boundary score where its rule and tolerance were counted."""
    boundary = scored.counts.boundary.get("distance@0.75%")
    return conventions(scored.counts.confusion, boundary, classes=classes.names)


def as_json(
    all_scored: Sequence[Scored],
    classes: ClassList,
    spec: ScoreSpec,
    output: Output,
    rows: Sequence[Sequence[Convention]],
    comparison: Comparison | None,
    data: Data,
) -> str:
    """One object for one folder; for several a list of them beside their comparison."""
    convention = {
        "words": ["Fractions in [0, 1].", *convention_words(classes, spec)],
        "classes": list(classes.names),
        "prediction_ids": classes.numbering,
        **spec.model_dump(mode="json", include={"boundary"}),
    }
    listed = str(output.csv) if output.csv else None
    documents = [
        score_json.document(scored, classes.names, convention, listed, others)
        for scored, others in zip(all_scored, rows, strict=True)
    ]
    whole: dict[str, Any] = documents[0]
    if comparison:
        whole = {"predictions": documents, "comparison": score_json.comparison(comparison, output.by)}
    return json.dumps({"segbench": __version__, "data": asdict(data), **whole}, indent=1, allow_nan=False) + "\n"


def as_csv(all_scored: Sequence[Scored]) -> str:
    """A row an image and folder, scores as fractions; empty where one is not defined."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["predictions", "image", *all_scored[0].scores.overall])
    for scored in all_scored:
        for row in score_json.images(scored.counts):
            writer.writerow([scored.name, *("" if value is None else value for value in row.values())])
    return buffer.getvalue()
