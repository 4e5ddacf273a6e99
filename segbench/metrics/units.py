"""What is resampled: images, each on its own, or whole video sequences.

A bootstrap or a permutation test takes its units as independent. Frames of one video are not: a method that fails in a
street fails in all the frames of that street, so 171 frames tell little more than a few would. Where a dataset names
sequences they are therefore the units (a block bootstrap: Davison & Hinkley, "Bootstrap Methods and their
Application", 1997, section 3.8). The price is that a bootstrap of few units is too narrow, whatever they are; how many
are enough is what `benchmarks/intervals.md` measured. With fewer the interval is too narrow, which is said; one that
took the frames as independent would be far narrower still.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from segbench.errors import SettingError

Kind = Literal["images", "sequences"]

ENOUGH: dict[Kind, int] = {"images": 100, "sequences": 20}
"""Of so many units a 95 % interval of G, C, mIoU, frequency-weighted IoU and boundary F1 covered in 93-97 % of the
worlds simulated; of 50 images and of 10 sequences it fell short (`benchmarks/intervals.md`)."""


@dataclass(frozen=True)
class Units:
    """`index[i]` is the unit of image i, from 0. `words` are sentences for the reader, where there is a doubt."""

    kind: Kind
    index: Int64[np.ndarray, " n"]
    words: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        return int(self.index.max(initial=-1)) + 1


def choose_units(images: int, sequences: Sequence[str] = (), kind: Kind | None = None) -> Units:
    """Sequences where several are named, else images; or the `kind` asked for by name. With a word in doubt.

    `sequences` names the sequence of each of the `images`, or is empty where the data has none. Raises SettingError
    for sequences where none are named.
    """
    assert len(sequences) in (0, images), f"{len(sequences)} names of sequences for {images} images"
    if kind == "sequences" and not sequences:
        raise SettingError('units: the data names no sequences to resample; write "images" or leave it out')
    number = len(set(sequences))
    if kind == "sequences" or (kind is None and number > 1):
        return Units("sequences", np.unique(list(sequences), return_inverse=True)[1].astype(np.int64), _few(number))
    return Units("images", np.arange(images, dtype=np.int64), _frames(images, number))


def _few(sequences: int) -> tuple[str, ...]:
    if sequences >= ENOUGH["sequences"]:
        return ()
    return (f"{_number(sequences)} too few (needed: {ENOUGH['sequences']}): the interval is too narrow",)


def _frames(images: int, sequences: int) -> tuple[str, ...]:
    if sequences:
        return (
            f"frames of {sequences} {'sequence' if sequences == 1 else 'sequences'} are taken as independent: the "
            "interval is too narrow, and p-values are too small",
        )
    if images < ENOUGH["images"]:
        return (f"fewer than {ENOUGH['images']} images ({images}): the interval may be too narrow",)
    return ()


def _number(sequences: int) -> str:
    return "1 sequence is" if sequences == 1 else f"{sequences} sequences are"
