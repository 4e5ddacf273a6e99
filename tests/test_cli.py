"""The command line as a person uses it: in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from PIL import Image

from segbench.cli import main
from segbench.errors import ModelError, SettingError
from segbench.models import MODELS
from segbench.profiling.usage import Samples, Usage
from segbench.store.files import record_folders
from segbench.store.record import read_counts, read_record

QUICKSTART = REPOSITORY / "suites/quickstart.yaml"


def segbench(*arguments: object, cwd: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "segbench.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **settings)


def test_version_and_help_for_every_command(tmp_path: Path) -> None:
    assert segbench("--version", cwd=tmp_path).stdout.startswith("segbench 0.")
    for command in ("run", "report", "profile", "models", "datasets", "clean"):
        done = segbench(command, "--help", cwd=tmp_path)
        assert done.returncode == 0
        assert "Usage" in done.stdout


def test_usage_errors_are_two(tmp_path: Path) -> None:
    for arguments in (
        ["run"],
        ["run", "x.yaml", "--nonsense"],
        ["run", "nowhere.yaml"],
        ["profile", "--model", "segnett"],
    ):
        done = segbench(*arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr


WRONG_SUITES = {
    "models: 3": "models: write a list",
    "models: [[segnet]]": "models[0]: write settings",
    "models: [segnet]\nrecipe: []": "recipe: write settings",
    "models: [segnet]\ndata: camvid": "data: write settings",
    "models: []": "models",
    "models: [segnet]\nseeds: []": "seeds",
    "models: [segnet]\nseeds: [true]": "seeds[0]",
    "models: [segnet]\nseeds: 1099511627776": "seeds[0]",
    "models: [segnet]\nclasses: 300": "classes",
    "models: [segnet]\nscore: {at: [first]}\ndata: {name: synthetic}": 'score.at[0]: "first" is not a checkpoint',
    "models: [segnet]\nscore: {}\ndata: {name: synthetic}": "nothing to score",
    "models: [segnet]\nscore: {}": "no data",
    "models: [segnet]\nprofile: {res: [a, b]}": "profile.res",
    "models: [segnet]\nprofile: {res: 0x0}": "profile.res: a size is",
    "models: ['smp:']\nprofile: {}": "names a family",
    "models: &m [*m]": "not valid YAML",
    "? [a]\n: 3": "a setting's name is a word",
    "models: [segnet]\nextra: 2024-13-45": "not valid YAML",
    "models: [segnet]\nextra: \x01": "not valid YAML",
    "models: [{name: segnet, options: {wdith: 0.5}}]\nprofile: {}": 'did you mean "width"',
    "models: [{name: segnet, weights: x.yaml, train: false}]\nscore: {}\ndata: {name: synthetic}": "models[0]",
    "models: [segnet]\ndata: {name: synthetic}\n"
    "recipe: {optimizer: {name: sgd, lr: .inf}, batch_size: 1, iterations: 1}": "recipe.optimizer.lr",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG_SUITES, ids=range(len(WRONG_SUITES)))
def test_a_wrong_suite_is_one_line_and_nothing_written(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text("name: x\n" * text.startswith("models") + text + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["segbench", "run", "x.yaml"])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert len(captured.err.splitlines()) == 1 and WRONG_SUITES[text] in captured.err, captured.err
    assert [p.name for p in tmp_path.iterdir()] == ["x.yaml"]


def test_folders_that_cannot_be_written_are_named_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "s.yaml").write_text(LONG)
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (["s.yaml", "--results", "file"], "--results file"),
        (["s.yaml", "--work", "file"], "--work file"),
        (["."], ""),
    ):
        monkeypatch.setattr(sys, "argv", ["segbench", "run", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr().err
        assert end.value.code == 2 and words in said and "Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "s.yaml"]


def test_models_lists_names_and_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers themselves: test_costs.py."""
    listed = json.loads(segbench("models", "--json", cwd=tmp_path).stdout)
    assert {"segnet", "segnet-basic", "fcn8s", "deeplab-largefov", "deconvnet", "unet", "smp:", "torchvision:"} <= {
        row["name"] for row in listed
    }
    monkeypatch.setattr(MODELS, "entries", {"segnet-basic": MODELS.entry("segnet-basic")})
    arguments = ["--costs", "--json", "--res", "45x60", "--classes", "2"]
    monkeypatch.setattr(sys, "argv", ["segbench", "models", *arguments])
    with pytest.raises(SystemExit):
        main()
    costs = {(row["name"], str(row["options"])): row for row in json.loads(capsys.readouterr().out)}
    assert costs["segnet-basic", "{}"]["parameters"] == 1_416_064 - 9 * 64
    assert costs["segnet-basic", "{'bias': True}"]["res"] == "45x60"


@pytest.mark.slow
def test_a_model_is_exported(tmp_path: Path) -> None:
    arguments = ["--res", "24x32", "--classes", "3", "--option", "width=0.125"]
    for name in ("net.onnx", "net.pt2"):
        done = segbench("export", "segnet-basic", name, *arguments, cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.startswith(f"{name}: segnet-basic, 3 classes"), done.stderr
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segnet-basi", "x.onnx"], 'did you mean "segnet-basic"'),
        (["segnet-basic", "x.txt"], "x.txt: ends in none of .onnx, .pt2"),
        (["segnet-basic", "no/x.onnx"], "there is no folder no"),
        (["segnet-basic", "x.onnx", "--res", "9"], '--res: "9" is not a size'),
        (["segnet-basic", "x.onnx", "--weights", "no.pt"], "there is no such file"),
        (["mine:Net", "x.onnx"], "--allow-code"),
        (["mine:Net", "x.onnx", "--allow-code"], "there is no module mine"),
    ],
)
def test_wrong_exports_are_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = segbench("export", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_profile_prints_a_row_and_writes_every_sample(tmp_path: Path) -> None:
    done = segbench(
        "profile", "--model", "fcn-basic", "--model", "segnet-basic", "--option", "width=0.125",
        "--res", "45x60", "--protocol", "caffe-time", "--repetitions", 3, "--json", "out/row.json",
        "--csv", "out/rows.csv", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("Fwd ms", "Bwd ms", "Train MiB", "Infer MiB", "Size MB", "fcn-basic", "segnet-basic", "caffe-time"):
        assert words in done.stdout, done.stdout
    rows = json.loads((tmp_path / "out/row.json").read_text())
    assert [r["model"] for r in rows] == ["fcn-basic", "segnet-basic"]
    assert all(len(r["forward_ms"]["samples"]) == 3 and r["res"] == "45x60" for r in rows)
    assert len((tmp_path / "out/rows.csv").read_text().splitlines()) == 3
    for wrong in (
        ["--batch", "0"],
        ["--precision", "fp31"],
        ["--scope", "model+magic"],
        ["--res", "45-60"],
        ["--device", "cuda:77"],
        ["--option", "wdith=1"],
        ["--option", "width"],
        ["--option", "width.x=1"],
    ):
        failed = segbench("profile", "--model", "fcn-basic", *wrong, cwd=tmp_path)
        assert failed.returncode == 2, failed
        assert failed.stderr.startswith("segbench: ") and "Traceback" not in failed.stderr
        assert failed.stdout == "" and failed.stderr.splitlines()[-1].startswith("segbench: ")


USAGE = Usage(
    device="card",
    res=(24, 32),
    protocol="steady",
    time_batch=1,
    train_memory_batch=4,
    infer_memory_batch=1,
    threads=1,
    forward_ms=Samples((2.0,)),
    train_forward_ms=None,
    backward_ms=None,
    memory_mib={},
    parameters=1,
    trainable_parameters=1,
    parameter_mb=1.0,
    macs=None,
)


def profile(monkeypatch: pytest.MonkeyPatch, outcomes: Sequence[Usage | BaseException], *arguments: object) -> int:
    """The exit code of `segbench profile` on two models, of which each measurement ends as `outcomes` say."""
    left = iter(outcomes)

    def measure(*_: object) -> Usage:
        outcome = next(left)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr("segbench.profiling.profile.profile", measure)
    models = ["--model", "fcn-basic", "--model", "segnet-basic", "--option", "width=0.125", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["segbench", "profile", *models, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_ctrl_c_shows_the_rows_that_are_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows, numbers = tmp_path / "rows.json", tmp_path / "rows.csv"
    assert profile(monkeypatch, [USAGE, KeyboardInterrupt()], "--json", rows, "--csv", numbers) == 130
    shown = capsys.readouterr()
    assert "│ fcn-basic" in shown.out and "segnet-basic" not in shown.out
    assert "segbench: interrupted; 1 of 2 rows are finished" in shown.err and "Traceback" not in shown.err
    assert [row["model"] for row in json.loads(rows.read_text())] == ["fcn-basic"]
    assert len(numbers.read_text().splitlines()) == 2
    assert profile(monkeypatch, [KeyboardInterrupt()]) == 130
    shown = capsys.readouterr()
    assert shown.out == "" and "0 of 2 rows are finished" in shown.err


STRANGER = SettingError("isolation: other processes are on GPU-1: process 7; end them, or write isolation: warn")
FOUND = "--isolation: other processes are on GPU-1: process 7; end them, or write --isolation warn"


def test_a_stranger_at_the_start_ends_a_profile_and_a_later_one_fails_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert profile(monkeypatch, [STRANGER, USAGE], "--isolation", "error", "--json", tmp_path / "a.json") == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.splitlines()[-1] == f"segbench: {FOUND}"
    assert not (tmp_path / "a.json").exists()
    assert profile(monkeypatch, [USAGE, STRANGER], "--isolation", "error", "--json", tmp_path / "b.json") == 1
    assert "│ fcn-basic" in capsys.readouterr().out
    assert [row["failure"] for row in json.loads((tmp_path / "b.json").read_text())] == [None, FOUND]


def test_a_model_that_fails_keeps_its_words_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failed = ModelError("profile: RuntimeError: bad memory: 3")
    assert profile(monkeypatch, [failed, USAGE], "--json", tmp_path / "rows.json") == 1
    assert "segnet-basic" in capsys.readouterr().out
    assert [row["failure"] for row in json.loads((tmp_path / "rows.json").read_text())] == [str(failed), None]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "fp31"], '--precision: "fp31" is not one of fp32, tf32, bf16, fp16; did you mean "fp32"?'),
        (["--isolation", "eror"], '--isolation: "eror" is not one of warn, error; did you mean "error"?'),
        (["--batch", "1,0"], '--batch: input should be greater than 0; found "0"'),
        (
            ["--scope", "model+resize"],
            "the scope +resize needs --frame, the size that frames come in, as in --frame 720x960",
        ),
        (
            ["--repetitions", "3"],
            "--repetitions is a setting of the protocol caffe-time; found steady; leave one of them out",
        ),
        (
            ["--min-seconds", "50"],
            "--max-seconds is 60, for warm-up and measuring; allow four times --min-seconds (50)",
        ),
        (["--res", "45-60"], '--res: "45-60" is not a size; write HEIGHTxWIDTH, as in 360x480'),
    ],
)
def test_what_is_wrong_with_a_profile_is_told_in_the_words_of_the_command_line(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(monkeypatch, [], *arguments) == 2
    assert capsys.readouterr().err == f"segbench: {words}\n"


LONG = """\
name: s
data: {name: synthetic, size: 24x32, options: {train: 8, val: 2, test: 2}}
models: [{name: fcn-basic, options: {width: 0.125}}]
recipe: {optimizer: {name: sgd, lr: 0.01}, batch_size: 4, iterations: 120, validate_every: 10}
score: {at: [15, best]}
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_by_a_signal_it_goes_on_and_ends_the_same(number: signal.Signals, tmp_path: Path) -> None:
    suite = tmp_path / "s.yaml"
    suite.write_text(LONG)
    command = [sys.executable, "-m", "segbench.cli", "run", str(suite)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "iteration 20:" in line:
            break
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    if number is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "the same command goes on from here" in rest and "Traceback" not in rest
    assert not list(tmp_path.glob("results/**/record.json"))
    done = segbench("run", suite, cwd=tmp_path)
    assert done.returncode == 0
    validated = [line.split("iteration ")[1].split(":")[0] for line in done.stderr.splitlines() if "validation" in line]
    assert int(validated[0]) > 20
    whole = segbench("run", suite, "--results", "r2", "--work", "w2", cwd=tmp_path)
    assert whole.returncode == 0
    parts, expected = (read_record(record_folders(tmp_path / folder)[0]) for folder in ("results", "r2"))
    assert parts.training is not None and expected.training is not None
    for key in ("losses", "validations", "selected", "digest"):
        assert parts.training[key] == expected.training[key], key


@pytest.mark.slow
def test_the_quickstart_runs_twice_with_equal_scores_and_clears_the_bar(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    tables, scores = [], []
    for name in ("first", "second"):
        began = time.perf_counter()
        done = segbench("run", QUICKSTART, "--results", name, "--work", f"w{name}", cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        assert time.perf_counter() - began < 600  # the promise is three minutes on an idle machine
        tables.append(done.stdout)
        found = {}
        for folder in record_folders(tmp_path / name):
            record = read_record(folder)
            (evaluation,) = record.evaluations
            counts = read_counts(folder, evaluation)
            found[record.id] = (counts.confusion.tolist(), [b.tolist() for b in counts.boundary.values()])
            total = counts.confusion.sum(0)
            truth = total[:-1].sum(1)
            frequent, accuracy = truth.max() / truth.sum(), total.diagonal()[:-1].sum() / truth.sum()
            assert accuracy > frequent + 0.15, f"{record.id}: {accuracy:.3f} against {frequent:.3f} for one class"
        scores.append(found)
    assert len(scores[0]) == 3
    assert scores[0] == scores[1]
    assert "SegNet-Basic" in tables[0] and "n/a" not in tables[0]


@pytest.mark.slow
def test_the_sunrgbd_suite_runs_on_a_miniature(tmp_path: Path) -> None:
    make_sunrgbd(tmp_path / "data")
    suite = yaml.safe_load((REPOSITORY / "suites/sunrgbd.yaml").read_text())
    sets = ["data.size=48x64", "data.options.validation_images=2", "recipe.iterations=2", "recipe.validate_every=1"]
    sets += ["score.at=[1, 2, best]", "profile=null"]
    sets += [f"models[{i}].options.width=0.0625" for i in range(len(suite["models"]))]
    arguments = [word for text in sets for word in ("--set", text)]
    done = segbench("run", REPOSITORY / "suites/sunrgbd.yaml", "--data", "data", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [read_record(f) for f in record_folders(tmp_path / "results/sunrgbd")]
    assert len(records) == len(suite["models"])
    for record in records:
        assert len(record.classes) == 37 and [e.checkpoint for e in record.evaluations] == ["1", "2", "best"]
    weights = {r.run["label"]: r.training["class_weights"] for r in records}  # type: ignore[index]
    assert weights["SegNet"] is None and len(weights["SegNet (median frequency)"]) == 37


def make_sunrgbd(root: Path) -> None:
    """The extracted layout: labels 1..5050 are the test split's, 5051.. the training split's."""
    import numpy as np

    rng = np.random.RandomState(0)
    for folder in ("SUNRGBD-train_images", "SUNRGBD-test_images", "sunrgbd_train_test_labels"):
        (root / folder).mkdir(parents=True)
    for split, numbers, first in (("train", range(1, 7), 5050), ("test", range(1, 4), 0)):
        for number in numbers:
            frame = Image.fromarray(rng.randint(0, 256, (60, 80, 3)).astype(np.uint8))
            frame.save(root / f"SUNRGBD-{split}_images/img-{number:06d}.jpg")
            label = Image.fromarray(rng.randint(0, 38, (60, 80)).astype(np.uint8))
            label.save(root / f"sunrgbd_train_test_labels/img-{number + first:06d}.png")
