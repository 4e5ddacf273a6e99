"""A suite on a local Ray cluster leaves what a local run leaves: counts, losses, checkpoints, reasons of failures."""

import builtins
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, called

from segbench.errors import SettingError
from segbench.fanout import Failure, Stage, check_machine, library, most_beside, needed, on_ray, undone
from segbench.pipeline import Finished, execute, reason
from segbench.preparation import Prepared, prepare
from segbench.store.files import Results, Work
from segbench.store.record import Record, read_counts
from segbench.suite.load import load

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
SUITE = """\
name: spread
data: {name: synthetic, size: 24x32, options: {train: 8, val: 4, test: 3}}
models:
  - {name: segnet-basic, options: {width: 0.125}}
  - {name: "mine:Net"}
recipe: {optimizer: {name: sgd, lr: 0.1}, batch_size: 4, iterations: 6, validate_every: 3}
seeds: [0, 1]
score: {at: [3, best], boundary: {rules: [distance]}}
"""
# With `kill` beside it the process dies at the fifth training forward, once; each forward leaves a line.
MINE = """\
import os, signal
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, scale=1.0):
        super().__init__()
        self.convolution, self.scale = nn.Conv2d(3, num_classes, 3, padding=1), scale

    def forward(self, images):
        if self.training and images.device.type == "cpu":
            with open("forwards", "a") as file:
                file.write("x")
            if Path("kill").exists() and Path("forwards").stat().st_size == 5:
                Path("kill").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return self.convolution(images) * self.scale
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, which holds the suite and the code of one of its models."""
    (tmp_path / "spread.yaml").write_text(SUITE)
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


def prepared_of(*sets: str) -> Prepared:
    return prepare(load(Path("spread.yaml"), sets, allow_code=True)[1], CPU)


def locally(prepared: Prepared, place: str) -> list[Finished]:
    events = execute(prepared, Work(Path(place, "work")), Results(Path(place, "results")))
    return [event for event in events if isinstance(event, Finished)]


def by_ray(prepared: Prepared, place: str) -> list[Finished]:
    work, results = Work(Path(place, "work")), Results(Path(place, "results"))
    with on_ray(prepared, work, results) as stages:
        return [event for event in execute(prepared, work, results, stages) if isinstance(event, Finished)]


def substance(finished: Finished) -> dict[str, Any]:
    """All of a record that does not tell of time and place, with its counts."""
    record: Record = finished.record
    training = dict(record.training or {})
    for key in ("seconds", "waited_s", "environment"):
        training.pop(key, None)
    counts = [read_counts(finished.folder, evaluation) for evaluation in record.evaluations]
    return {
        "id": (record.id, record.status, record.reason, record.run, record.keys),
        "training": json.loads(json.dumps(training)),
        "evaluations": [(e.checkpoint, e.iteration, e.split, e.images, e.maps) for e in record.evaluations],
        "confusion": [c.confusion.tolist() for c in counts],
        "boundary": [{name: b.tolist() for name, b in c.boundary.items()} for c in counts],
        "maps": [(finished.folder / path).read_bytes() for e in record.evaluations for path in e.maps.values()],
    }


def equal(one: list[Finished], other: list[Finished]) -> bool:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert substance(a) == substance(b)
    return True


# --- without Ray --------------------------------------------------------------------------------------------------


def test_each_stage_is_left_once_and_a_training_stands_before_what_needs_it(folder: Path) -> None:
    stages = undone(prepared_of("profile={res: 24x32, memory: false}"), Work(Path("w")), Results(Path("r")))
    # Two models of two seeds; both seeds of a model share its profile.
    assert [stage.kind for stage in stages] == ["profile"] * 2 + ["train", "evaluate", "evaluate"] * 4
    assert len({stage.key for stage in stages}) == len(stages)
    assert [stage.at for stage in stages if stage.kind == "evaluate"] == ["3", "best"] * 4


def kinds(stages: list[Stage]) -> list[str]:
    return [stage.kind for stage in stages]


def test_what_is_whole_is_not_left(folder: Path) -> None:
    prepared = prepared_of("seeds=[0]", "models=[{name: 'mine:Net'}]")
    (keys,) = prepared.keys
    work, results = Work(Path("a/work")), Results(Path("a/results"))
    assert kinds(undone(prepared, work, results)) == ["train", "evaluate", "evaluate"]
    locally(prepared, "a")
    assert undone(prepared, work, results) == []
    nothing = Results(Path("nothing"))
    assert undone(prepared, work, nothing) == []
    counts = work.place("evaluate", keys.evaluate["best"]) / "counts.npz"
    kept = counts.read_bytes()
    counts.unlink()
    assert [(stage.kind, stage.at) for stage in undone(prepared, work, nothing)] == [("evaluate", "best")]
    assert undone(prepared, work, results) == [], "its record has the counts"
    counts.write_bytes(kept)
    # Scores of a training that must be done again are not its own.
    (work.place("train", str(keys.train)) / "3.safetensors").unlink()
    assert kinds(undone(prepared, work, nothing)) == ["train", "evaluate", "evaluate"]


def test_a_gpu_is_whole_and_a_profile_on_processors_has_the_machine() -> None:
    nodes = [{"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}]
    assert needed("train", GPU, 3, nodes) == needed("profile", GPU, 3, nodes) == {"num_gpus": 1, "num_cpus": 0}
    assert needed("train", CPU, 3, nodes) == needed("evaluate", CPU, 3, nodes) == {"num_cpus": 3}
    assert needed("profile", CPU, 3, nodes) == {"num_cpus": 16}
    assert needed("train", CPU, 64, nodes) == {"num_cpus": 16}, "it would wait for ever for 64"
    assert most_beside({"num_cpus": 3}, nodes) == 5 and most_beside({"num_gpus": 1, "num_cpus": 0}, nodes) == 4
    with pytest.raises(SettingError, match="no machine of the cluster has a GPU"):
        needed("train", GPU, 3, nodes[:1])
    with pytest.raises(SettingError, match="no machine of the cluster has a CPU"):
        needed("train", CPU, 3, [{"GPU": 1.0}])


def test_a_profile_is_for_the_machine_in_its_key() -> None:
    planned = {"device": "A", "torch": "2.11"}
    check_machine(planned, dict(planned))
    with pytest.raises(SettingError, match=r"has device B, and this profile is for A"):
        check_machine(planned, {"device": "B", "torch": "2.11"})
    with pytest.raises(SettingError, match=r"has torch 2\.12, and this profile is for 2\.11"):
        check_machine(planned, {"device": "A", "torch": "2.12"})


def test_an_error_reads_as_the_workers() -> None:
    error = Failure("FileProblem", "a.png: cannot\nbe read", "the worker's traceback").error()
    assert reason(error) == "FileProblem: a.png: cannot be read" and error.__notes__ == ["the worker's traceback"]


Command = Callable[..., int]


@pytest.fixture
def segbench(monkeypatch: pytest.MonkeyPatch) -> Command:
    def command(*arguments: object) -> int:
        return called(monkeypatch, *arguments)

    return command


def test_where_else_stages_can_run(folder: Path, segbench: Command, capsys: Any) -> None:
    assert segbench("run", "spread.yaml", "--on", "rai") == 2
    assert capsys.readouterr().err == "segbench: --on rai: stages can run on ray; leave --on out to run them here\n"
    assert not Path("results").exists() and not Path(".segbench").exists()


def test_ray_that_is_absent(folder: Path, segbench: Command, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without_ray(name: str, *rest: Any) -> ModuleType:
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(SettingError, match=r"pip install 'segbench\[ray\]'"):
        library()
    assert segbench("run", "spread.yaml", "--allow-code", "--on", "ray") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not Path("results").exists() and not Path(".segbench").exists()


@pytest.mark.slow
def test_ray_is_imported_by_those_who_ask_for_it_alone() -> None:
    code = "import sys, segbench.fanout, segbench.cli.progress; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- on a cluster of this machine ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two processors, whatever the machine has."""
    ray = pytest.importorskip("ray")
    # Workers must find this checkout even where another segbench is installed.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
    os.environ.pop("PYTHONPATH")
    if path is not None:
        os.environ["PYTHONPATH"] = path


@pytest.mark.slow
def test_ray_leaves_what_a_local_run_leaves(cluster: None, folder: Path) -> None:
    prepared = prepared_of()
    expected = locally(prepared, "local")
    # Two stages at once leave their lines in one file; it only counts them.
    Path("forwards").unlink()
    found = by_ray(prepared, "ray")
    assert equal(expected, found) and [f.record.status for f in found] == ["done"] * 4
    assert Path("forwards").stat().st_size == 2 * 6
    for finished in found:
        training = finished.record.training
        assert training and training["environment"]["threads"] == torch.get_num_threads()
        names = {path.name for path in Path("local/work/train").rglob("*.safetensors")}
        assert {path.name for path in Path("ray/work/train").rglob("*.safetensors")} == names
    for path in Path("local/work/train").rglob("*.safetensors"):
        same = Path("ray", path.relative_to("local"))
        assert path.read_bytes() == same.read_bytes(), path
    # Once more: nothing is done again, whether the records are there or not.
    before = {path: path.stat().st_mtime_ns for path in Path("ray/work").rglob("*") if path.is_file()}
    assert by_ray(prepared, "ray") == []
    shutil.rmtree("ray/results")
    assert equal(expected, by_ray(prepared, "ray"))
    assert {path: path.stat().st_mtime_ns for path in Path("ray/work").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_what_fails_is_said_in_the_same_words_and_the_others_go_on(cluster: None, folder: Path) -> None:
    sets = (
        "seeds=[0]",
        "models=[{name: 'mine:Net', label: bad, recipe: {optimizer: {name: sgd, lr: 1.0e+38}}}, {name: 'mine:Net'}]",
    )
    prepared = prepared_of(*sets)
    expected, found = locally(prepared, "local"), by_ray(prepared, "ray")
    assert equal(expected, found) and [f.record.status for f in found] == ["failed", "done"]
    assert str(found[0].record.reason).startswith("TrainingError: the loss is")
    assert "engine/train.py" in str(found[0].record.traceback), "where it failed in the worker"


@pytest.mark.slow
def test_the_work_of_a_lost_worker_goes_on_from_its_checkpoint(cluster: None, folder: Path) -> None:
    prepared = prepared_of("seeds=[0]", "models=[{name: 'mine:Net'}]")
    expected = locally(prepared, "local")
    assert Path("forwards").read_text() == "x" * 6
    Path("forwards").unlink()
    Path("kill").touch()
    found = by_ray(prepared, "ray")
    assert equal(expected, found) and found[0].record.status == "done"
    # Killed in the fifth, and on from the third.
    assert not Path("kill").exists() and Path("forwards").read_text() == "x" * (5 + 3)


@pytest.mark.slow
def test_a_profile_is_measured_by_a_worker(cluster: None, folder: Path) -> None:
    sets = "recipe=null", "score=null", "models=[{name: fcn-basic, options: {width: 0.125}}]", "seeds=[0]"
    prepared = prepared_of(*sets, "profile={res: 24x32, protocol: caffe-time, repetitions: 2, memory: false}")
    (found,) = by_ray(prepared, "ray")
    assert found.record.status == "done" and found.record.usage
    assert found.record.profiled_on and found.record.profiled_on["threads"] == torch.get_num_threads()
    assert found.record.usage["threads"] == torch.get_num_threads()


@pytest.mark.slow
def test_ctrl_c_ends_the_stages_and_the_same_command_goes_on(folder: Path) -> None:
    """The command line as a person uses it, on a cluster that it starts itself."""
    command = [sys.executable, "-m", "segbench.cli", "run", "spread.yaml", "--on", "ray", "--allow-code"]
    command += ["--set", "seeds=[0]", "--set", "models=[{name: 'mine:Net'}]", "--set", "score.at=[last]"]
    long = [*command, "--set", "recipe.iterations=200000", "--set", "recipe.validate_every=20"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    running = subprocess.Popen(long, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for(lambda: bool(list(Path(".segbench/train").glob("*/resume.safetensors"))))
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130 and "the same command goes on from here" in said, said
    count = Path("forwards").stat().st_size
    time.sleep(2)
    assert Path("forwards").stat().st_size == count, "a stage still runs"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "done: results/spread/" in done.stderr.replace("\n", ""), done.stderr
    assert "Traceback" not in said + done.stderr


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_stage_on_a_gpu_has_the_one_that_ray_shows_it(folder: Path) -> None:
    ray = pytest.importorskip("ray")
    sets = "seeds=[0]", "models=[{name: segnet-basic, options: {width: 0.125}}]"
    prepared = prepare(load(Path("spread.yaml"), sets)[1], GPU)
    assert not ray.is_initialized()
    (found,) = by_ray(prepared, "ray")
    assert found.record.status == "done", found.record.traceback
    training = found.record.training
    assert training and training["environment"]["device"] == torch.cuda.get_device_name(0)
    assert np.isfinite(training["losses"]).all()
