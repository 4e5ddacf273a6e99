"""Everything that can be wrong in the input is found here, before a byte is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from segbench.data import open_splits
from segbench.data.class_weights import ClassCounts
from segbench.data.dataset import Dataset
from segbench.data.preflight import require
from segbench.errors import ModelError, SegbenchError
from segbench.models.build import build, load_weights
from segbench.profiling.device import device_name
from segbench.spec import write_size
from segbench.store.environment import library_versions
from segbench.suite.plan import Keys, Run, file_digest, needed_splits, resolve_keys


@dataclass(frozen=True)
class Prepared:
    """Checked runs with their keys, and the data that they need. `train_counts` are the pixels of each class."""

    runs: list[Run]
    keys: list[Keys]
    datasets: dict[str, Dataset]
    train_counts: ClassCounts | None
    device: torch.device
    device_name: str

    @property
    def num_classes(self) -> int:
        return self.runs[0].classes

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the frames; None when there are none."""
        return self.any_dataset.size if self.any_dataset else None

    @property
    def any_dataset(self) -> Dataset | None:
        """The split that scores are made on, where there is one."""
        return self.datasets.get("test") or next(iter(self.datasets.values()), None)


def prepare(runs: Sequence[Run], device: torch.device, data_root: Path | None = None) -> Prepared:
    """Read and check every image, build every model, resolve every key; raises `SegbenchError` on wrong input."""
    datasets = open_splits(runs[0].data, needed_splits(runs), data_root)
    counts = {split: require(dataset) for split, dataset in datasets.items()}
    digests = {split: dataset.digest() for split, dataset in datasets.items()}
    name = device_name(device)
    # On a CPU the number of threads decides the time as the card does on a GPU.
    threads = str(torch.get_num_threads()) if device.type == "cpu" else None
    machine = {"device": name, "threads": threads, **library_versions()}
    keys = [resolve_keys(run, digests, file_digest(run.weights), machine) for run in runs]
    prepared = Prepared(list(runs), keys, datasets, counts.get("train"), device, name)
    for run in {(run.model, run.weights, str(run.options)): run for run in runs}.values():
        check_model(run, prepared)
    return prepared


def check_model(run: Run, prepared: Prepared) -> None:
    """Everything that a model can refuse: its options, its weights, the sizes that it is trained and timed at."""
    try:
        if run.weights:
            network(run, prepared)
        for size in {prepared.size, run.profile.res if run.profile else None}:
            if size:
                check_forward(run, size)
    except SegbenchError as error:
        raise ModelError(f"{run.where}: {error}") from None


def check_forward(run: Run, size: tuple[int, int]) -> None:
    """One image of `size` on the meta device, where nothing is computed and nothing takes memory."""
    with torch.device("meta"):
        model = build(run.model, run.classes, run.options, size).eval()
        try:
            found = tuple(model(torch.empty((1, 3, *size))).shape)
        except NotImplementedError:
            return  # an operator that has no meta form: the run itself will tell
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{run.model} cannot take images of {write_size(size)}: {reason}") from None
    if found != (1, run.classes, *size):
        raise ModelError(
            f"{run.model} makes logits of shape {found} of an image of {write_size(size)}; "
            f"allowed: {(1, run.classes, *size)}"
        )


def network(run: Run, prepared: Prepared) -> nn.Module:
    """The run's model as its training finds it: seeded, and with the given weights where there are some."""
    torch.manual_seed(run.seed or 0)
    model = build(run.model, prepared.num_classes, run.options, prepared.size)
    if run.weights:
        load_weights(model, Path(run.weights))
    return model
