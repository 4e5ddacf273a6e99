"""The counts of a split, image by image: what is stored, and all that scores are read from.

Of each image are kept the confusion counts `[K+1, K+1]` (row: truth, the last one void; column: prediction, the
last one void or out of range), for every boundary matching asked for `[K, 4]` counts of (n_pred, tp_pred, n_gt, tp_gt),
and for every band of boundary IoU `[K, 3]` counts of (n_pred, n_gt, n_both). Means are computed when a report reads
them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from segbench.scoring.count import ImageCounts


@dataclass(frozen=True)
class Counts:
    """`boundary` is keyed by rule, tolerance and void policy (`bsds@0.75%`), `bands` by width (`2%`). `sequences` names
    the video sequence of each image; it is empty where the data has none."""

    names: tuple[str, ...]
    confusion: Int64[np.ndarray, "n k1 k1"]
    boundary: dict[str, Int64[np.ndarray, "n k 4"]]
    bands: dict[str, Int64[np.ndarray, "n k 3"]] = field(default_factory=dict)
    sequences: tuple[str, ...] = ()

    def of(self, names: Sequence[str]) -> "Counts":
        """The counts of some of the images, in the order of `names`."""
        if names == list(self.names):
            return self
        place = {name: index for index, name in enumerate(self.names)}
        chosen = [place[name] for name in names]
        return Counts(
            tuple(names),
            self.confusion[chosen],
            {key: value[chosen] for key, value in self.boundary.items()},
            {key: value[chosen] for key, value in self.bands.items()},
            tuple(self.sequences[index] for index in chosen) if self.sequences else (),
        )

    def save(self, path: Path) -> None:
        """One compressed .npz; the file is whole only when this returns."""
        maps: dict[str, Any] = {f"boundary/{key}": value for key, value in self.boundary.items()}
        maps |= {f"bands/{key}": value for key, value in self.bands.items()}
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                names=np.array(self.names, dtype=str),
                sequences=np.array(self.sequences, dtype=str),
                confusion=self.confusion,
                **maps,
            )

    @staticmethod
    def load(path: Path) -> "Counts":
        """Files of before there were bands and sequences have none."""
        with np.load(path, allow_pickle=False) as data:
            return Counts(
                tuple(data["names"].tolist()),
                data["confusion"],
                {k.removeprefix("boundary/"): data[k] for k in data.files if k.startswith("boundary/")},
                {k.removeprefix("bands/"): data[k] for k in data.files if k.startswith("bands/")},
                tuple(data["sequences"].tolist()) if "sequences" in data.files else (),
            )


def gather(images: Iterable[tuple[str, ImageCounts]], sequences: Iterable[str] = ()) -> Counts:
    """Stack the counts of images, in the order given."""
    names, counts = zip(*images, strict=True)
    first = counts[0]
    return Counts(
        tuple(names),
        np.stack([c.confusion for c in counts]),
        {key: np.stack([c.boundary[key] for c in counts]) for key in first.boundary},
        {key: np.stack([c.bands[key] for c in counts]) for key in first.bands},
        tuple(sequences),
    )
