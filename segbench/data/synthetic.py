"""Road scenes drawn from a seed, with CamVid's eleven classes, its void and about its share of pixels for each.

A pinhole camera 1.4 m above a straight road looks at facades, pavements, trees, fences, poles, signs, cars and people.
The classes have to be told apart by shape and place as much as by colour: every object varies in colour, poles are as
grey as facades, pavement is nearly as grey as road, clothes and cars share their colours, and lighting, shadow, haze,
blur and noise differ from scene to scene. At small sizes poles and signs are one or two pixels wide, so that class
balance and boundary scores matter.

The same pixels come out on every machine: the numbers are RandomState's, whose stream NumPy froze, and the arithmetic
is on integers. Scene i of a split is drawn from (seed, split, i) alone, so splits share no scene and a longer split
begins with the shorter one; at another size it is the same view.
"""

import hashlib
from typing import Annotated

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from segbench.data.camvid import CamVid
from segbench.data.dataset import SPLITS, Dataset, Sample, check_split
from segbench.data.road_scene import draw_scene
from segbench.errors import SettingError

# A key that hashes data hashes this too: raise it when any pixel changes.
GENERATOR_VERSION = 1

SMALLEST = (24, 32)
Images = Annotated[int, Field(ge=0, le=1_000_000)]


class Synthetic(Dataset):
    """`train`, `val` and `test` are numbers of images. A scene is drawn anew each time it is asked for (a few ms)."""

    name = "synthetic"
    classes = CamVid.classes
    palette = CamVid.palette
    void_colour = CamVid.void_colour

    def __init__(
        self,
        split: str,
        *,
        size: tuple[int, int] = (90, 120),
        train: Images = 200,
        val: Images = 50,
        test: Images = 100,
        seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
    ) -> None:
        images = {"train": train, "val": val, "test": test}[check_split(split)]
        if size[0] < SMALLEST[0] or size[1] < SMALLEST[1]:
            raise SettingError(f"data.size of synthetic: found {size[0]}x{size[1]}; allowed: 24x32 or larger")
        self.seed = seed
        origin = f"synthetic road scenes, {split}, {images} images, {size[0]}x{size[1]}, seed {seed}"
        super().__init__(split, size, [f"{split}-{index:05d}" for index in range(images)], origin)

    def read_image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self.scene(index)[0]

    def read_labels(self, index: int) -> UInt8[np.ndarray, "h w"]:
        return self.scene(index)[1]

    def scene(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """The frame and the labels of a scene; raises IndexError beyond the split."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return draw_scene([self.seed, SPLITS.index(self.split), index], self.size)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.names[index], *self.scene(index))

    def digest(self) -> str:
        """Over the parameters and the generator's version."""
        text = f"synthetic {GENERATOR_VERSION} {self.size} {self.seed} {self.split} {len(self)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]
