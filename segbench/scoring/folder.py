"""Which files of two folders belong together, and everything that stands in one of them alone.

Files are paired by their path inside the folder without the ending: `city/name.png` with `city/name.npy`. Where one
folder has no subfolders, those of the other do not count, so that predictions in one heap pair with the truth of
Cityscapes. A suffix (`_gtFine_labelIds`) is cut off the names, and files without it take no part; hidden files never
do. Truth may also be a dataset in its published layout, which then says which images a split has.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from segbench.data import open_dataset
from segbench.data.dataset import FileDataset, LayoutMissing
from segbench.data.labels import Finding
from segbench.data.spec import DataSpec
from segbench.errors import DataError

LABEL_FILES = (".png", ".npy", ".bmp", ".gif", ".tif", ".tiff")
# Paired where no label file has the name: reading then says why they are refused.
OTHER_FILES = (".jpg", ".jpeg", ".webp", ".jp2", ".avif", ".pgm", ".ppm", ".npz")

Files = dict[str, list[Path]]
"""Files by name; more than one of a name cannot be told apart."""


class Truth(NamedTuple):
    """One image's truth. Its prediction is called by the image's name, or by that of the truth's file (`also`).

    `size` is (height, width) where truth is resized before it is compared, as in a dataset of mixed sizes.
    """

    name: str
    path: Path
    also: str
    size: tuple[int, int] | None = None


class Pair(NamedTuple):
    """The two files of an image; `size` as in `Truth`."""

    name: str
    prediction: Path
    truth: Path
    size: tuple[int, int] | None = None


class Pairing(NamedTuple):
    """The pairs in the order of the truth; whatever is missing, superfluous or there twice; how many images there are
    in the truth."""

    pairs: list[Pair]
    findings: list[Finding]
    images: int


def pair(
    predictions: Path, truth: Path | Sequence[Truth], prediction_suffix: str = "", truth_suffix: str = ""
) -> Pairing:
    """Pair the label files of a folder with those of another, or with the images of `dataset_truth`.

    Without such a list the names of the truth's files give the order. Raises `DataError` for a path that is no folder,
    or one without label files.
    """
    guesses = label_files(predictions, prediction_suffix)
    wanted = _folder_truth(truth, truth_suffix) if isinstance(truth, Path) else list(truth)
    if not any("/" in name for name in guesses) or not any("/" in image.name for image in wanted):
        guesses, wanted = _heaped(guesses), [image._replace(name=_last(image.name)) for image in wanted]
    findings = list(_doubled(guesses, wanted))
    times = Counter(image.name for image in wanted)
    pairs = []
    for image in wanted:
        files = guesses.pop(image.name, None) or guesses.pop(image.also, None)
        if files is None and times[image.name] == 1:
            findings.append(_missing(predictions, image))
        elif files and len(files) == times[image.name] == 1:
            pairs.append(Pair(image.name, files[0], image.path, image.size))
    if not pairs and guesses and wanted:
        findings.insert(0, _strangers(predictions, next(iter(guesses)), wanted[0].name))
    extra = [_extra(path, truth) for files in guesses.values() for path in files]
    return Pairing(pairs, findings + extra, len(times))


def label_files(folder: Path, suffix: str = "") -> Files:
    """The label files below a folder by name, in the order of the names."""
    if not folder.is_dir():
        there = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: found {there}; allowed: a folder of label files; check the path")
    found = sorted(_walk(str(folder)))
    named: Files = {}
    for endings in (LABEL_FILES, OTHER_FILES):
        better = set(named)
        for name, ending, path in found:
            if ending in endings and name.endswith(suffix) and name.removesuffix(suffix) not in better:
                named.setdefault(name.removesuffix(suffix), []).append(Path(path))
    if not named:
        seen = f", only {', '.join(sorted({ending for _, ending, _ in found})[:8])}" if found else ""
        called = f' whose names end in "{suffix}"' if suffix else ""
        raise DataError(f"{folder}: no label files{called}{seen}; allowed: {' '.join(LABEL_FILES)}; check the folder")
    return dict(sorted(named.items()))


def dataset_truth(name: str, root: Path, split: str) -> list[Truth] | None:
    """The images of a split where `root` holds a dataset in its published layout; None for any other folder.

    A dataset that is resized (SUN RGB-D, whose sizes differ) gives the size that scores are at; to score at the stored
    sizes, name the folder of its annotations alone. Raises `DataError` for a broken list, `SettingError` for an unknown
    name or split.
    """
    try:
        dataset = open_dataset(DataSpec(name=name), split, root)
    except LayoutMissing:
        return None
    if not isinstance(dataset, FileDataset):
        return None
    size = dataset.size if dataset.resized else None
    return [Truth(frame.name, frame.annotation, frame.annotation.stem, size) for frame in dataset.frames]


def _walk(folder: str) -> Iterator[tuple[str, str, str]]:
    """Name, ending and path of every file that is not hidden."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = place[len(folder) :].strip(os.sep).replace(os.sep, "/")
        for file in files:
            stem, _, ending = file.rpartition(".")
            if stem and not file.startswith("."):
                yield f"{inside}/{stem}" if inside else stem, f".{ending.lower()}", os.path.join(place, file)  # noqa: PTH118


def _folder_truth(folder: Path, suffix: str) -> list[Truth]:
    return [Truth(name, path, name) for name, paths in label_files(folder, suffix).items() for path in paths]


def _heaped(files: Files) -> Files:
    heap: Files = {}
    for name, paths in files.items():
        heap.setdefault(_last(name), []).extend(paths)
    return heap


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _doubled(guesses: Files, wanted: Iterable[Truth]) -> Iterator[Finding]:
    truths: Files = {}
    for image in wanted:
        truths.setdefault(image.name, []).append(image.path)
    for files, what in ((guesses, "prediction"), (truths, "truth")):
        for name, paths in files.items():
            if len(paths) > 1:
                others = ", ".join(str(path) for path in paths[1:])
                found = f'another {what} has the name "{name}": {others}'
                yield Finding(str(paths[0]), found, "one file of a name", "remove all but one")


def _missing(predictions: Path, image: Truth) -> Finding:
    return Finding(
        str(predictions / image.name),
        f"prediction is missing for the truth {image.path}",
        "a label file of this name",
        "predict this image, or go on without it by --allow-missing",
    )


def _extra(path: Path, truth: Path | Sequence[Truth]) -> Finding:
    where = str(truth) if isinstance(truth, Path) else "the split"
    return Finding(str(path), f"no truth of this name in {where}", "predictions of the truth's images", "remove it")


def _strangers(predictions: Path, guess: str, wanted: str) -> Finding:
    found = f'no name is that of a truth: found "{guess}" where truth has "{wanted}"'
    remedy = "rename them, or cut endings off by --prediction-suffix and --truth-suffix"
    return Finding(str(predictions), found, "files of equal names", remedy)
