"""Whatever ends a run, the same command goes on, and ends with what an uninterrupted run ends with: bit for bit."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, called
from PIL import Image

from segbench.engine import checkpoint, train
from segbench.engine.checkpoint import NEWEST, PREVIOUS
from segbench.engine.train import Step
from segbench.models.build import build
from segbench.pipeline import Finished, execute
from segbench.preparation import prepare
from segbench.store.files import LOCK, Results, Work, hold, record_folders
from segbench.store.record import Record, read_record
from segbench.suite.load import load

SUITE = """\
name: mini
data: {name: synthetic, size: 24x32, options: {train: 8, val: 2, test: 3}}
models:
  - {name: fcn-basic, label: large, options: {width: 0.125}}
  - {name: fcn-basic, label: small, options: {width: 0.0625}}
recipe:
  optimizer: {name: sgd, lr: 0.1}
  batch_size: 2
  iterations: 12
  validate_every: 4
score: {at: [6, best]}
"""
ONE = SUITE.replace("  - {name: fcn-basic, label: small, options: {width: 0.0625}}\n", "")

BETWEEN = 320_000
"""Bytes: a state of the large model is larger; all other files, and those of the small one, are smaller."""

Outcome = dict[str, Any]
Command = Callable[..., int]


def outcome(root: Path) -> Outcome:
    """All that a repeated run is to repeat: history, weights, counts and label maps; not its clocks."""
    found: Outcome = {}
    for folder in record_folders(root / "results"):
        record = read_record(folder)
        assert record.status == "done" and record.training, record.reason
        found[folder.name] = {k: record.training[k] for k in ("losses", "validations", "selected", "digest")}
        found |= {f"{folder.name}/{p.relative_to(folder)}": p.read_bytes() for p in files(folder, ".npz", ".png")}
        kept = files(root / "work/train" / record.keys["train"], ".safetensors")
        found |= {str(path.relative_to(root)): path.read_bytes() for path in kept}
    return found


def files(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in suffixes)


def leftovers(root: Path) -> list[Path]:
    """What only an unfinished or a running command has."""
    return [p for p in root.rglob("*") if p.name.startswith(("resume", LOCK, ".tmp")) or ".partial" in p.name]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "mini.yaml").write_text(SUITE)
    return tmp_path / "mini.yaml"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where the runs of a test leave their results and work."""
    return tmp_path / "here"


@pytest.fixture
def segbench(suite: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`segbench run` in this process; the exit code."""

    def command(*arguments: object) -> int:
        folders = ["--results", here / "results", "--work", here / "work"]
        return called(monkeypatch, "run", suite, *folders, *arguments)

    return command


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What an uninterrupted run of SUITE ends with."""
    root = tmp_path_factory.mktemp("whole")
    (root / "mini.yaml").write_text(SUITE)
    list(run_in(root, root / "mini.yaml"))
    assert not leftovers(root)
    return outcome(root)


def run_in(root: Path, suite: Path) -> Iterator[Any]:
    """The events of a run."""
    prepared = prepare(load(suite)[1], torch.device("cpu"))
    return execute(prepared, Work(root / "work"), Results(root / "results"))


def records(root: Path) -> dict[str, Record]:
    """By label."""
    return {record.run["label"]: record for record in map(read_record, record_folders(root / "results"))}


def interrupted(root: Path, suite: Path, iteration: int) -> None:
    """A run that was left after this iteration of the large model."""
    events = run_in(root, suite)
    next(event for event in events if isinstance(event, Step) and event.iteration == iteration)
    events.close()  # type: ignore[attr-defined]


# --- ended from outside --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "power"])
def test_twenty_deaths_change_nothing(how: str, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(ONE)
    program = [sys.executable, REPOSITORY / "tests/restarts.py", how, tmp_path / "one.yaml", tmp_path, "20"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=REPOSITORY, env=quiet())
    assert done.returncode == 0, done.stderr
    whole, runs = outcome(tmp_path / "whole"), [path for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert len(whole) == 1 + 2 + 6 + 3 and done.stdout == f"{len(runs)} runs\n"
    for path in runs:
        assert outcome(path) == whole, path
        assert leftovers(path) == [], path


def quiet() -> dict[str, str]:
    """For small networks: threads would wait for each other. Programs of tests import the tree that is tested."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def started(suite: Path, root: Path, *options: object) -> subprocess.Popen[str]:
    """The real command."""
    places = ["--results", root / "results", "--work", root / "work"]
    command = [sys.executable, "-m", "segbench.cli", "run", suite, *places, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet())


def ended_by(number: signal.Signals, suite: Path, root: Path, after_s: float) -> tuple[int, str] | None:
    """Start the command, and send a signal so long after it has begun to train; exit code and what it said, None when
    it was done before."""
    with started(suite, root) as process:
        assert process.stderr
        said = ""
        while "started" not in said and (line := process.stderr.readline()):
            said += line
        time.sleep(after_s)
        if process.poll() is None:
            process.send_signal(number)
        said += process.communicate()[1]
    return None if process.returncode == 0 else (process.returncode, said)


@pytest.mark.slow
def test_signals_end_the_real_command_and_it_goes_on(tmp_path: Path) -> None:
    suite, root = tmp_path / "long.yaml", tmp_path / "root"
    suite.write_text(ONE.replace("iterations: 12", "iterations: 250").replace("validate_every: 4", "validate_every: 5"))
    list(run_in(tmp_path / "whole", suite))
    whole = outcome(tmp_path / "whole")
    moments = np.random.RandomState(7)
    for number in (*[signal.SIGKILL] * 3, signal.SIGTERM, signal.SIGINT):
        while (end := ended_by(number, suite, root, moments.uniform(0, 1.5))) is None:
            assert outcome(root) == whole
            shutil.rmtree(root)
        code, said = end
        assert code == (-number if number == signal.SIGKILL else 130), said
        assert "Traceback" not in said and (number == signal.SIGKILL or "the same command goes on from here" in said)
    with started(suite, root) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert outcome(root) == whole
    assert not leftovers(root)


@pytest.mark.slow
def test_two_commands_do_not_share_a_results_folder(tmp_path: Path, suite: Path) -> None:
    with started(suite, tmp_path / "a") as first:
        while first.poll() is None and not (tmp_path / "a/results/mini" / LOCK).exists():
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        try:
            with started(suite, tmp_path / "a", "--work", tmp_path / "b") as second:
                _, said = second.communicate()
        finally:
            first.send_signal(signal.SIGCONT)
        first.communicate()
    assert second.returncode == 2 and first.returncode == 0
    assert "results/mini: another segbench works there; wait for it, or give --results DIR" in said


def test_a_results_folder_is_held_against_other_work_folders(
    here: Path, segbench: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with hold(here / "results/mini", "--results"):
        assert segbench() == 2
    assert "results/mini: another segbench works there" in capsys.readouterr().err
    assert not (here / "work/train").exists() and not (here / "work" / LOCK).exists()


# --- a disk that loses, or takes nothing more ------------------------------------------------------------------------


def cut_to(part: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * part))


def flipped_at(part: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(len(content) * part)] ^= 1
        path.write_bytes(content)

    return damage


DAMAGE = [flipped_at(0.5), *map(cut_to, (0, 0.001, 0.5, 0.999)), *map(flipped_at, (0, 0.001, 0.02, 0.99))]


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, len(DAMAGE)))]
)
def test_a_damaged_state_gives_way_to_the_one_before(
    number: int, suite: Path, here: Path, segbench: Command, expected: Outcome, capsys: Any
) -> None:
    interrupted(here, suite, 9)
    (newest,) = here.rglob(NEWEST)
    DAMAGE[number](newest)
    assert segbench() == 0
    assert f"{NEWEST}: not a readable checkpoint; going on from the one before it, of iteration 8" in one_line(capsys)
    assert outcome(here) == expected


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_when_both_states_are_damaged_the_record_says_so_and_the_others_go_on(
    suite: Path, here: Path, segbench: Command, expected: Outcome, capsys: Any
) -> None:
    interrupted(here, suite, 9)
    damaged = [*here.rglob(NEWEST), *here.rglob(PREVIOUS)]
    for path in damaged:
        cut_to(0.9)(path)
    assert len(damaged) == 2 and segbench() == 1
    assert f"neither {NEWEST} nor {PREVIOUS} is a readable checkpoint; delete both" in one_line(capsys)
    assert {label: record.status for label, record in records(here).items()} == {"large": "failed", "small": "done"}
    for path in damaged:
        path.unlink()
    assert segbench() == 0
    assert outcome(here) == expected


@pytest.mark.slow
def test_a_kept_checkpoint_that_is_damaged_is_named_and_deleting_it_helps(
    here: Path, segbench: Command, expected: Outcome
) -> None:
    assert segbench() == 0
    shutil.rmtree(here / "results")
    shutil.rmtree(here / "work/evaluate")
    kept = max(here.rglob("6.safetensors"), key=lambda path: path.stat().st_size)
    flipped_at(0.7)(kept)
    assert segbench() == 1
    failed = records(here)["large"]
    assert failed.status == "failed" and f"{kept}: not a readable checkpoint" in str(failed.reason)
    assert "delete it to train again" in str(failed.reason) and records(here)["small"].status == "done"
    kept.unlink()
    assert segbench() == 0
    assert outcome(here) == expected


@pytest.fixture
def room() -> Iterator[Callable[[int | None], None]]:
    """Lets no file of this process grow beyond so many bytes; None takes the limit away. Real: the kernel refuses."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    limit(None)


@pytest.mark.parametrize("fills_at", [9, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 4, 12))])
def test_a_disk_that_fills_up_in_training(
    fills_at: int,
    suite: Path,
    here: Path,
    segbench: Command,
    expected: Outcome,
    room: Callable[[int | None], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = checkpoint.save_state

    def save(folder: Path, model: Any, optimizer: Any, progress: Any, *rest: Any) -> None:
        if progress.iteration == fills_at:
            room(BETWEEN)
        real(folder, model, optimizer, progress, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "SAVE_EVERY_S", 0.0)
        patch.setattr(checkpoint, "save_state", save)
        assert segbench() == 1
    room(None)
    failed = records(here)["large"]
    assert failed.status == "failed" and records(here)["small"].status == "done"
    # The state that did not fit, or the weights that were to be kept before it.
    assert "cannot be written" in str(failed.reason) and "File too large" in str(failed.reason)
    assert "make room" in str(failed.reason) and not [p for p in leftovers(here) if not p.name.startswith("resume")]
    assert [checkpoint.peek(path).iteration for path in here.rglob(NEWEST)] == [fills_at - 1][: fills_at - 1]
    assert segbench() == 0
    assert outcome(here) == expected


def test_ctrl_c_while_the_disk_is_full_goes_back_to_the_last_state(
    suite: Path, here: Path, segbench: Command, expected: Outcome, room: Callable[[int | None], None]
) -> None:
    events = run_in(here, suite)
    next(event for event in events if isinstance(event, Step) and event.iteration == 9)
    room(BETWEEN)
    events.close()  # type: ignore[attr-defined]
    room(None)
    assert [checkpoint.peek(path).iteration for path in here.rglob(NEWEST)] == [8] and segbench() == 0
    assert outcome(here) == expected


@pytest.mark.slow
def test_a_disk_that_takes_no_record_loses_nothing_that_is_finished(
    suite: Path, here: Path, segbench: Command, expected: Outcome, room: Callable[[int | None], None], capsys: Any
) -> None:
    events = run_in(here, suite)
    next(event for event in events if isinstance(event, Finished))
    finished = {p: p.read_bytes() for p in files(here / "results", ".npz", ".json")}
    room(100)  # not even a record that says so
    with pytest.raises(OSError, match="File too large"):
        list(events)
    room(None)
    assert {p: p.read_bytes() for p in files(here / "results", ".npz", ".json")} == finished
    assert not leftovers(here)
    assert segbench() == 0 and capsys.readouterr().err.count("has a record already") == 1
    assert outcome(here) == expected


@pytest.mark.slow
def test_counts_that_the_results_folder_does_not_take_are_made_good_later(
    suite: Path, here: Path, segbench: Command, expected: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if "large" in str(target):
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        assert segbench() == 1
    failed = records(here)["large"]
    assert "No space left on device" in str(failed.reason) and records(here)["small"].status == "done"
    before = {path: path.stat().st_mtime_ns for path in files(here / "work", ".npz", ".safetensors")}
    assert segbench() == 0
    assert {path: path.stat().st_mtime_ns for path in files(here / "work", ".npz", ".safetensors")} == before
    assert outcome(here) == expected


# --- a run that fails by itself --------------------------------------------------------------------------------------


def not_finite(logits: torch.Tensor) -> torch.Tensor:
    return logits * float("inf")


def no_memory_there(_: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


def no_memory_here(_: torch.Tensor) -> torch.Tensor:
    raise MemoryError


FAILURES: list[Any] = [
    (no_memory_there, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
    pytest.param(no_memory_here, "MemoryError", marks=pytest.mark.slow),
    pytest.param(not_finite, "TrainingError: the loss is nan at iteration 10; lower", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("failure", "words"), FAILURES)
def test_a_training_that_fails_is_recorded_and_goes_on_when_the_reason_has_gone(
    failure: Callable[[torch.Tensor], torch.Tensor],
    words: str,
    here: Path,
    segbench: Command,
    expected: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    network = type(build("fcn-basic", 11, {"width": 0.125}, (24, 32)))
    forward, passes = network.forward, 0

    def failing(self: Any, images: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += self.training and not images.is_meta
        logits = forward(self, images)
        return failure(logits) if self.training and not images.is_meta and passes == 10 else logits

    with monkeypatch.context() as patch:
        patch.setattr(network, "forward", failing)
        assert segbench() == 1
    assert f"failed: {words}" in one_line(capsys)
    failed = records(here)["large"]
    assert failed.status == "failed" and failed.reason is not None and failed.reason.startswith(words.rstrip("."))
    assert records(here)["small"].status == "done"
    assert [checkpoint.peek(path).iteration for path in here.rglob(NEWEST)] == [8]
    assert segbench() == 0
    assert outcome(here) == expected


CAMVID = SUITE.replace("{name: synthetic, size: 24x32, options: {train: 8, val: 2, test: 3}}", "{name: camvid}")


def camvid(root: Path) -> Path:
    """A CamVid layout of drawn frames."""
    rng = np.random.RandomState(0)
    for split, images in (("train", 8), ("val", 2), ("test", 3)):
        lines = []
        for name in (f"{split}{index}.png" for index in range(images)):
            for folder, pixels in (
                (split, rng.randint(0, 256, (24, 32, 3))),
                (f"{split}annot", rng.randint(0, 12, (24, 32))),
            ):
                (root / "CamVid" / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(root / "CamVid" / folder / name)
            lines.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
        (root / "CamVid" / f"{split}.txt").write_text("".join(lines))
    return root


IMAGES = [
    "test/test1.png",
    *(pytest.param(p, marks=pytest.mark.slow) for p in ("train/train3.png", "testannot/test2.png")),
]


@pytest.mark.parametrize("damaged", IMAGES)
def test_an_image_that_becomes_unreadable_after_the_checks_is_named(
    damaged: str, tmp_path: Path, suite: Path, here: Path, segbench: Command
) -> None:
    suite.write_text(CAMVID)
    data = camvid(tmp_path / "data")
    prepared = prepare(load(suite)[1], torch.device("cpu"), data)
    list(execute(prepared, Work(tmp_path / "whole/work"), Results(tmp_path / "whole/results")))
    image = data / "CamVid" / damaged
    content = image.read_bytes()
    prepared = prepare(load(suite)[1], torch.device("cpu"), data)
    image.write_bytes(content[:60])
    events = list(execute(prepared, Work(here / "work"), Results(here / "results")))
    assert len([event for event in events if isinstance(event, Finished)]) == 2
    for record in records(here).values():
        assert record.status == "failed" and damaged in str(record.reason), record.reason
        assert (record.training is not None) == damaged.startswith("test")
    image.write_bytes(content)
    trained = {path: path.stat().st_mtime_ns for path in files(here / "work/train", ".safetensors")}
    assert len(trained) == (6 if damaged.startswith("test") else 0)
    assert segbench("--data", data) == 0
    assert trained.items() <= {p: p.stat().st_mtime_ns for p in files(here / "work/train", ".safetensors")}.items()
    assert outcome(here) == outcome(tmp_path / "whole")
