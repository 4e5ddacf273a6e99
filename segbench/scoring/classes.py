"""The classes that files of labels speak of, and the two numberings that a prediction may follow.

A dataset's files need not store a class as its place in the list: SUN RGB-D stores void as 0 and the classes as 1..37.
A network's argmax gives 0..36. Predictions are read with the ids of the truth's files (`files`) unless they are said to
be class indices (`classes`). A file whose ids fit only the other numbering says so in its finding; where both fit,
`doubt` compares how many pixels agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from segbench.data import DATASETS
from segbench.data.dataset import Colour, sequence_in
from segbench.data.labels import lookup
from segbench.data.palette import Palette
from segbench.errors import SettingError

PredictionIds = Literal["files", "classes"]
MOST_CLASSES = 254  # a byte holds the classes, void and REFUSED


@dataclass(frozen=True, eq=False)
class ClassList:
    """K classes, and how files number and colour them.

    The tables translate an id of a file to 0..K-1, to K for void, or to `labels.REFUSED`: `file_table` for truth, and
    `prediction_table` for predictions. `numbering` names the latter: files, classes, or the file of a translation.
    """

    names: tuple[str, ...]
    file_table: UInt8[np.ndarray, "256"]
    prediction_table: UInt8[np.ndarray, "256"]
    numbering: str = "files"
    colours: tuple[Colour, ...] | None = None
    void_colour: Colour | None = None
    sequence_pattern: str | None = None
    of_dataset: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def void_ids(self) -> tuple[int, ...]:
        """The ids that mean void in files of truth."""
        return tuple(np.flatnonzero(self.file_table == len(self)).tolist())

    @cached_property
    def palette(self) -> Palette | None:
        return Palette(self.names, self.colours, self.void_colour) if self.colours else None

    def numbered(self, ids: PredictionIds) -> "ClassList":
        """The same classes with predictions numbered as the truth's files are, or by class index without void."""
        table = self.file_table if ids == "files" else index_table(len(self), void=False)
        return replace(self, prediction_table=table, numbering=ids)

    def sequences(self, names: Sequence[str]) -> tuple[str, ...]:
        """The video sequence of each image, by its name; empty where the classes come without a rule for it.

        A dataset's rule that fits not every name tells nothing: predictions may have names of their own. Raises
        `SettingError` for a name that the rule of a file of classes does not fit.
        """
        if self.sequence_pattern is None:
            return ()
        found = [sequence_in(name, self.sequence_pattern) for name in names]
        if None not in found:
            return tuple(sequence for sequence in found if sequence)
        if self.of_dataset:
            return ()
        name = names[found.index(None)]
        raise SettingError(
            f'sequences: "{self.sequence_pattern}" finds no sequence in the name "{name}"; allowed: an expression '
            "whose first group matches the beginning of every name; mend it, or leave sequences out"
        )


def of_dataset(name: str) -> ClassList:
    """The classes of a registered dataset, from its class alone: no folder is opened.

    A dataset without a table of file ids stores 0..K-1, and K for void. Raises `SettingError` for an unknown name.
    """
    constructor: Any = DATASETS.resolve(name)
    dataset = getattr(constructor, "func", constructor)  # a name may preset options
    table = getattr(dataset, "table", None)
    table = index_table(len(dataset.classes), void=True) if table is None else table
    return ClassList(
        tuple(dataset.classes),
        table,
        table,
        colours=tuple(dataset.palette),
        void_colour=dataset.void_colour,
        sequence_pattern=dataset.sequence_pattern,
        of_dataset=True,
    )


def index_table(num_classes: int, void: bool) -> UInt8[np.ndarray, "256"]:
    """Ids that are class indices 0..K-1, with K for void or nothing for it."""
    return lookup({index: index for index in range(num_classes + void)})


def other_numbering(classes: ClassList) -> PredictionIds | None:
    """The numbering that predictions do not follow but could; None under a translation, or where it is the same."""
    if classes.numbering not in ("files", "classes"):
        return None
    other: PredictionIds = "classes" if classes.numbering == "files" else "files"
    return None if np.array_equal(classes.numbered(other).prediction_table, classes.prediction_table) else other


class Doubt(NamedTuple):
    """More pixels agree with the truth under another numbering than under the one that was used; shares in [0, 1]."""

    used: str
    other: PredictionIds
    agree_used: float
    agree_other: float

    def __str__(self) -> str:
        return (
            f"--prediction-ids {self.used}: {self.agree_used:.1%} of the pixels agree with the truth, and at least "
            f"{self.agree_other:.1%} do with --prediction-ids {self.other}; state the one that holds"
        )


def doubt(classes: ClassList, confusion: Int64[np.ndarray, "k1 k1"]) -> Doubt | None:
    """Whether the other numbering fits better, judged by the confusion counts of all images under the one in use.

    Ids that the numbering in use takes for void, or several for one class, cannot be told apart in the counts and add
    nothing to the other's share, which is therefore a lower bound. Counted are pixels whose truth is a class.
    """
    other = other_numbering(classes)
    num_classes = len(classes)
    valid = int(confusion[:num_classes].sum())
    if other is None or not valid:
        return None
    here, there = classes.prediction_table, classes.numbered(other).prediction_table
    alone = (np.bincount(here, minlength=256)[here] == 1) & (here < num_classes) & (there < num_classes)
    agree_other = int(confusion[there[alone], here[alone]].sum())
    agree_used = int(np.trace(confusion[:num_classes, :num_classes]))
    if agree_other <= agree_used:
        return None
    return Doubt(classes.numbering, other, agree_used / valid, agree_other / valid)
