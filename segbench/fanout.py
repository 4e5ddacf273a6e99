"""A suite over many GPUs or machines: each stage a task of Ray (Moritz et al., OSDI 2018).

Every stage that a run without a record still needs is submitted at once. Ray starts each where its resources are free,
an evaluation after its training. The pipeline walks the runs in their order as ever, waits for their stages and writes
their records, which are those of a local run: the same functions do the work, with as many threads as torch has here.

A stage on a GPU has that GPU alone. A stage on a CPU has as many processors as torch has threads, and one that measures
costs has a whole machine, the largest, and goes first. The work of a worker that is lost is done again by another,
LOST_WORKERS times a stage at most; a training goes on from its checkpoint. What a stage raises is not tried again.

Workers have this segbench installed, and a shared file system: they find the current folder, the work folder and the
data under the same paths. Ray holds nothing but plans and facts.
"""

import os
import platform
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch

from segbench.data.batches import Frames
from segbench.errors import SettingError
from segbench.preparation import Prepared
from segbench.profiling.device import device_name
from segbench.stages import Facts, Stages, evaluated, kept_all, profiled, trained
from segbench.store.environment import library_versions
from segbench.store.files import Results, Work
from segbench.suite.plan import Keys, Run, kept_iterations

LOST_WORKERS = 3
"""As often a stage is begun again by another worker; it is Ray's own choice for tasks."""

ASK_EVERY_S = 0.5
CANCELLED_WITHIN_S = 10.0


class Waiting(NamedTuple):
    """Of all stages that were submitted, `done` have ended."""

    done: int
    total: int


class Stage(NamedTuple):
    """One stage of one run; of runs that share it, the first. `at` is the checkpoint of an evaluation."""

    kind: Literal["train", "evaluate", "profile"]
    run: Run
    keys: Keys
    at: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Where the work folder has it."""
        found = {"train": self.keys.train, "evaluate": self.keys.evaluate.get(self.at), "profile": self.keys.profile}
        return self.kind, str(found[self.kind])


class Site(NamedTuple):
    """What a worker must know to work as this process would. `beside` stages may run on a machine at once."""

    prepared: Prepared
    work: Work
    folder: Path
    threads: int
    beside: int
    measures: Mapping[str, str | None]


class Failure(NamedTuple):
    """What a stage raised, in words: not every error can be sent from one process to another."""

    kind: str
    text: str
    traceback: str

    def error(self) -> Exception:
        """An error that reads as the one that was raised."""
        raised: Exception = type(self.kind, (Exception,), {})(self.text)
        raised.add_note(self.traceback)
        return raised


def library() -> ModuleType:
    """Ray, or a `SettingError` that says how to get it."""
    try:
        import ray
    except ModuleNotFoundError:
        raise SettingError("--on ray needs Ray, which is not installed; pip install 'segbench[ray]'") from None
    return ray


@contextmanager
def on_ray(prepared: Prepared, work: Work, results: Results) -> Iterator[Stages]:
    """The stages, which Ray does: all of them are submitted now, and those that still run at the end are cancelled.

    Joins the cluster that RAY_ADDRESS names or that runs on this machine, else starts one of this machine. Raises
    `SettingError` where it cannot be joined or has not the resources.
    """
    ray = library()
    with joined(ray):
        tasks = submitted(ray, undone(prepared, work, results), prepared, work)
        try:
            yield waited_for(ray, tasks)
        finally:
            cancel(ray, list(tasks.values()))


@contextmanager
def joined(ray: ModuleType) -> Iterator[None]:
    """In a cluster; the one that this program is in already, where it is in one."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless its user says so
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise SettingError(f"--on ray: no cluster at {where}: {' '.join(str(error).split())}") from None
    try:
        yield
    finally:
        ray.shutdown()


def undone(prepared: Prepared, work: Work, results: Results) -> list[Stage]:
    """What is to be done, each stage once: profiles, then each training before what is evaluated of it."""
    found: dict[tuple[str, str], Stage] = {}
    for run, keys in zip(prepared.runs, prepared.keys, strict=True):
        before = results.find(run.suite, keys.record)
        if before is None or before.status != "done":
            for stage in stages_of(run, keys):
                found.setdefault(stage.key, stage)
    fresh = {key for key, stage in found.items() if not whole(stage, prepared, work)}
    # Scores of weights that are made again are made again as well.
    fresh |= {key for key, stage in found.items() if key[0] == "evaluate" and ("train", stage.keys.train) in fresh}
    return sorted((found[key] for key in found if key in fresh), key=lambda stage: stage.kind != "profile")


def stages_of(run: Run, keys: Keys) -> Iterator[Stage]:
    if run.recipe:
        yield Stage("train", run, keys)
    for at in run.checkpoints:
        yield Stage("evaluate", run, keys, at)
    if run.profile:
        yield Stage("profile", run, keys)


def whole(stage: Stage, prepared: Prepared, work: Work) -> bool:
    """Whether the stage's function would find all that it makes, and give it as it is."""
    facts, place = work.facts(*stage.key), work.place(*stage.key)
    if not facts:
        return False
    if stage.kind == "train":
        keep = kept_iterations(prepared.runs, prepared.keys, stage.keys.train)
        return kept_all(place, {*keep, facts["iteration"]}, facts["selected"])
    if stage.kind == "evaluate":
        training = work.facts("train", stage.keys.train)
        return facts["network"] == (training["digest"] if training else None) and (place / "counts.npz").is_file()
    return True


def submitted(ray: ModuleType, stages: Sequence[Stage], prepared: Prepared, work: Work) -> dict[tuple[str, str], Any]:
    """Ray's promise of each stage's facts, by the stage's key; an evaluation waits for that of its training."""
    if not stages:
        return {}
    work.root.mkdir(parents=True, exist_ok=True)
    threads, nodes = torch.get_num_threads(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = {kind: needed(kind, prepared.device, threads, nodes) for kind in ("train", "evaluate", "profile")}
    site = ray.put(
        Site(prepared, work, Path.cwd(), threads, most_beside(needs["train"], nodes), machine(prepared.device_name))
    )
    once = {"max_retries": LOST_WORKERS, "retry_exceptions": False}
    # Nothing that an earlier stage left in its process lies beside what is measured, nor in the memory of a GPU.
    last = {kind: {"max_calls": 1} if kind == "profile" or "num_gpus" in needs[kind] else {} for kind in needs}
    remote = {kind: ray.remote(**needs[kind], **once, **last[kind])(do) for kind in needs}
    tasks: dict[tuple[str, str], Any] = {}
    for stage in stages:
        training = tasks.get(("train", str(stage.keys.train))) if stage.kind == "evaluate" else None
        tasks[stage.key] = remote[stage.kind].remote(stage, site, training)
    return tasks


def needed(kind: str, device: torch.device, threads: int, nodes: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """What a stage takes of a machine, in Ray's words; `SettingError` where no machine has it."""
    resource = "GPU" if device.type == "cuda" else "CPU"
    most = int(max((node.get(resource, 0.0) for node in nodes), default=0.0))
    if most < 1:
        raise SettingError(f"--on ray: no machine of the cluster has a {resource}; add one, or change --device")
    if device.type == "cuda":
        return {"num_gpus": 1, "num_cpus": 0}  # GPUs are what there are fewest of
    return {"num_cpus": most if kind == "profile" else min(threads, most)}


def most_beside(need: Mapping[str, int], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many stages with that need one machine may be at."""
    resource, amount = ("GPU", need["num_gpus"]) if "num_gpus" in need else ("CPU", need["num_cpus"])
    return int(max(node.get(resource, 0.0) for node in nodes) // amount)


def machine(device: str) -> dict[str, str | None]:
    """What the key of a profile says of where it is measured."""
    return {"device": device, **library_versions()}


def do(stage: Stage, site: Site, training: Facts | Failure | None) -> Facts | Failure:
    """One stage from beginning to end, in a worker; where its training failed, that failure."""
    if isinstance(training, Failure):
        return training
    try:
        steps = begun(stage, settled(site), site)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return dict(end.value)
    except Exception as error:  # somebody's model may raise anything
        return Failure(type(error).__name__, str(error), traceback.format_exc())


def settled(site: Site) -> Prepared:
    """Make this worker what the other process is; its device, and the name of that, are its own."""
    try:
        os.chdir(site.folder)
        next(site.work.root.iterdir(), None)
    except OSError as error:
        raise SettingError(
            f"Ray's worker on {platform.node()} cannot use {error.filename} ({error.strerror}); "
            "start where all machines share the file system"
        ) from None
    torch.set_num_threads(site.threads)
    # Frames are kept in memory by as many processes as torchrun would have started.
    os.environ["LOCAL_WORLD_SIZE"] = str(site.beside)
    device = torch.device("cuda:0") if site.prepared.device.type == "cuda" else site.prepared.device
    return replace(site.prepared, device=device, device_name=device_name(device))


def begun(stage: Stage, prepared: Prepared, site: Site) -> Generator[Any, None, Facts]:
    """The function of a stage, called."""
    run, keys = stage.run, stage.keys
    if stage.kind == "profile":
        check_machine(site.measures, machine(prepared.device_name))
        return profiled(run, keys, prepared, site.work)
    frames = {split: Frames(dataset) for split, dataset in prepared.datasets.items()}
    if stage.kind == "train":
        return trained(run, keys, prepared, frames, site.work)
    return evaluated(run, stage.at, keys, prepared, frames["test"], site.work)


def check_machine(expected: Mapping[str, str | None], found: Mapping[str, str | None]) -> None:
    """A profile is kept under the name of what it was measured on; `SettingError` where that is something else."""
    other = next((name for name in expected if found.get(name) != expected[name]), None)
    if other:
        raise SettingError(
            f"Ray's worker on {platform.node()} has {other} {found.get(other)}, and this profile is for "
            f"{expected[other]}; start segbench on a machine like those that measure"
        )


def waited_for(ray: ModuleType, tasks: Mapping[tuple[str, str], Any]) -> Stages:
    """The stages of the pipeline: each waits for its task, or reads what is whole already."""

    def facts(stage: Stage, local: Generator[Any, None, Facts]) -> Generator[Any, None, Facts]:
        return (yield from (outcome(ray, tasks, stage.key) if stage.key in tasks else local))

    def train(run: Run, keys: Keys, *rest: Any) -> Generator[Any, None, Facts]:
        return facts(Stage("train", run, keys), trained(run, keys, *rest))

    def evaluate(run: Run, at: str, keys: Keys, *rest: Any) -> Generator[Any, None, Facts]:
        return facts(Stage("evaluate", run, keys, at), evaluated(run, at, keys, *rest))

    def measure(run: Run, keys: Keys, *rest: Any) -> Generator[Any, None, Facts]:
        return facts(Stage("profile", run, keys), profiled(run, keys, *rest))

    return Stages(train, evaluate, measure)


def outcome(
    ray: ModuleType, tasks: Mapping[tuple[str, str], Any], key: tuple[str, str]
) -> Generator[Waiting, None, Facts]:
    """Wait for a task; its facts, or its error. An error of Ray's own says that the workers were lost."""
    everything = list(tasks.values())
    while not ray.wait([tasks[key]], timeout=ASK_EVERY_S)[0]:
        done, _ = ray.wait(everything, num_returns=len(everything), timeout=0)
        yield Waiting(len(done), len(everything))
    found = ray.get(tasks[key])
    if isinstance(found, Failure):
        raise found.error()
    return dict(found)


def cancel(ray: ModuleType, tasks: Sequence[Any]) -> None:
    """End what still runs, as kill -9 does, and wait until it has: the next one to work in the folder must be alone."""
    if not tasks:
        return
    _, running = ray.wait(tasks, num_returns=len(tasks), timeout=0)
    for task in running:
        ray.cancel(task, force=True)
    if running:
        ray.wait(running, num_returns=len(running), timeout=CANCELLED_WITHIN_S)
