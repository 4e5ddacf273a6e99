"""SUN RGB-D as the SegNet paper uses it: RGB only, 37 indoor classes, 5,285 training and 5,050 test images.

Song, Lichtenberg & Xiao, CVPR 2015; archives and class order of github.com/ankurhanda/sunrgbd-meta-data.

    SUNRGBD-train_images/img-000001.jpg …        numbered from 1, or from 5051 as their labels are
    SUNRGBD-test_images/img-000001.jpg …         numbered from 1
    sunrgbd_train_test_labels/img-000001.png …   1..5050 belong to the test images, 5051..10335 to the training images

Annotations store void as 0 and the classes as 1..37. Images differ in size, so all are brought to `size` (the paper:
360x480), frames bilinearly, labels to the nearest, and scores are at that size. There is no official validation split:
`validation_images` takes that many training images, evenly spaced, out of "train" and gives them as "val".

SegNet's `train_segnet_sun.prototxt` lists 38 weights without names; the first belongs to void, which the loss ignores,
and the others are taken to follow the file ids (rare classes such as paper, lamp and bag then have the large ones).
"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from segbench.data.dataset import FileDataset, Frame, check_split, find_root
from segbench.data.labels import lookup
from segbench.errors import DataError, SettingError

TEST_IMAGES = 5050
TRAIN_IMAGES = 5285
LAYOUT = (
    "SUNRGBD-train_images/, SUNRGBD-test_images/ and sunrgbd_train_test_labels/ side by side, "
    "as extracted from the archives of github.com/ankurhanda/sunrgbd-meta-data"
)

# name and colour of the file ids 1..37, and the weight in the loss that SegNet's training file for them gives
_CLASSES = (
    ("wall", (153, 112, 72), 0.382592),
    ("floor", (91, 134, 83), 0.447844),
    ("cabinet", (153, 91, 90), 0.634237),
    ("bed", (118, 106, 128), 0.375678),
    ("chair", (118, 94, 89), 0.582794),
    ("sofa", (148, 109, 126), 0.476692),
    ("table", (119, 119, 119), 0.776787),
    ("door", (131, 131, 85), 0.980661),
    ("window", (95, 131, 137), 1.020118),
    ("bookshelf", (153, 153, 107), 0.623396),
    ("picture", (151, 77, 68), 2.596563),
    ("counter", (152, 108, 59), 0.974491),
    ("blinds", (151, 123, 137), 0.920240),
    ("desk", (113, 77, 113), 0.663878),
    ("shelves", (153, 142, 67), 1.173357),
    ("curtain", (33, 76, 110), 0.861062),
    ("dresser", (91, 47, 98), 0.919955),
    ("pillow", (153, 153, 31), 2.147320),
    ("mirror", (148, 77, 115), 1.190958),
    ("floor_mat", (59, 18, 13), 1.164314),
    ("clothes", (11, 85, 123), 1.854754),
    ("ceiling", (60, 118, 145), 1.446550),
    ("books", (9, 69, 63), 2.853078),
    ("fridge", (32, 56, 90), 0.768276),
    ("tv", (71, 91, 37), 1.651721),
    ("paper", (32, 80, 95), 4.456313),
    ("towel", (77, 91, 118), 2.205633),
    ("shower_curtain", (103, 118, 79), 1.116695),
    ("box", (27, 53, 83), 2.781543),
    ("whiteboard", (140, 96, 41), 0.705917),
    ("person", (68, 37, 71), 4.005834),
    ("night_stand", (94, 95, 133), 2.208329),
    ("toilet", (44, 51, 79), 0.967071),
    ("sink", (109, 124, 64), 1.475710),
    ("lamp", (59, 73, 34), 5.347752),
    ("bathtub", (139, 112, 49), 0.745528),
    ("bag", (84, 65, 29), 4.017548),
)


class SunRgbd(FileDataset):
    """One split; "val" is empty of official images and needs `validation_images`."""

    name = "sunrgbd"
    classes = tuple(name for name, _, _ in _CLASSES)
    palette = tuple(colour for _, colour, _ in _CLASSES)
    shipped_weights = tuple(weight for _, _, weight in _CLASSES)
    table = lookup({0: len(_CLASSES), **{file_id: file_id - 1 for file_id in range(1, len(_CLASSES) + 1)}})

    def __init__(
        self,
        split: str,
        *,
        root: Path | None = None,
        size: tuple[int, int] = (360, 480),
        validation_images: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        check_split(split)
        if split == "val" and validation_images == 0:
            raise SettingError(
                "sunrgbd has no official validation split; "
                "set data.options.validation_images to hold training images out"
            )
        source = "test" if split == "test" else "train"
        folder = find_root(root, "SUN RGB-D", ["SUNRGBD", "sunrgbd"], f"SUNRGBD-{source}_images", LAYOUT)
        frames = _numbered(folder, source)
        origin = f"SUN RGB-D {split}, {len(frames)} of {TEST_IMAGES if source == 'test' else TRAIN_IMAGES} images"
        if source == "train" and validation_images:
            held, kept = _hold_out(frames, validation_images)
            frames = held if split == "val" else kept
            origin = f"SUN RGB-D {split}, {len(frames)} training images, {len(held)} held out for validation"
        super().__init__(split, frames, size, size, origin)


def _numbered(folder: Path, source: str) -> list[Frame]:
    """The frames of a folder by number, each with the label of its number or, in training, of number + 5050."""
    images = {}
    # Backwards, so that of two files of one number the .jpg stays, as it is in the archives.
    for path in sorted((folder / f"SUNRGBD-{source}_images").iterdir(), reverse=True):
        match = re.fullmatch(r"img-(\d{6})\.(?:jpg|png)", path.name)
        if match:
            images[int(match[1])] = path
    shift = _label_shift(folder, source, sorted(images))
    labels = folder / "sunrgbd_train_test_labels"
    return [
        Frame(f"{source}-{number + shift:06d}", images[number], labels / f"img-{number + shift:06d}.png")
        for number in sorted(images)
    ]


def _label_shift(folder: Path, source: str, numbers: list[int]) -> int:
    """What to add to a frame's number to get its label's; raises `DataError` where the numbers fit no layout."""
    if not numbers or source == "test":
        allowed, shift = range(1, TEST_IMAGES + 1), 0
    elif numbers[0] > TEST_IMAGES:
        allowed, shift = range(TEST_IMAGES + 1, TEST_IMAGES + TRAIN_IMAGES + 1), 0
    else:
        allowed, shift = range(1, TRAIN_IMAGES + 1), TEST_IMAGES
    outside = [number for number in numbers if number not in allowed]
    if outside:
        raise DataError(
            f"{folder / f'SUNRGBD-{source}_images'}: found img-{outside[0]:06d} beside img-{numbers[0]:06d}; "
            f"allowed: {allowed[0]}..{allowed[-1]}; extract the {source} archive alone into this folder"
        )
    return shift


def _hold_out(frames: list[Frame], images: int) -> tuple[list[Frame], list[Frame]]:
    """`images` evenly spaced frames, and the others."""
    if images >= len(frames):
        raise SettingError(
            f"data.options.validation_images of sunrgbd: found {images}; "
            f"allowed: fewer than the {len(frames)} training images"
        )
    held = {(2 * place + 1) * len(frames) // (2 * images) for place in range(images)}
    inside = [frame for index, frame in enumerate(frames) if index in held]
    return inside, [frame for index, frame in enumerate(frames) if index not in held]
