"""Two label files -> two canonical maps of one size, or what is wrong with them.

Canonical maps are uint8: truth 0..K-1 and K for void; a prediction the same, with K for void and for whatever was no
class. A prediction with pixels that are no class comes with a finding and can still be scored, those pixels being
errors. Truth with such pixels cannot, nor can files that are missing, broken or of different sizes.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from segbench.data.labels import (
    REFUSED,
    FileProblem,
    Finding,
    LabelFile,
    look_up,
    read_label_file,
    refusal,
    resize_labels,
)
from segbench.scoring.classes import ClassList, other_numbering
from segbench.scoring.folder import Pair
from segbench.spec import write_size

Resize = Literal["nearest"]


class LabelMaps(NamedTuple):
    """The maps of a pair, or None for one that cannot be used; whatever was found, of both files."""

    truth: UInt8[np.ndarray, "h w"] | None
    prediction: UInt8[np.ndarray, "h w"] | None
    findings: tuple[Finding, ...] = ()

    @property
    def can_be_scored(self) -> bool:
        """Whether both maps are there; with findings, pixels of the prediction that are no class count as errors."""
        return self.truth is not None and self.prediction is not None


def read_pair(pair: Pair, classes: ClassList, resize: Resize | None = None) -> LabelMaps:
    """The canonical maps of a pair. With `resize`, a prediction of another size is brought to that of the truth."""
    truth, findings = _canonical(pair.truth, "truth", classes, classes.file_table)
    prediction, more = _canonical(pair.prediction, "prediction", classes, classes.prediction_table)
    if findings:
        truth = None
    if truth is not None and pair.size is not None:
        truth = resize_labels(truth, pair.size)
    if truth is not None and prediction is not None and truth.shape != prediction.shape:
        if resize:
            prediction = resize_labels(prediction, (truth.shape[0], truth.shape[1]))
        else:
            more = [*more, _other_size(pair, prediction, truth)]
            prediction = None
    return LabelMaps(truth, prediction, (*findings, *more))


def _canonical(
    path: Path, what: str, classes: ClassList, table: UInt8[np.ndarray, "256"]
) -> tuple[UInt8[np.ndarray, "h w"] | None, list[Finding]]:
    """The classes of a file, K where it holds none; None where it cannot be read as labels."""
    try:
        file = read_label_file(path, what)
    except FileProblem as problem:
        return None, [problem.finding]
    if file.is_colour:
        return _of_colours(path, file, classes)
    if file.palette is not None and classes.palette is not None:
        displaced = classes.palette.displaced(file.palette, file.values, table)
        if displaced:
            return None, [_displaced(path, displaced)]
    labels = look_up(file.values, table)
    # K is at most 254, so the maximum tells whether any id was refused.
    if labels.max() == REFUSED:
        finding = refusal(file.values, labels, table, path)
        finding = _with_other_numbering(finding, file, classes) if what == "prediction" else finding
        return _void_for_refused(labels, len(classes)), [finding]
    return labels, []


def _of_colours(
    path: Path, file: LabelFile, classes: ClassList
) -> tuple[UInt8[np.ndarray, "h w"] | None, list[Finding]]:
    if classes.palette is None:
        found, allowed = "a colour image, and the classes have no colours", "one id a pixel"
        return None, [Finding(str(path), found, allowed, "write class ids, or add `palette:` to the file of classes")]
    labels = classes.palette.classes(file.values)
    if labels.max() < REFUSED:
        return labels, []
    finding = classes.palette.refusal(file.values, labels, path)
    return _void_for_refused(labels, len(classes)), [finding]


def _void_for_refused(labels: UInt8[np.ndarray, "h w"], void: int) -> UInt8[np.ndarray, "h w"]:
    return np.where(labels == REFUSED, np.uint8(void), labels)


def _with_other_numbering(finding: Finding, file: LabelFile, classes: ClassList) -> Finding:
    """Says so where every id of the file would be one under the other numbering."""
    other = other_numbering(classes)
    if other is None or look_up(file.values, classes.numbered(other).prediction_table).max() == REFUSED:
        return finding
    return finding._replace(remedy=f"every id here fits --prediction-ids {other}: say so if it holds")


def _other_size(pair: Pair, prediction: UInt8[np.ndarray, "h1 w1"], truth: UInt8[np.ndarray, "h2 w2"]) -> Finding:
    found = f"prediction of {_size(prediction)} where truth has {_size(truth)}"
    return Finding(
        str(pair.prediction), found, "the size of the truth", "predict at that size, or add --resize nearest"
    )


def _size(labels: UInt8[np.ndarray, "h w"]) -> str:
    return write_size((labels.shape[0], labels.shape[1]))


def _displaced(path: Path, displaced: dict[int, tuple[str, str]]) -> Finding:
    listed = [
        f"{index} is coloured as {by_colour} and read as {by_id}" for index, (by_colour, by_id) in displaced.items()
    ]
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    found = f"a palette in the colours of the classes at other indices: {', '.join(listed[:3])}{more}"
    remedy = "save it as RGB, which is read by colour, or with the ids as indices"
    return Finding(str(path), found, "indices that are ids", remedy)
