"""`segbench score`: predictions made elsewhere, scored as those of a suite are."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from segbench.scoring.classes import ClassList
    from segbench.scoring.folder import Pairing, Truth
    from segbench.scoring.pairs import PairCounts
    from segbench.scoring.spec import ScoreSpec


class Ids(StrEnum):
    """Numberings of a prediction's labels."""

    files = "files"
    classes = "classes"


class Resize(StrEnum):
    """Ways to bring a prediction to the size of its truth."""

    nearest = "nearest"


class Kind(StrEnum):
    """What is resampled."""

    images = "images"
    sequences = "sequences"


class Method(StrEnum):
    """Kinds of bootstrap intervals."""

    expanded = "expanded"
    percentile = "percentile"
    bca = "bca"


Folders = Annotated[
    list[Path],
    typer.Option(
        "--predictions", metavar="DIR", help="Label maps to score: PNG or .npy; repeat it to compare several folders."
    ),
]
Rules = Annotated[
    list[str] | None, typer.Option("--rule", help="Boundary matching: bsds (one to one) or distance; repeatable.")
]


def score(
    predictions: Folders,
    truth: Annotated[Path, typer.Option(metavar="DIR", help="The truth's label files, or a dataset's folder.")],
    dataset: Annotated[str | None, typer.Option(help="Whose classes these are, as `segbench datasets` lists.")] = None,
    classes: Annotated[Path | None, typer.Option(metavar="FILE", help="Or a YAML file of classes.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split, where --truth is a dataset's folder; test if not said.")
    ] = None,
    prediction_ids: Annotated[
        Ids | None,
        typer.Option(help="Predictions hold the ids of the truth's files (taken so if not said), or indices from 0."),
    ] = None,
    translate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML from a model's classes to the truth's.")
    ] = None,
    prediction_suffix: Annotated[str, typer.Option(help="Cut this end off the predictions' names.")] = "",
    truth_suffix: Annotated[str, typer.Option(help="Cut this end off the truth's names.")] = "",
    resize: Annotated[Resize | None, typer.Option(help="Bring predictions to the size of their truth.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on without the files that are missing or cannot be used.")
    ] = False,
    rule: Rules = None,
    tolerance: Annotated[
        list[str] | None, typer.Option(help="Boundary tolerance, 0.75% of the diagonal or 4px; repeatable.")
    ] = None,
    void: Annotated[
        list[str] | None, typer.Option(help="Boundaries at void: script, copied, touching or band; repeatable.")
    ] = None,
    boundary_iou: Annotated[
        list[str] | None, typer.Option(metavar="WIDTH", help="Boundary IoU of this width, such as 2%; repeatable.")
    ] = None,
    no_boundary: Annotated[bool, typer.Option("--no-boundary", help="Region scores alone.")] = False,
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    interval: Annotated[Method, typer.Option(help="Kind of the intervals.")] = Method.expanded,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 2000,
    units: Annotated[
        Kind | None, typer.Option(help="Resample images or video sequences; without, sequences where they are named.")
    ] = None,
    by: Annotated[str, typer.Option(help="The score that folders and worst images are ordered by.")] = "mean_iou",
    worst: Annotated[int, typer.Option(min=0, help="List this many images of the lowest scores.")] = 0,
    conventions: Annotated[
        bool, typer.Option("--conventions", help="What other libraries would print for the same predictions.")
    ] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write each image's scores as CSV.")] = None,
) -> None:
    """Score folders of predictions made elsewhere.

    Files are paired by name. Whatever is missing, superfluous, unreadable, of another size or with labels of no
    class is listed, all of it, and nothing is scored until it is mended or --allow-missing is given: then images
    without two usable files are left out, and pixels whose label is no class are errors.
    """
    from rich.console import Console

    from segbench.cli.scorecard import Output, check_output, show
    from segbench.errors import DataError
    from segbench.metrics.intervals import Bootstrap
    from segbench.report.score_words import Data
    from segbench.scoring.folder import pair
    from segbench.scoring.scored import read_scores
    from segbench.scoring.scores import resolve_score

    check_folders(predictions)
    bootstrap = Bootstrap(level, interval.value, resamples)
    spec = score_spec(rule, tolerance, void, boundary_iou, no_boundary)
    output = Output(by=resolve_score(by, spec), worst=worst, conventions=conventions, json=json, csv=csv)
    listed = class_list(dataset, classes, prediction_ids, translate)
    check_output(output, listed)
    wanted = truth_files(dataset, truth, split)
    pairings = [pair(folder, wanted, prediction_suffix, truth_suffix) for folder in predictions]
    console = Console(stderr=True, highlight=False)
    found = [counted(folder, p, listed, spec, resize, console) for folder, p in zip(predictions, pairings, strict=True)]
    # What is wrong with the truth is found once for each folder.
    findings = dict.fromkeys(finding for each in found for finding in each.findings)
    for finding in findings:
        console.print(f"segbench: {finding}", soft_wrap=True, markup=False)
    if findings and not allow_missing:
        listing = "1 finding, named above" if len(findings) == 1 else f"{len(findings)} findings, listed above"
        raise DataError(f"{listing}; nothing is scored; mend them or add --allow-missing")
    names = list(map(str, predictions))
    kind: Literal["images", "sequences"] | None = units.value if units else None
    all_scored = read_scores(names, found, listed, bootstrap, kind, stated=prediction_ids is not None)
    left_out = pairings[0].images - len(all_scored[0].counts.names)
    where = None if isinstance(wanted, Path) else split or "test"
    data = Data(str(truth), dataset or str(classes), where, len(all_scored[0].counts.names), left_out)
    show(all_scored, listed, spec, output, data)


def check_folders(folders: list[Path]) -> None:
    """Raise `SettingError` for a folder given twice, whose two columns could not be told apart."""
    from segbench.errors import SettingError

    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise SettingError(f"--predictions {folder}: given twice; name each folder once")


def score_spec(
    rules: list[str] | None,
    tolerances: list[str] | None,
    void: list[str] | None,
    widths: list[str] | None,
    no_boundary: bool,
) -> "ScoreSpec":
    """What is counted; raises `SettingError` for a value that is none."""
    from pydantic import ValidationError

    from segbench.errors import SettingError
    from segbench.scoring.spec import BoundarySpec, ScoreSpec

    given = {"rules": rules, "tolerances": tolerances, "void": void, "iou": widths}
    given = {key: tuple(dict.fromkeys(values)) for key, values in given.items() if values}  # type: ignore[misc]
    if no_boundary and given:
        raise SettingError("--no-boundary: found beside settings of boundaries; leave one of them out")
    try:
        return ScoreSpec(boundary=None if no_boundary else BoundarySpec(**given))  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = error.errors()[0]
        flags = {"rules": "--rule", "tolerances": "--tolerance", "void": "--void", "iou": "--boundary-iou"}
        name, place = wrong["loc"][0], wrong["loc"][-1]
        value = given[str(name)][place] if isinstance(place, int) else given[str(name)]  # type: ignore[index]
        reason = wrong["msg"].removeprefix("Value error, ")
        raise SettingError(f'{flags[str(name)]} "{value}": {reason}') from None


def class_list(dataset: str | None, file: Path | None, ids: Ids | None, translation: Path | None) -> "ClassList":
    """The classes of a dataset or a file, and how predictions number them."""
    from segbench.errors import SettingError
    from segbench.scoring.class_file import read_classes
    from segbench.scoring.classes import of_dataset
    from segbench.scoring.translation import translated

    if (dataset is None) == (file is None):
        found = "neither was given" if dataset is None else "both were given"
        raise SettingError(f"--dataset, --classes: {found}; name a dataset or a file of classes")
    if translation and ids:
        raise SettingError("--prediction-ids, --translate: both were given; a translation says what the ids are")
    classes = of_dataset(dataset) if dataset else read_classes(file)  # type: ignore[arg-type]
    return translated(classes, translation) if translation else classes.numbered((ids or Ids.files).value)


def truth_files(dataset: str | None, truth: Path, split: str | None) -> "Path | list[Truth]":
    """The split of a dataset that lies in `truth` as published, else the folder itself."""
    from segbench.errors import SettingError
    from segbench.scoring.folder import dataset_truth

    listed = dataset_truth(dataset, truth, split or "test") if dataset else None
    if listed is None and split:
        raise SettingError(
            f"--split {split}: {truth} holds no dataset in its published layout; name the folder of one and --dataset, "
            "or leave --split out"
        )
    return truth if listed is None else listed


def counted(
    folder: Path, pairing: "Pairing", classes: "ClassList", spec: "ScoreSpec", resize: Resize | None, console: "Console"
) -> "PairCounts":
    """The counts of one folder, with a bar on a terminal and a line every ten seconds elsewhere."""
    from segbench.cli.tracking import said_if_slow, track
    from segbench.scoring.pairs import PairCounts, count_pairs, load_counters

    with said_if_slow("compiling the counters, which is done once after an installation (half a minute)", console):
        load_counters(len(classes), spec)
    steps = count_pairs(pairing.pairs, classes, spec, resize.value if resize else None)
    found = track(steps, str(folder), console)
    return PairCounts(found.counts, [*pairing.findings, *found.findings])
