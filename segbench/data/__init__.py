"""The datasets, one a file, resolved on use. They yield NumPy arrays and import no torch."""

import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from segbench.data.dataset import Dataset
from segbench.data.spec import DataSpec
from segbench.errors import DataError, SettingError
from segbench.registry import Entry, Registry, did_you_mean
from segbench.spec import write_size

DATASETS = Registry(
    "dataset",
    [
        (
            "camvid",
            Entry("segbench.data.camvid:CamVid", "CamVid", "Brostow, Fauqueur & Cipolla, PRL 2009; SegNet's split"),
        ),
        (
            "sunrgbd",
            Entry("segbench.data.sunrgbd:SunRgbd", "SUN RGB-D", "Song, Lichtenberg & Xiao, CVPR 2015; 37 classes"),
        ),
        (
            "synthetic",
            Entry(
                "segbench.data.synthetic:Synthetic", "synthetic road scenes", "drawn from a seed; nothing to download"
            ),
        ),
    ],
)

# Set beside the options in a suite, not among them.
_NOT_OPTIONS = ("split", "root", "size")


def open_dataset(spec: DataSpec, split: str, root: Path | None = None) -> Dataset:
    """One split of a dataset: "train", "val" or "test".

    The folder is `root` (from `--data`), else the suite's `data.root`, else the environment's SEGBENCH_DATA.
    Raises `SettingError` for an unknown name, option or split, `DataError` where the data is missing.
    """
    options = check_options(spec)
    constructor = DATASETS.resolve(spec.name)
    if "root" in inspect.signature(constructor).parameters:
        environment = os.environ.get("SEGBENCH_DATA")
        options["root"] = root or spec.root or (Path(environment) if environment else None)
    if spec.size is not None:
        options["size"] = spec.size
    dataset = constructor(split, **options)
    assert isinstance(dataset, Dataset), f"{spec.name} is not a Dataset"
    return dataset


def open_splits(spec: DataSpec | None, splits: Iterable[str], root: Path | None = None) -> dict[str, Dataset]:
    """Several splits by name, none where a suite has no data; raises `DataError` where they differ in size."""
    if spec is None:
        return {}
    opened = {split: open_dataset(spec, split, root) for split in splits}
    sizes = {split: write_size(dataset.size) for split, dataset in opened.items()}
    # One model is to see them all.
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{split} {size}" for split, size in sizes.items())
        raise DataError(f"{spec.name}: frames of different sizes ({found}); allowed: one size; set data.size")
    return opened


def check_options(spec: DataSpec) -> dict[str, Any]:
    """The options of a spec, checked against the constructor's signature without touching the disk."""
    constructor = DATASETS.resolve(spec.name)
    parameters = inspect.signature(constructor).parameters
    if spec.root is not None and "root" not in parameters:
        raise SettingError(f"data.root: {spec.name} is drawn, not read, and has no folder; leave data.root out")
    allowed = [name for name in parameters if name not in _NOT_OPTIONS]
    return {name: _checked(spec.name, constructor, allowed, name, value) for name, value in spec.options.items()}


def _checked(dataset: str, constructor: Callable[..., Any], allowed: list[str], name: str, value: Any) -> Any:
    if name not in allowed:
        known = ", ".join(allowed) if allowed else "none"
        raise SettingError(
            f"data.options.{name} is not an option of {dataset}{did_you_mean(name, allowed)} (allowed: {known})"
        )
    try:
        annotation = inspect.signature(constructor).parameters[name].annotation
        return TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise SettingError(f"data.options.{name} of {dataset}: {reason}; found {value!r}") from None
