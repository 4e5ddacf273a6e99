"""Two processes do what one does: the same updates, counts and records; and they end together.

The processes are torchrun's, on the CPU by gloo. What is compared stands in distributed_cases.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed_cases
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from distributed_cases import CASES

from segbench.engine import distributed
from segbench.engine.data_parallel import check_recipe, parallel
from segbench.engine.device import resolve_device
from segbench.engine.recipe import Recipe
from segbench.errors import SettingError
from segbench.store.files import record_folders
from segbench.store.record import read_counts, read_record

CPU = torch.device("cpu")
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}


def torchrun(*arguments: object, **settings: Any) -> "subprocess.Popen[str]":
    """Two processes of a script or module; their output goes to one pipe."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], env=ENVIRONMENT, **pipes, **settings)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every case by one process, "one", and by each of two, 0 and 1."""
    apart, together = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    job = torchrun(distributed_cases.__file__, together)
    one = {name: case(apart) for name, case in CASES.items()}
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    return {"one": one} | {rank: torch.load(together / f"{rank}.pt", weights_only=False) for rank in (0, 1)}


LEARNT = ["plain", "weighted", "by weights", "by nothing", "accumulated", "short", "one image"]


@pytest.mark.parametrize("case", LEARNT)
def test_two_processes_learn_what_one_does(found: dict[Any, Any], case: str) -> None:
    one, first, second = (found[who][case] for who in ("one", 0, 1))
    np.testing.assert_allclose(first["losses"], one["losses"], rtol=1e-12)
    assert one["losses"][-1] < one["losses"][0]
    assert list(first["state"]) == list(one["state"])
    untouched = distributed_cases.Convolutions().state_dict()
    for name, weight in one["state"].items():
        assert not torch.equal(weight, untouched[name])
        torch.testing.assert_close(first["state"][name], weight, rtol=1e-11, atol=1e-13)
        assert torch.equal(first["state"][name], second["state"][name])
    assert first["losses"] == second["losses"]


@pytest.mark.parametrize("case", ["scores", "scores of one", "scores of whole batches", "samples"])
def test_two_processes_count_what_one_does(found: dict[Any, Any], case: str) -> None:
    one, first, second = (found[who][case] for who in ("one", 0, 1))
    assert first["names"] == one["names"] and len(one["names"]) in (1, 8, 11, 23)
    assert set(first["counts"]) == set(one["counts"]) >= {"confusion", "bsds@2px", "distance@0.75%", "2%"}
    for name, counts in one["counts"].items():
        assert np.array_equal(first["counts"][name], counts) and counts.any()
    assert first["files"] == one["files"] and first["found"] == one["found"]
    assert first["seen"] == one["seen"] and len(one["seen"]) == len(one["names"])
    # The other process wrote and knows nothing.
    assert second["seen"] == [] and second["found"] == {"maps": {}, "uncertainty_maps": {}, "uncertainty": None}


def test_samples_are_as_unsure_as_in_one_process(found: dict[Any, Any]) -> None:
    assert found["one"]["samples"]["found"]["uncertainty"] > 0
    assert len(found["one"]["samples"]["files"]) == 8  # four maps and their uncertainty


def test_statistics_of_the_training_set_are_those_of_one_process(found: dict[Any, Any]) -> None:
    for name, value in found["one"]["statistics"].items():
        for rank in (0, 1):
            assert torch.equal(found[rank]["statistics"][name], value)
    assert found["one"]["statistics"]["norm.running_mean"].all()


def test_what_processes_tell_each_other(found: dict[Any, Any]) -> None:
    expected: dict[str, tuple[Any, Any, Any]] = {
        "share": (
            [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]],
            [[], [0], [0], [0, 1], [0, 1], [0, 1, 2]],
            [[], [], [1], [2], [2, 3], [3, 4]],
        ),
        "sum": (2**40 + 1, 2**41 + 3, 2**41 + 3),
        "mean": (3.0, 2.0, 2.0),
        "gathered": (["of 0"], ["of 0", "of 1"], []),
        "told": ([0, "says"], [0, "says"], [0, "says"]),
        "agreed": ([True, False], [True, False], [True, False]),
        # Every other column is the first process's; the one between them is not touched.
        "spread": (*([[[0.0, 0.0, 0.0]] * 2, [5.0, 5.0]],) * 2, [[[0.0, 1.0, 0.0]] * 2, [5.0, 5.0]]),
        "processes": ((0, 1, True), (0, 2, True), (1, 2, False)),
    }
    for case, (one, first, second) in expected.items():
        assert [found["one"][case], found[0][case], found[1][case]] == [one, first, second], case


def test_an_image_that_is_only_there_for_company_teaches_nothing(found: dict[Any, Any]) -> None:
    for who in ("one", 0, 1):
        images, labels = found[who]["nothing to learn"]
        assert labels == [11] and len(images) > 10


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 6, "iterations": 4}
    return Recipe.model_validate(settings | changes)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """As if torchrun had started so many processes, and this one as the second of them."""

    def launch(count: int) -> None:
        names = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "LOCAL_RANK": 1}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))

    return launch


def test_a_batch_that_processes_cannot_share_is_refused(launched: Callable[[int], None]) -> None:
    for count in (2, 3, 6):
        launched(count)
        check_recipe(recipe(), CPU)
    launched(4)
    with pytest.raises(SettingError, match=r"recipe\.batch_size is 6, which 4 processes cannot share"):
        check_recipe(recipe(), CPU)


def test_normalisation_over_all_processes_needs_gpus(launched: Callable[[int], None]) -> None:
    check_recipe(recipe(sync_norm=True), CPU)  # of one process
    launched(2)
    check_recipe(recipe(sync_norm=True), torch.device("cuda:1"))
    with pytest.raises(SettingError, match="SyncBatchNorm works on GPUs alone"):
        check_recipe(recipe(sync_norm=True), CPU)


def test_one_process_trains_the_very_network() -> None:
    model = torch.nn.BatchNorm2d(3)
    assert parallel(model, recipe(sync_norm=True), CPU) is model


@pytest.mark.parametrize(("gpus", "expected"), [(0, "cpu"), (2, "cuda:1"), (3, "cuda:1")])
def test_each_process_has_the_gpu_of_its_number(
    launched: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, gpus: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    launched(2)
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device("cpu") == CPU
    with pytest.raises(SettingError, match="torchrun gives each process a GPU of its own"):
        resolve_device("cuda:0")
    launched(4)
    if gpus:
        with pytest.raises(SettingError, match=f"4 processes here, and {gpus} GPUs are visible"):
            resolve_device("auto")


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # some clusters set it, which is not torchrun
    assert distributed.launched() == 1
    with distributed.started(CPU):
        assert (distributed.rank(), distributed.processes()) == (0, 1)
    assert not distributed.ended() and distributed.first_to_end() and distributed.first_to_end()


SUITE = """\
name: s
data: {name: synthetic, size: 24x32, options: {train: 12, val: 7, test: 11}}
models:
MODELS
recipe:
  optimizer: {name: sgd, lr: 0.1}
  batch_size: 4
  iterations: 6
  last_batch: keep
  class_weights: median-frequency
  validate_every: 3
score: {at: [3, best], boundary: {rules: [bsds, distance]}}
"""
PLAIN = '  - {name: "distributed_nets:Plain", label: Plain}'
RUN = ("-m", "segbench", "run", "s.yaml", "--allow-code", "--device", "cpu")


def write_suite(folder: Path, *models: str) -> None:
    (folder / "s.yaml").write_text(SUITE.replace("MODELS", "\n".join(models)))


def reasons(folder: Path) -> dict[str, str | None]:
    return {r.run["label"]: r.reason for r in map(read_record, record_folders(folder / "results"))}


@pytest.mark.slow
def test_records_are_those_of_one_process(tmp_path: Path) -> None:
    write_suite(tmp_path, PLAIN)
    job = torchrun(*RUN, cwd=tmp_path)
    alone = [sys.executable, *RUN, "--results", "alone", "--work", "w"]
    subprocess.run(alone, cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert output.count("done: ") == 1 and "Warning" not in output
    folders = [record_folders(tmp_path / place)[0] for place in ("alone", "results")]
    one, two = (read_record(folder) for folder in folders)
    assert (one.id, one.keys, one.run) == (two.id, two.keys, two.run)
    assert (one.environment["processes"], two.environment["processes"]) == (1, 2)
    assert one.training and two.training
    np.testing.assert_allclose(two.training["losses"], one.training["losses"], rtol=1e-5)
    assert two.training["validations"] == one.training["validations"]
    for first, second in zip(one.evaluations, two.evaluations, strict=True):
        mine, other = read_counts(folders[0], first), read_counts(folders[1], second)
        assert mine.names == other.names and np.array_equal(mine.confusion, other.confusion)
    again = torchrun(*RUN, cwd=tmp_path)
    assert "has a record already" in again.communicate(timeout=300)[0] and again.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("process", "at"), [(1, 3), (0, 3), (1, -1)])
def test_a_process_that_fails_alone_ends_the_job_with_its_reason(tmp_path: Path, process: int, at: int) -> None:
    wild = PLAIN.replace("Plain}", "Wild, recipe: {optimizer: {name: sgd, lr: 1.0e+30}}}")
    failing = f'  - {{name: "distributed_nets:Failing", label: Failing, options: {{process: {process}, at: {at}}}}}'
    write_suite(tmp_path, wild, failing, PLAIN)
    words = ("process 1: " if process else "") + "ValueError: one process does not like it"
    for _ in range(2):  # the second time the one that never failed comes first
        job = torchrun(*RUN, cwd=tmp_path)
        output, _ = job.communicate(timeout=120)
        assert job.returncode == 1 and words in output, output
        found = reasons(tmp_path)
        assert found["Failing"] == words
        # All agree on it, so it is no reason to end.
        assert str(found["Wild"]).startswith("TrainingError: the loss is")
    assert found["Plain"] is None and len(found) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_goes_on_to_the_same_weights(tmp_path: Path, number: int) -> None:
    dropping = PLAIN.replace("Plain}", "Plain, options: {p: 0.3}, recipe: {iterations: 1500, validate_every: 750}}")
    write_suite(tmp_path, dropping)
    (tmp_path / "s.yaml").write_text((tmp_path / "s.yaml").read_text().replace("at: [3, best]", "at: [1500]"))
    whole = torchrun(*RUN, "--results", "whole", "--work", "whole-work", cwd=tmp_path)
    assert whole.wait(timeout=300) == 0
    job = torchrun(*RUN, cwd=tmp_path)
    state = tmp_path / ".segbench/train"
    while not list(state.glob("*/resume.safetensors")):  # the validation has been
        time.sleep(0.02)
        assert job.poll() is None
    job.send_signal(number)
    output, _ = job.communicate(timeout=60)
    assert "interrupted; the same command goes on from here" in output
    assert "Traceback" not in output.partition("Received")[0], output
    assert not list(tmp_path.glob("results/*/*/record.json"))
    assert torchrun(*RUN, cwd=tmp_path).wait(timeout=300) == 0
    digests = [facts(tmp_path / work)["digest"] for work in ("whole-work", ".segbench")]
    assert digests[0] == digests[1]


def facts(work: Path) -> dict[str, Any]:
    (mark,) = work.glob("train/*/stage.json")
    return dict(json.loads(mark.read_text()))


@pytest.mark.slow
def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    write_suite(tmp_path, PLAIN.replace("Plain}", "Plain, recipe: {batch_size: 5}}"))
    job = torchrun(*RUN, cwd=tmp_path)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 1 and output.count("recipe.batch_size is 5, which 2 processes cannot share") == 1
    assert not (tmp_path / "results").exists()
