"""Everything that can be wrong in the input is found here, before a byte is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from segbench.data import open_splits
from segbench.data.class_weights import ClassCounts, class_weights
from segbench.data.dataset import Dataset
from segbench.data.preflight import require
from segbench.engine.data_parallel import check_recipe
from segbench.engine.dense_crf import DenseCrf, require_library
from segbench.engine.inference import MonteCarlo
from segbench.engine.monte_carlo import drops
from segbench.engine.update import check_device
from segbench.errors import ModelError, SegbenchError, SettingError
from segbench.models.build import build
from segbench.models.layers import use_norm_eps
from segbench.models.weights import load_weights
from segbench.profiling.device import cuda_uuid, device_name
from segbench.profiling.isolation import check_isolation
from segbench.profiling.workload import Fed
from segbench.spec import write_size
from segbench.store.environment import library_versions
from segbench.suite.plan import Keys, Run, given, needed_splits, resolve_keys, with_lengths


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
    runs = with_lengths(runs, len(datasets["train"]) if "train" in datasets else None)
    counts = {split: require(dataset) for split, dataset in datasets.items()}
    digests = {split: dataset.digest() for split, dataset in datasets.items()}
    name = device_name(device)
    # On a CPU the number of threads decides the time as the card does on a GPU.
    threads = str(torch.get_num_threads()) if device.type == "cpu" else None
    machine = {"device": name, "threads": threads, **library_versions()}
    keys = [resolve_keys(run, digests, given(run), machine) for run in runs]
    prepared = Prepared(runs, keys, datasets, counts.get("train"), device, name)
    if any(run.profile and run.profile.isolation == "error" for run in runs):
        check_isolation(cuda_uuid(device), "error")
    for run in {as_seen(run): run for run in runs}.values():
        check_model(run, prepared)
        check_class_weights(run, prepared)
        check_training(run, prepared)
    return prepared


def as_seen(run: Run) -> str:
    """All of a run that a check may look at: seeds differ in none of it."""
    return str(run.model_dump(exclude={"seed"}))


def check_model(run: Run, prepared: Prepared) -> None:
    """Everything that a model can refuse but the size that it is timed at: a point of a sweep that it cannot take is a
    row that says so, and the others go on."""
    try:
        if run.weights:
            check_weights(run, prepared)
        if run.profile:
            check_build(run, run.profile.res)
        if prepared.size:
            check_forward(run, prepared.size, prepared.size)
        if prepared.size and run.recipe and run.recipe.augment.crop:
            check_forward(run, prepared.size, run.recipe.augment.crop)
    except SegbenchError as error:
        raise ModelError(f"{run.where}: {error}") from None


def check_weights(run: Run, prepared: Prepared) -> None:
    """The weights fit; those of an encoder alone only begin a training."""
    model = build(run.model, prepared.num_classes, run.options, prepared.size, run.input)
    assert run.weights is not None
    if load_weights(model, run.weights).left and run.recipe is None:
        raise ModelError(
            f"{run.weights} holds VGG16's weights, which only begin a training: nothing to score; "
            "give the network's own, or remove train: false"
        )


def check_class_weights(run: Run, prepared: Prepared) -> None:
    """The loss can be weighted as the recipe says."""
    if run.recipe is None or prepared.train_counts is None:
        return
    try:
        class_weights(run.recipe.class_weights, prepared.train_counts, prepared.datasets["train"].shipped_weights)
    except SettingError as error:
        raise SettingError(f"{run.where}: {error}") from None


def check_training(run: Run, prepared: Prepared) -> None:
    """The device, and as many processes as there are, can train as the recipe says."""
    try:
        if run.recipe:
            check_recipe(run.recipe, prepared.device)
            check_device(run.recipe, prepared.device)
    except SettingError as error:
        raise SettingError(f"{run.where}: {error}") from None


def check_build(run: Run, size: tuple[int, int]) -> nn.Module:
    """The model on the meta device, where nothing is computed and nothing takes memory; its options are sound."""
    with torch.device("meta"):
        model = build(run.model, run.classes, run.options, size, run.input).eval()
        if run.score:
            check_inference(run, model)
        if run.profile and "input" in run.profile.scope:
            Fed(model)  # refuses a model that declares no input
    return model


def check_forward(run: Run, frames: tuple[int, int], size: tuple[int, int]) -> None:
    """A model for frames of one size gives, on the meta device, logits of the size of its image."""
    with torch.device("meta"):
        model = check_build(run, frames)
        try:
            logits = model(torch.empty((1, 3, *size)))
        except SegbenchError:
            raise
        except NotImplementedError:
            return  # an operator that has no meta form: the run itself will tell
        except Exception as error:  # somebody's model may raise anything
            reason = " ".join(str(error).split())
            if "meta tensor" in reason:
                return  # a value decides the way through it: the run itself will tell
            raise ModelError(f"{run.model} cannot take images of {write_size(size)}: {reason}") from None
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found not in {(1, outputs, *size) for outputs in (run.classes, run.classes + 1)}:
        raise ModelError(
            f"{run.model} makes logits of shape {found} of an image of {write_size(size)}; "
            f"allowed: {(1, run.classes, *size)}, or one channel more for void"
        )


def check_inference(run: Run, model: nn.Module) -> None:
    """The model can be asked in the way that the run asks it."""
    if isinstance(run.inference, MonteCarlo) and not drops(model):
        raise ModelError(
            f"{run.model} has no dropout, so every one of its {run.inference.samples} samples would be the same; "
            "give it a dropout above 0, or say `inference: plain`"
        )
    if isinstance(run.inference, DenseCrf):
        require_library()


def network(run: Run, prepared: Prepared, begun: bool = True) -> nn.Module:
    """The run's model as its training finds it: seeded, and, where it is to be `begun`, with the given weights."""
    torch.manual_seed(run.seed or 0)
    model = build(run.model, prepared.num_classes, run.options, prepared.size, run.input)
    if run.recipe and run.recipe.norm_eps is not None:
        use_norm_eps(model, run.recipe.norm_eps)
    if run.weights and begun:
        load_weights(model, run.weights)
    return model
