"""What every dataset offers: frames with labels at one size, names, a palette and a digest.

Frames are uint8 RGB, labels uint8 with classes 0..K-1 and K = void, sizes (height, width). A dataset made of files
names them in `frames`; `read_image` and `read_labels` give them as stored, `dataset[i]` at `size`.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from segbench.data.labels import (
    READER_VERSION,
    FileProblem,
    Finding,
    read_ids,
    read_image,
    resize_image,
    resize_labels,
    stored_size,
    translate,
)
from segbench.errors import DataError, SettingError
from segbench.registry import did_you_mean

SPLITS = ("train", "val", "test")

Colour = tuple[int, int, int]


class LayoutMissing(DataError):
    """A folder does not hold the files of a dataset in their published layout."""


class Sample(NamedTuple):
    """One frame with its labels at the dataset's size."""

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]


class Frame(NamedTuple):
    """The two files of a sample."""

    name: str
    image: Path
    annotation: Path


class Dataset(ABC):
    """One split. A subclass sets the class attributes and hands `names` and `size` up.

    `origin` says in one line what the data is; `digest()` changes whenever any pixel that `dataset[i]` gives could
    change.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    void_colour: Colour = (0, 0, 0)
    shipped_weights: tuple[float, ...] | None = None
    """Class weights that were released with networks for this data; class_weights.py tells what they are."""
    sequence_pattern: str | None = None
    """Matches the beginning of an image's name; its first group names the video sequence. None: images stand alone."""

    def __init__(self, split: str, size: tuple[int, int], names: Sequence[str], origin: str) -> None:
        self.split = check_split(split)
        self.size = size
        self.names = list(names)
        self.origin = origin

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """The sample at the dataset's size; raises `DataError` naming the file that does not fit."""
        image, labels = self.read_image(index), self.read_labels(index)
        self.check_sizes(index, image.shape[:2], labels.shape)
        return Sample(self.names[index], resize_image(image, self.size), resize_labels(labels, self.size))

    @abstractmethod
    def read_image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The frame before any resizing."""

    @abstractmethod
    def read_labels(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """The labels before any resizing, already as classes 0..K."""

    @abstractmethod
    def digest(self) -> str:
        """The first 16 hex digits of a sha256 over all that decides the pixels."""

    def describe(self) -> dict[str, Any]:
        """What a record says of the data: plain values."""
        return {
            "name": self.name,
            "origin": self.origin,
            "classes": list(self.classes),
            "palette": [list(colour) for colour in self.palette],
            "size": _size(self.size),
        }

    def check_sizes(self, index: int, image: tuple[int, ...], labels: tuple[int, ...]) -> None:
        """Raise `FileProblem` unless frame and annotation, as stored, have a size that this dataset can give."""
        if image != labels:
            raise FileProblem(
                Finding(
                    self.file_of(index),
                    f"annotation of {_size(labels)} on a frame of {_size(image)}",
                    "the frame's size",
                    "write the annotation at the frame's size",
                )
            )

    @classmethod
    def sequence_of(cls, name: str) -> str | None:
        """The video sequence of an image by its name; frames of one sequence are correlated."""
        return None if cls.sequence_pattern is None else sequence_in(name, cls.sequence_pattern)

    def file_of(self, index: int) -> str:
        """What to call the sample's annotation in a message."""
        return self.names[index]


class FileDataset(Dataset):
    """A dataset of files. `table` translates the annotations' ids.

    With `size` None the frames keep their own size, which must be one and the same, that of the first frame.
    """

    table: UInt8[np.ndarray, "256"]

    def __init__(
        self, split: str, frames: Sequence[Frame], size: tuple[int, int] | None, usual: tuple[int, int], origin: str
    ) -> None:
        self.frames = list(frames)
        self.resized = size is not None
        # A frame that is missing or broken is preflight's to report; the size is that of the first one that is not.
        first = next(filter(None, (stored_size(frame.image) for frame in self.frames)), None)
        how = "frames resized bilinearly, labels to the nearest" if self.resized else "as stored"
        chosen = size or first or usual
        super().__init__(split, chosen, [frame.name for frame in frames], f"{origin}, {_size(chosen)} ({how})")
        self._digest: str | None = None

    def read_image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return read_image(self.frames[index].image)

    def read_labels(self, index: int) -> UInt8[np.ndarray, "h w"]:
        path = self.frames[index].annotation
        return translate(read_ids(path), self.table, path)

    def check_sizes(self, index: int, image: tuple[int, ...], labels: tuple[int, ...]) -> None:
        super().check_sizes(index, image, labels)
        if not self.resized and image != self.size:
            found = f"frame of {_size(image)} where the first is {_size(self.size)}"
            file = str(self.frames[index].image)
            raise FileProblem(Finding(file, found, "one size", f"set data.size, for example {_size(self.size)}"))

    def file_of(self, index: int) -> str:
        return str(self.frames[index].annotation)

    def digest(self) -> str:
        """Over names, the bytes of every file, the classes, the size and the reader's version; computed once."""
        if self._digest is None:
            size = _size(self.size) if self.resized else "stored"
            total = hashlib.sha256(f"{self.name} {READER_VERSION} {size} {self.classes}".encode())
            total.update(self.table.tobytes())
            for frame in self.frames:
                total.update(frame.name.encode() + b"\0")
                total.update(_sha256(frame.image) + _sha256(frame.annotation))
            self._digest = total.hexdigest()[:16]
        return self._digest


def check_split(split: str) -> str:
    """The split, or a `SettingError` with the nearest one."""
    if split not in SPLITS:
        raise SettingError(f'unknown split "{split}"{did_you_mean(split, SPLITS)} (known: {", ".join(SPLITS)})')
    return split


def find_root(root: Path | None, name: str, subfolders: Sequence[str], marker: str, layout: str) -> Path:
    """`root` or the first of its subfolders that holds `marker`; else a `LayoutMissing`: where it looked, what to do.

    Raises a plain `DataError` where no folder was given at all.
    """
    advice = f"{layout}; point --data DIR, SEGBENCH_DATA or the suite's data.root at it"
    if root is None:
        raise DataError(f"{name}: no data folder was given; needed: {advice}")
    places = [root / sub for sub in ("", *subfolders)]
    for place in places:
        if (place / marker).exists():
            return place
    looked = ", ".join(str(place) for place in places)
    raise LayoutMissing(f"{name}: {marker} was not found in {looked}; needed: {advice}")


def sequence_in(name: str, pattern: str) -> str | None:
    """What the first group of a pattern finds at the beginning of a name."""
    match = re.match(pattern, name)
    return match[1] if match else None


def _sha256(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileProblem(
            Finding(str(path), f"cannot be read ({reason})", "a whole image file", "copy it anew")
        ) from None


def _size(size: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in size)
