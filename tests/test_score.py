"""`segbench score` as a person uses it: files in; tables, JSON and CSV out; all that is wrong said at once."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from rich.console import Console

from segbench.cli import main, tracking
from segbench.metrics import boundary_f1, boundary_iou, region, surface
from segbench.metrics.boundary import boundary_counts
from segbench.metrics.boundary_iou import band_counts
from segbench.metrics.confusion import confusion
from segbench.scoring.counts import Counts
from segbench.scoring.scores import of_images, score_names, scores
from segbench.scoring.spec import BoundarySpec, ScoreSpec

SIZE = (30, 40)
CLASSES = "classes: [sky, road, car]\nvoid: [255]\npalette: [[0, 0, 255], [9, 9, 9], [255, 0, 0]]\n"


def scene(rng: np.random.Generator) -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    labels[rng.integers(10, 20) :] = 1
    top, left = rng.integers(0, 20, 2)
    labels[top : top + 8, left : left + 9] = 2
    return labels


def pairs(images: int, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Truth with void 255 and predictions a step aside."""
    rng = np.random.default_rng(seed)
    found = {}
    for index in range(images):
        truth = scene(rng)
        guess = np.roll(truth, rng.integers(-2, 3, 2), (0, 1))
        truth[:2, :5] = 255
        found[f"drive{index % 2}_{index:02d}"] = (truth, guess)
    return found


def write(folder: Path, maps: dict[str, np.ndarray], times: int = 1) -> Path:
    """The maps as files; with `times`, as many links to each."""
    folder.mkdir()
    for name, labels in maps.items():
        Image.fromarray(labels).save(folder / f"{name}.png")
        for number in range(1, times):
            os.link(folder / f"{name}.png", folder / f"{name}-{number}.png")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """truth/, guesses/ and classes.yaml in the folder where the command runs."""
    given = pairs(6)
    write(tmp_path / "truth", {name: truth for name, (truth, _) in given.items()})
    write(tmp_path / "guesses", {name: guess for name, (_, guess) in given.items()})
    (tmp_path / "classes.yaml").write_text(CLASSES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, folder: str = "guesses") -> int | str | None:
    """The exit code of `segbench score`."""
    fixed = ["score", "--predictions", folder, "--truth", "truth", "--classes", "classes.yaml"]
    monkeypatch.setattr(sys, "argv", ["segbench", *fixed, *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def every_option() -> list[str]:
    rules = ["--rule", "bsds", "--rule", "distance", "--boundary-iou", "2px"]
    return [
        *rules,
        "--tolerance",
        "2px",
        "--tolerance",
        "1px",
        "--resamples",
        "200",
        "--json",
        "out/scores.json",
        "--csv",
        "images.csv",
    ]


def test_scores_are_those_of_the_metrics(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *every_option()) in (0, None)
    found = json.loads((here / "out/scores.json").read_text())
    given = {name: (np.where(t == 255, 3, t).astype(np.uint8), p) for name, (t, p) in pairs(6).items()}
    total = region.areas(sum(confusion(t, p, 3) for t, p in given.values()))
    assert found["images"] == 6
    assert found["global_accuracy"] == pytest.approx(float(region.global_accuracy(total)), abs=1e-15)
    assert found["class_accuracy"] == pytest.approx(float(region.class_accuracy(total)), abs=1e-15)
    assert found["mean_iou"] == pytest.approx(float(region.mean_iou(total)), abs=1e-15)
    for rule in ("bsds", "distance"):
        counts = np.stack([boundary_counts(t, p, 3, rule, 4) for t, p in given.values()])
        assert found["boundary_f1"][rule] == pytest.approx(boundary_f1.boundary_f1(counts), abs=1e-15)
        assert found["boundary"][f"boundary_f1 {rule}@2px"] == found["boundary_f1"][rule]
        assert found["boundary"][f"boundary_f1 {rule}@1px"] < found["boundary_f1"][rule]
    assert found["boundary"]["surface_distance distance@2px"] == pytest.approx(surface.surface_distance(counts))
    bands = np.stack([band_counts(t, p, 3, 2) for t, p in given.values()])
    assert found["boundary"]["boundary_iou 2px"] == pytest.approx(boundary_iou.boundary_iou(bands))
    assert found["per_class"]["car"]["iou"] == pytest.approx(float(region.per_class_iou(total)[2]))
    assert np.sum(found["confusion"]) == 6 * SIZE[0] * SIZE[1]
    assert found["convention"]["classes"] == ["sky", "road", "car"]
    for name in ("global_accuracy", "mean_iou"):
        low, high = found["intervals"][name]
        assert low < found[name] < high
    assert "mIoU" in capsys.readouterr().out


def test_each_image_is_a_row_of_the_csv_and_the_worst_come_first(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *every_option(), "--worst", "2", "--by", "boundary_f1 bsds") in (0, None)
    with (here / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == sorted(pairs(6))
    for row in rows:
        truth, guess = pairs(6)[row["image"]]
        areas = region.areas(confusion(np.where(truth == 255, 3, truth).astype(np.uint8), guess, 3))
        assert float(row["mean_iou"]) == pytest.approx(float(region.mean_iou(areas)))
    found = json.loads((here / "out/scores.json").read_text())
    assert found["per_image"] == "images.csv"
    worst = sorted(rows, key=lambda row: float(row["boundary_f1 bsds@2px"]))
    printed = capsys.readouterr().out
    assert printed.index("worst images") < printed.index(worst[0]["image"]) < printed.index(worst[1]["image"])
    assert worst[2]["image"] not in printed


def damage(guesses: Path) -> list[str]:
    """Something of every kind, and the names that must be said."""
    (guesses / "drive0_00.png").unlink()
    (guesses / "extra.png").write_bytes((guesses / "drive1_01.png").read_bytes())
    (guesses / "drive1_01.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(guesses / "drive0_02.png")
    Image.fromarray(np.full(SIZE, 77, np.uint8)).save(guesses / "drive1_03.png")
    return ["drive0_00", "extra.png", "drive1_01.png", "drive0_02.png", "drive1_03.png"]


def test_all_that_is_wrong_is_said_and_nothing_scored(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = damage(here / "guesses")
    assert run(monkeypatch, *every_option()) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == len(named) + 1
    for name in named:
        assert sum(name in line for line in lines) == 1
    assert "5 findings" in lines[-1]
    assert "--allow-missing" in lines[-1]
    assert printed.out == ""
    assert not (here / "out").exists()


def test_with_allow_missing_the_others_are_scored_and_wrong_labels_are_errors(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(here / "guesses")
    assert run(monkeypatch, *every_option(), "--allow-missing") in (0, None)
    found = json.loads((here / "out/scores.json").read_text())
    assert found["images"] == 3
    assert len(found["findings"]) == 5
    given = pairs(6)
    kept = [given[name] for name in ("drive1_03", "drive0_04", "drive1_05")]
    kept[0] = (kept[0][0], np.full(SIZE, 3, np.uint8))
    total = region.areas(sum(confusion(np.where(t == 255, 3, t).astype(np.uint8), p, 3) for t, p in kept))
    assert found["global_accuracy"] == pytest.approx(float(region.global_accuracy(total)))
    assert "3 more left out" in capsys.readouterr().out


def test_several_folders_are_compared_on_the_images_that_all_have(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = pairs(6)
    write(here / "perfect", {name: np.where(t == 255, 0, t).astype(np.uint8) for name, (t, _) in given.items()})
    (here / "guesses/drive0_00.png").unlink()
    arguments = [*every_option(), "--predictions", "perfect", "--allow-missing"]
    assert run(monkeypatch, *arguments) in (0, None)
    found = json.loads((here / "out/scores.json").read_text())
    assert [each["predictions"] for each in found["predictions"]] == ["guesses", "perfect"]
    assert [each["images"] for each in found["predictions"]] == [5, 5]
    assert found["comparison"]["order"] == ["perfect", "guesses"]
    pair = found["comparison"]["pairs"][0]
    assert pair["better"] == "perfect"
    assert pair["p"] == pytest.approx(2 / 2**5)  # the fewest that five images can show
    assert "perfect" in capsys.readouterr().out
    with (here / "images.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 10


def test_other_libraries_numbers_are_printed_on_request(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *every_option(), "--conventions") in (0, None)
    printed = capsys.readouterr().out
    for library in ("mmsegmentation", "torchmetrics", "segmentation-models-pytorch", "nnU-Net", "MATLAB", "detectron2"):
        assert library in printed
    found = json.loads((here / "out/scores.json").read_text())
    by_library = {(row["library"], row["name"]): row["value"] for row in found["conventions"]}
    assert by_library["cityscapesScripts", "averageScoreClasses"] == pytest.approx(found["mean_iou"], abs=1e-6)


def test_sequences_are_resampled_where_they_are_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "classes.yaml").write_text(CLASSES + "sequences: (drive\\d)\n")
    assert run(monkeypatch, *every_option()) in (0, None)
    given = json.loads((here / "out/scores.json").read_text())["intervals"]
    assert (given["resampled"], given["units"]) == ("sequences", 2)
    assert "2 sequences are too few" in given["words"][0]
    assert run(monkeypatch, *every_option(), "--units", "images") in (0, None)
    asked = json.loads((here / "out/scores.json").read_text())["intervals"]
    assert (asked["resampled"], asked["units"]) == ("images", 6)
    assert "taken as independent" in asked["words"][0]


WRONG = {
    "--rule bds": "--rule",
    "--tolerance 3": "--tolerance",
    "--void nothing": "--void",
    "--boundary-iou wide": "--boundary-iou",
    "--no-boundary --rule bsds": "--no-boundary",
    "--by iou": "--by",
    "--no-boundary --by boundary_f1": "--by",
    "--level 1": "level",
    "--resamples 3": "resamples",
    "--dataset camvid": "--dataset, --classes",
    "--translate nowhere.yaml": "nowhere.yaml",
    "--units sequences": "sequences",
    "--json truth": "--json truth",
    "--csv truth": "--csv truth",
    "--predictions nowhere": "nowhere",
    "--predictions guesses": "given twice",
    "--json classes.yaml/x.json": "--json",
    "--json x --csv x": "--json, --csv",
    "--split test": "--split",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_input_is_one_line_and_nothing_written(
    arguments: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert run(monkeypatch, *arguments.split()) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert WRONG[arguments] in printed.err
    assert printed.out == ""
    assert sorted(here.rglob("*")) == before


def test_the_names_of_scores_are_known_before_anything_is_counted() -> None:
    boundary = BoundarySpec(rules=("distance", "bsds"), tolerances=("2px", "1%"), void=("script", "band"), iou=("2%",))
    spec = ScoreSpec(boundary=boundary)
    counts = counts_of(spec)
    assert list(scores([counts]).overall) == score_names(spec)
    assert list(of_images(counts)) == score_names(spec)
    assert score_names(ScoreSpec(boundary=None)) == list(scores([counts_of(ScoreSpec(boundary=None))]).overall)


def counts_of(spec: ScoreSpec) -> Counts:
    from segbench.scoring.count import count
    from segbench.scoring.counts import gather

    given = {name: (np.where(t == 255, 3, t).astype(np.uint8), p) for name, (t, p) in pairs(4).items()}
    return gather((name, count(t, p, 3, spec)) for name, (t, p) in given.items())


def test_seeds_are_averaged() -> None:
    spec = ScoreSpec()
    one, other = counts_of(spec), counts_of(spec)
    other.confusion[:, 0, 0] += 100
    apart = [float(scores([each]).overall["mean_iou"].value) for each in (one, other)]
    assert apart[0] != apart[1]
    assert float(scores([one, other]).overall["mean_iou"].value) == pytest.approx(np.mean(apart))


def test_truth_against_itself_on_real_images(
    camvid_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every score of a perfect prediction is 1, but for the interval's word on two sequences."""
    root = next(p for p in (camvid_root, camvid_root / "CamVid") if (p / "testannot").is_dir())
    output = tmp_path / "scores.json"
    arguments = ["--predictions", str(root / "testannot"), "--truth", str(camvid_root), "--dataset", "camvid"]
    monkeypatch.setattr(sys, "argv", ["segbench", "score", *arguments, "--rule", "distance", "--json", str(output)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    found = json.loads(output.read_text())
    assert found["images"] == 233
    for score in ("global_accuracy", "class_accuracy", "mean_iou", "frequency_weighted_iou"):
        assert found[score] == 1
    assert found["boundary_f1"] == {"distance": 1}
    assert "2 sequences are too few" in found["intervals"]["words"][0]


def test_an_interrupted_command_leaves_nothing_half_written(tmp_path: Path) -> None:
    given = pairs(2)
    for folder, place in (("truth", 0), ("guesses", 1)):
        write(tmp_path / folder, {name: maps[place] for name, maps in given.items()}, times=4000)
    (tmp_path / "classes.yaml").write_text(CLASSES)
    command = [sys.executable, "-m", "segbench.cli", "score", "--predictions", "guesses", "--truth", "truth"]
    command += ["--classes", "classes.yaml", "--json", "scores.json", "--resamples", "100000000"]
    environment: dict[str, Any] = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
    begun = time.monotonic()
    while not children(process.pid) and process.poll() is None and time.monotonic() < begun + 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert not list(tmp_path.glob("scores*"))


def test_where_numba_does_not_load_one_line_says_so_and_the_scores_are_the_same(here: Path) -> None:
    """As numba does not where a folder of modules holds one named as one that it imports."""
    (here / "modules").mkdir()
    (here / "modules" / "numba.py").write_text("raise AttributeError('no attribute types')\n")
    found = {}
    for path in (str(here / "modules"), ""):
        command = [sys.executable, "-m", "segbench.cli", "score", "--predictions", "guesses", "--truth", "truth"]
        command += ["--classes", "classes.yaml", "--rule", "bsds", "--rule", "distance", "--boundary-iou", "2px"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, str(REPOSITORY)]))}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=here)
        found[path] = done.stdout
        said = [line for line in done.stderr.splitlines() if "NumPy" in line]
        assert len(said) == (1 if path else 0), done.stderr
        if path:
            assert said[0].startswith("segbench: counting in NumPy, many times slower: numba does not load (Attribute")
    assert len(set(found.values())) == 1 and "BF" in found[""]


def test_what_takes_longer_than_expected_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.05)
    console = Console(file=io.StringIO())
    with tracking.said_if_slow("compiling", console):
        pass
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    with tracking.said_if_slow("compiling", console):
        time.sleep(0.5)
    assert console.file.getvalue() == "segbench: compiling\n"  # type: ignore[attr-defined]


def test_a_killed_command_takes_its_processes_along(tmp_path: Path) -> None:
    given = pairs(2)
    for folder, place in (("truth", 0), ("guesses", 1)):
        write(tmp_path / folder, {name: maps[place] for name, maps in given.items()}, times=6000)
    (tmp_path / "classes.yaml").write_text(CLASSES)
    command = [sys.executable, "-m", "segbench.cli", "score", "--predictions", "guesses", "--truth", "truth"]
    process = subprocess.Popen(
        [*command, "--classes", "classes.yaml", "--resamples", "100000000"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    )
    found: set[int] = set()
    deadline = time.monotonic() + 60
    while not found and process.poll() is None and time.monotonic() < deadline:
        found = children(process.pid)
        time.sleep(0.05)
    process.kill()
    process.wait()
    if sys.platform == "linux":
        assert found
    while any(Path(f"/proc/{pid}").exists() for pid in found):
        assert time.monotonic() < deadline, "the processes of a killed command live on"
        time.sleep(0.05)


def children(pid: int) -> set[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return set(map(int, listed.read_text().split()))
    except OSError:
        return set()


def test_predictions_of_another_size_are_resized_on_request(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (here / "guesses").iterdir():
        with Image.open(path) as image:
            image.resize((80, 60), Image.Resampling.NEAREST).save(path)
    assert run(monkeypatch, *every_option()) == 2
    assert run(monkeypatch, *every_option(), "--resize", "nearest") in (0, None)
    found = json.loads((here / "out/scores.json").read_text())
    given = [(np.where(t == 255, 3, t).astype(np.uint8), p) for t, p in pairs(6).values()]
    total = region.areas(sum(confusion(t, p, 3) for t, p in given))
    assert found["mean_iou"] == pytest.approx(float(region.mean_iou(total)))


def test_matlabs_boundary_score_needs_its_rule_and_tolerance(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = {}
    for rule in ("distance", "bsds"):
        assert run(monkeypatch, "--rule", rule, "--conventions", "--json", "x.json") in (0, None)
        found = json.loads((here / "x.json").read_text())
        (row,) = (row for row in found["conventions"] if row["name"] == "MeanBFScore")
        printed[rule] = (row["value"], found["boundary_f1"][rule])
    assert printed["distance"][0] == pytest.approx(printed["distance"][1])
    assert printed["bsds"][0] is None


def test_names_that_tell_no_sequence_are_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = {f"frame{i}": np.eye(20, dtype=np.uint8) for i in range(3)}
    write(tmp_path / "t", maps)
    write(tmp_path / "p", maps)
    monkeypatch.chdir(tmp_path)
    arguments = ["score", "--predictions", "p", "--truth", "t", "--dataset", "camvid", "--json", "x.json"]
    monkeypatch.setattr(sys, "argv", ["segbench", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    found = json.loads((tmp_path / "x.json").read_text())
    assert "do not tell the video sequences" in found["words"][0]
    assert found["intervals"]["resampled"] == "images"
    assert found["data"] == {"truth": "t", "classes": "camvid", "split": None, "images": 3, "left_out": 0}
    assert "do not tell the video sequences" in capsys.readouterr().err
