"""A suite end to end: records, sharing, resuming, failing, and input that stops everything before it starts."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import called
from PIL import Image

from segbench.engine.train import Step
from segbench.errors import ModelError
from segbench.metrics import confusion as region
from segbench.models.build import build
from segbench.pipeline import Finished, Started, execute
from segbench.preparation import network, prepare
from segbench.scoring.counts import Counts
from segbench.store.files import Results, Work, hold, record_folders
from segbench.store.record import read_counts, read_record
from segbench.suite.load import load

SUITE = """\
name: mini
data: {name: synthetic, size: 24x32, options: {train: 12, val: 4, test: 5}}
models:
  - {name: segnet-basic, options: {width: 0.125}}
  - {name: fcn-basic, options: {width: 0.125}}
recipe:
  optimizer: {name: sgd, lr: 0.1}
  batch_size: 4
  iterations: 6
  class_weights: median-frequency
  validate_every: 3
score: {at: [3, best], boundary: {rules: [bsds, distance]}}
"""

Command = Callable[..., int]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "mini.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def segbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line in this process, working in an empty folder; returns the exit code."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def command(*arguments: object) -> int:
        return called(monkeypatch, *arguments)

    return command


def written(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_a_suite_leaves_records_that_hold_everything(suite: Path, segbench: Command, capsys: Any) -> None:
    assert segbench("run", suite) == 0
    table = capsys.readouterr().out
    for words in (
        "SegNet-Basic",
        "FCN-Basic",
        "mIoU",
        "BF bsds@0.75%",
        "synthetic",
        "5 images",
        "24x32",
        "seed",
        "torch",
    ):
        assert words in table, table
    folders = record_folders(Path("results/mini"))
    assert len(folders) == 2
    for folder in folders:
        record = read_record(folder)
        assert record.status == "done" and folder.name == record.id
        assert len(record.training["losses"]) == 6 and len(record.training["validations"]) == 2  # type: ignore[index]
        assert len(record.training["class_weights"]) == 11  # type: ignore[index]
        assert [e.checkpoint for e in record.evaluations] == ["3", "best"]
        assert record.environment["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
        for evaluation in record.evaluations:
            counts = read_counts(folder, evaluation)
            assert counts.confusion.shape == (5, 12, 12) and counts.confusion.sum() == 5 * 24 * 32
            assert set(counts.boundary) == {"bsds@0.75%", "distance@0.75%"}
            for name, path in evaluation.maps.items():
                assert counts_of_map(folder / path, record.run["data"], name, counts)


def counts_of_map(path: Path, data: dict[str, Any], name: str, counts: Counts) -> bool:
    """A kept label map is the very map that was counted."""
    from segbench.data import open_dataset
    from segbench.data.spec import DataSpec

    truth = {s.name: s.labels for s in open_dataset(DataSpec.model_validate(data), "test")}[name]
    prediction = np.asarray(Image.open(path))
    return np.array_equal(region.confusion(truth, prediction, 11), counts.confusion[counts.names.index(name)])


def test_the_same_command_again_does_nothing_twice(suite: Path, segbench: Command, capsys: Any) -> None:
    assert segbench("run", suite) == 0
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in written(Path())}
    first = capsys.readouterr().out
    assert segbench("run", suite) == 0
    again = capsys.readouterr()
    assert again.out == first and again.err.count("has a record already") == 2
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in written(Path())} == before


def test_equal_runs_have_equal_scores_and_kept_stages_serve_new_records(suite: Path, segbench: Command) -> None:
    assert segbench("run", suite, "--results", "a", "--work", "wa") == 0
    assert segbench("run", suite, "--results", "b", "--work", "wb") == 0
    shutil.rmtree("wb/evaluate")
    # Another score of the same training: nothing is trained again.
    trained = {p: p.stat().st_mtime_ns for p in written(Path("wb/train"))}
    assert segbench("run", suite, "--results", "b", "--work", "wb", "--set", "score.boundary=null") == 0
    assert {p: p.stat().st_mtime_ns for p in written(Path("wb/train"))} == trained
    a, b = ({f.name: f for f in record_folders(Path(x))} for x in "ab")
    assert len(b) == 4 and set(a) < set(b)
    for name, folder in a.items():
        first, second = read_record(folder), read_record(b[name])
        assert first.training["losses"] == second.training["losses"]  # type: ignore[index]
        for one, other in zip(first.evaluations, second.evaluations, strict=True):
            assert np.array_equal(read_counts(folder, one).confusion, read_counts(b[name], other).confusion)


def test_a_checkpoint_that_was_not_kept_is_trained_for_again(suite: Path, segbench: Command) -> None:
    assert segbench("run", suite, "--only", "fcn-basic") == 0
    assert segbench("run", suite, "--only", "fcn-basic", "--set", "score.at=[2, 6]") == 0
    records = [read_record(f) for f in record_folders(Path("results"))]
    assert sorted(e.checkpoint for r in records for e in r.evaluations) == ["2", "3", "6", "best"]
    assert records[0].training["losses"] == records[1].training["losses"]  # type: ignore[index]


def test_a_changed_wish_for_checkpoints_starts_an_interrupted_training_over(suite: Path, tmp_path: Path) -> None:
    _, runs = load(suite, ["score.at=[6]"])
    place = Work(tmp_path / "w"), Results(tmp_path / "r")
    events = execute(prepare(runs[:1], torch.device("cpu")), *place)
    for event in events:
        if isinstance(event, Step) and event.iteration == 4:
            break
    events.close()  # type: ignore[attr-defined]
    _, runs = load(suite, ["score.at=[3, best]"])
    finished = [e for e in execute(prepare(runs[:1], torch.device("cpu")), *place) if isinstance(e, Finished)]
    assert [e.record.status for e in finished] == ["done"], finished[0].record.reason


def test_a_profile_counts_the_classes_of_the_data(tmp_path: Path, segbench: Command) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: p\ndata: {name: sunrgbd}\nmodels: [fcn-basic]\nprofile: {res: 24x32, memory: false}\n")
    _, (run,) = load(path)
    assert run.classes == 37


def test_files_that_vanished_from_the_work_folder_are_made_again(suite: Path, segbench: Command) -> None:
    assert segbench("run", suite, "--only", "fcn-basic") == 0
    (folder,) = record_folders(Path("results"))
    before = (folder / "counts-best.npz").read_bytes()
    for path in [*Path(".segbench/evaluate").glob("*/counts.npz"), *Path(".segbench/train").glob("*/best-*")]:
        path.unlink()
    shutil.rmtree("results")
    assert segbench("run", suite, "--only", "fcn-basic") == 0
    assert (folder / "counts-best.npz").read_bytes() == before


# Not below 8: an evaluation of five images starts again when it is left, and would never end.
@pytest.mark.parametrize("stop_after", [8, 13])
def test_stopped_between_events_it_goes_on_and_ends_the_same(suite: Path, tmp_path: Path, stop_after: int) -> None:
    def run_all(root: Path, stop_after: int | None) -> dict[str, Any]:
        _, runs = load(suite)
        while True:
            prepared = prepare(runs, torch.device("cpu"))
            events = execute(prepared, Work(root / "work"), Results(root / "results"))
            complete = True
            for number, _ in enumerate(events):
                if stop_after is not None and number == stop_after:
                    complete = False
                    break
            events.close()  # type: ignore[attr-defined]
            if complete:
                break
        found = {}
        for folder in record_folders(root / "results"):
            record = read_record(folder)
            counts = [read_counts(folder, e) for e in record.evaluations]
            found[record.id] = (record.training["losses"], [c.confusion.tolist() for c in counts])  # type: ignore[index]
        return found

    expected = run_all(tmp_path / "whole", None)
    assert run_all(tmp_path / "parts", stop_after) == expected


def test_a_run_that_fails_is_recorded_and_the_others_go_on(
    suite: Path, segbench: Command, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    suite.write_text(
        SUITE.replace(
            "  - {name: segnet-basic,", "  - {name: segnet-basic, recipe: {optimizer: {name: sgd, lr: 1.0e+30}},"
        )
    )
    assert segbench("run", suite) == 1
    out = capsys.readouterr()
    assert "failed: TrainingError: the loss is" in out.err and "failed: TrainingError" in out.out
    records = {r.run["model"]: r for r in map(read_record, record_folders(Path("results")))}
    assert records["fcn-basic"].status == "done"
    failed = records["segnet-basic"]
    assert failed.status == "failed" and "loss is" in str(failed.reason) and "Traceback" in str(failed.traceback)


def test_a_run_that_failed_for_a_passing_reason_is_tried_again(
    suite: Path, segbench: Command, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from segbench import stages

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "evaluate", full_disk)
        assert segbench("run", suite, "--only", "fcn-basic") == 1
    assert "No space left on device" in capsys.readouterr().out
    trained = {p: p.stat().st_mtime_ns for p in written(Path(".segbench/train"))}
    assert segbench("run", suite, "--only", "fcn-basic") == 0
    (folder,) = record_folders(Path("results"))
    assert read_record(folder).status == "done"
    assert {p: p.stat().st_mtime_ns for p in written(Path(".segbench/train"))} == trained


@pytest.mark.parametrize("first", ["train: false", "train: true"])
def test_weights_of_vgg16_begin_a_training_and_are_not_scored(first: str, tmp_path: Path, segbench: Command) -> None:
    """Whichever of two entries that differ in it alone stands first."""
    state = {}
    for index, (fed, out) in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), vgg16_channels(), strict=True):
        state |= {f"features.{index}.weight": torch.zeros(()).expand(out, fed, 3, 3)}
        state |= {f"features.{index}.bias": torch.zeros(out)}
    torch.save(state, tmp_path / "vgg.pth")
    second = "train: true" if first == "train: false" else "train: false"
    (tmp_path / "v.yaml").write_text(
        "name: v\ndata: {name: synthetic, size: 32x32, options: {train: 2, val: 2, test: 2}}\nmodels:\n"
        f"  - {{name: segnet, label: a, weights: vgg.pth, {first}}}\n"
        f"  - {{name: segnet, label: b, weights: vgg.pth, {second}}}\n"
        "recipe: {optimizer: {name: sgd, lr: 0.1}, batch_size: 2, iterations: 1}\nscore: {}\n"
    )
    with pytest.raises(ModelError, match=r"v\.yaml:\d: models\[\d\]: .*only begin a training: nothing to score"):
        prepare(load(tmp_path / "v.yaml")[1], torch.device("cpu"))


def vgg16_channels() -> list[tuple[int, int]]:
    """Channels in and out of the thirteen convolutions."""
    out = [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    return list(zip([3, *out[:-1]], out, strict=True))


def test_a_scope_with_input_needs_a_model_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segbench.preparation.build", lambda *_: torch.nn.Conv2d(3, 4, 1))
    (tmp_path / "s.yaml").write_text(
        "name: s\nmodels: [segnet]\nprofile: {res: 24x32, scope: model+input}\nclasses: 4\n"
    )
    with pytest.raises(ModelError, match=r"s\.yaml:2: models\[0\]: .*declares its `input`"):
        prepare(load(tmp_path / "s.yaml")[1], torch.device("cpu"))


def test_what_a_suite_feeds_reaches_the_profile_and_the_scores(
    tmp_path: Path, segbench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[Any] = []

    def spied(factory: Any, *_: Any) -> Any:
        fed.append(factory().input.order)
        raise ModelError("enough")

    monkeypatch.setattr("segbench.stages.profile", spied)
    (tmp_path / "f.yaml").write_text(
        "name: f\ndata: {name: synthetic, size: 24x32, options: {train: 4, val: 2, test: 2}}\n"
        "models: [{name: segnet-basic, options: {width: 0.125}, recipe: {input: {order: rgb}}}]\n"
        "recipe: {optimizer: {name: sgd, lr: 0.1}, batch_size: 2, iterations: 1, norm_eps: 1.0e-3}\n"
        "score: {}\nprofile: {res: 24x32, scope: model+input}\n"
    )
    assert segbench("run", tmp_path / "f.yaml") == 1  # the profile that fails above
    assert fed == ["rgb"]
    prepared = prepare(load(tmp_path / "f.yaml")[1], torch.device("cpu"))
    model = network(prepared.runs[0], prepared)
    assert model.input.order == "rgb" and model.encoder[0].conv1.bn.eps == 1e-3  # type: ignore[union-attr, index]


def test_weights_from_elsewhere_are_scored_as_they_are(tmp_path: Path, segbench: Command) -> None:
    torch.manual_seed(7)
    model = build("fcn-basic", 11, {"width": 0.125}, (24, 32))
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    path = tmp_path / "given.yaml"
    path.write_text(
        "name: given\ndata: {name: synthetic, size: 24x32, options: {test: 3}}\n"
        "models: [{name: fcn-basic, options: {width: 0.125}, weights: mine.pt, train: false}]\nscore: {}\n"
    )
    assert segbench("run", path) == 0
    (folder,) = record_folders(Path("results"))
    record = read_record(folder)
    assert record.training is None and [e.checkpoint for e in record.evaluations] == ["given"]
    from segbench.data import open_dataset
    from segbench.data.spec import DataSpec

    sample = open_dataset(DataSpec(name="synthetic", size=(24, 32), options={"test": 3}), "test")[0]
    images = torch.from_numpy(sample.image.copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = model.eval()(model.input(images)).argmax(1)[0].to(torch.uint8).numpy()  # type: ignore[operator]
    counts = read_counts(folder, record.evaluations[0])
    assert np.array_equal(counts.confusion[0], region.confusion(sample.labels, expected, 11))
    # Weights of another width are the user's mistake, and nothing is written.
    path.write_text(path.read_text().replace("0.125", "0.25"))
    shutil.rmtree("results")
    assert segbench("run", path, "--work", "other") == 2
    assert not Path("results").exists() and not Path("other").exists()


def test_a_suite_that_only_profiles(tmp_path: Path, segbench: Command, capsys: Any) -> None:
    path = tmp_path / "costs.yaml"
    path.write_text(
        "name: costs\nmodels: [{name: fcn-basic, options: {width: 0.125}}]\n"
        "profile: {res: 24x32, protocol: caffe-time, repetitions: 2, memory: false}\nclasses: 4\n"
    )
    assert segbench("run", path) == 0
    (folder,) = record_folders(Path("results"))
    record = read_record(folder)
    assert record.usage is not None and record.evaluations == [] and record.training is None
    out = capsys.readouterr().out
    assert "FCN-Basic" in out and "n/a" in out and "memory was not measured" in out


def test_a_size_that_a_model_cannot_take_fails_its_row_alone(tmp_path: Path, segbench: Command, capsys: Any) -> None:
    path = tmp_path / "costs.yaml"
    path.write_text(
        "name: costs\nmodels: [{name: deconvnet, options: {width: 0.03125, input_size: 24x32}}]\n"
        "profile: {res: [32x32, 24x32], protocol: caffe-time, repetitions: 1, memory: false, energy: false}\n"
    )
    assert segbench("run", path) == 1
    records = {r.run["profile"]["res"]: r for r in map(read_record, record_folders(Path("results")))}
    assert records["24x32"].status == "done" and records["24x32"].usage is not None
    assert records["32x32"].status == "failed" and "32x32" in str(records["32x32"].reason)
    assert "failed: ModelError: " in capsys.readouterr().out


def test_what_a_failed_profile_leaves_is_kept(
    suite: Path, segbench: Command, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from segbench import stages

    def broken(*_: object) -> None:
        raise RuntimeError("the card fell off the bus")

    monkeypatch.setattr(stages, "profile", broken)
    suite.write_text(SUITE + "profile: {res: 24x32}\n")
    assert segbench("run", suite, "--only", "fcn-basic") == 1
    (folder,) = record_folders(Path("results"))
    record = read_record(folder)
    assert record.status == "failed" and record.reason == "RuntimeError: the card fell off the bus"
    assert record.training and record.evaluations and record.usage is None
    assert all((folder / evaluation.counts).is_file() for evaluation in record.evaluations)
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "best (" in line)
    assert re.search(r"\d\d\.\d\d", row) and "the card fell off the bus" in " ".join(out.split())


def test_a_damaged_checkpoint_keeps_no_other_from_its_scores(suite: Path, segbench: Command) -> None:
    assert segbench("run", suite, "--only", "fcn-basic") == 0
    shutil.rmtree("results")
    shutil.rmtree(".segbench/evaluate")
    (kept,) = Path(".segbench/train").glob("*/3.safetensors")
    *others, last = kept.read_bytes()
    kept.write_bytes(bytes([*others, last ^ 1]))
    assert segbench("run", suite, "--only", "fcn-basic") == 1
    (folder,) = record_folders(Path("results"))
    record = read_record(folder)
    assert record.status == "failed" and "3.safetensors: not a readable checkpoint" in str(record.reason)
    assert [evaluation.checkpoint for evaluation in record.evaluations] == ["best"]


def test_what_is_trained_again_stays_until_it_has_been(
    suite: Path, segbench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segbench import stages

    assert segbench("run", suite, "--only", "fcn-basic") == 0
    before = {p.name: p.read_bytes() for p in Path(".segbench/train").glob("*/[0-9]*.safetensors")}

    def killed(*_: object, **__: object) -> None:
        raise RuntimeError("no power")

    again = ["run", suite, "--only", "fcn-basic", "--set", "score.at=[5]"]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train", killed)
        assert segbench(*again) == 1
    assert {p.name: p.read_bytes() for p in Path(".segbench/train").glob("*/[0-9]*.safetensors")} == before
    assert segbench(*again) == 0
    after = {p.name: p.read_bytes() for p in Path(".segbench/train").glob("*/[0-9]*.safetensors")}
    assert after.items() > before.items() and "5.safetensors" in after


def test_events_tell_the_whole_story(suite: Path, tmp_path: Path) -> None:
    _, runs = load(suite)
    prepared = prepare(runs, torch.device("cpu"))
    events = list(execute(prepared, Work(tmp_path / "w"), Results(tmp_path / "r")))
    assert [e.number for e in events if isinstance(e, Started)] == [1, 2]
    assert [e.iteration for e in events if isinstance(e, Step)] == [*range(1, 7), *range(1, 7)]
    assert [e.record.status for e in events if isinstance(e, Finished)] == ["done", "done"]


def test_real_images_pass_the_whole_way(mini_camvid: Path, segbench: Command, capsys: Any) -> None:
    suite = Path(__file__).parent.parent / "suites/camvid-small.yaml"
    sets = ["recipe.iterations=2", "recipe.validate_every=1", "recipe.batch_size=2", "score.at=[best]", "profile=null"]
    sets += ["models[0].options.width=0.125", "models[1].options.width=0.125"]
    arguments = [word for text in sets for word in ("--set", text)]
    assert segbench("run", suite, "--data", mini_camvid, *arguments) == 0, capsys.readouterr().err
    for folder in record_folders(Path("results")):
        record = read_record(folder)
        assert record.data is not None and record.data["name"] == "camvid" and record.data["size"] == "90x120"
        counts = read_counts(folder, record.evaluations[0])
        assert counts.confusion.shape == (6, 12, 12) and counts.confusion.sum() == 6 * 90 * 120


# --- wrong input: one line, exit 2, nothing written ---------------------------------------------------------------

CAMVID = """\
name: wrong
data: {name: camvid}
models: [{name: fcn-basic, options: {width: 0.125}}]
recipe: {optimizer: {name: sgd, lr: 0.1}, batch_size: 2, iterations: 2}
score: {}
"""


def mini(tmp_path: Path) -> Path:
    """A CamVid layout of three drawn frames a split."""
    rng = np.random.RandomState(0)
    for split in ("train", "val", "test"):
        for index in range(3):
            frame, annotation = (tmp_path / "data/CamVid" / f"{split}{kind}" for kind in ("", "annot"))
            for folder in (frame, annotation):
                folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.randint(0, 256, (24, 32, 3)).astype(np.uint8)).save(frame / f"{split}{index}.png")
            Image.fromarray(rng.randint(0, 12, (24, 32)).astype(np.uint8)).save(annotation / f"{split}{index}.png")
        lines = [
            f"/SegNet/CamVid/{split}/{split}{i}.png /SegNet/CamVid/{split}annot/{split}{i}.png\n" for i in range(3)
        ]
        (tmp_path / "data/CamVid" / f"{split}.txt").write_text("".join(lines))
    return tmp_path / "data"


def small_annotation(data: Path) -> str:
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(data / "CamVid/testannot/test1.png")
    return "test1.png"


def label_outside(data: Path) -> str:
    Image.fromarray(np.full((24, 32), 37, np.uint8)).save(data / "CamVid/trainannot/train2.png")
    return "37"


def unreadable_image(data: Path) -> str:
    (data / "CamVid/train/train0.png").write_bytes((data / "CamVid/train/train0.png").read_bytes()[:200])
    return "train0.png"


def missing_frame(data: Path) -> str:
    (data / "CamVid/test/test0.png").unlink()
    return "test0"


def missing_folder(data: Path) -> str:
    shutil.rmtree(data)
    return "--data DIR"


@pytest.mark.parametrize("damage", [small_annotation, label_outside, unreadable_image, missing_frame, missing_folder])
def test_wrong_data_stops_before_the_start(
    damage: Callable[[Path], str], tmp_path: Path, segbench: Command, capsys: Any
) -> None:
    data = mini(tmp_path)
    path = tmp_path / "wrong.yaml"
    path.write_text(CAMVID)
    assert segbench("run", path, "--data", data, "--results", "ok", "--work", "okwork") == 0
    capsys.readouterr()
    expected = damage(data)
    assert segbench("run", path, "--data", data) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and expected in lines[0], captured.err
    assert not Path("results").exists() and not Path(".segbench").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("name: fcn-basic", "name: fcn-basick"), 'did you mean "fcn-basic"'),
        (("iterations: 2", "iteration: 2"), 'did you mean "iterations"'),
        (("width: 0.125", "widht: 0.125"), 'did you mean "width"'),
        (("{name: fcn-basic, options: {width: 0.125}}", '"smp:Unett"'), "Unet"),
        (("{name: camvid}", "{name: camvid, options: {split: 3}}"), "split"),
        (("score: {}", "score: {at: [9]}"), "past the last iteration"),
    ],
)
def test_wrong_settings_stop_before_the_start(
    change: tuple[str, str], words: str, tmp_path: Path, segbench: Command, capsys: Any
) -> None:
    data = mini(tmp_path)
    path = tmp_path / "wrong.yaml"
    assert change[0] in CAMVID
    path.write_text(CAMVID.replace(*change))
    assert segbench("run", path, "--data", data) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1 and words in captured.err, captured.err
    assert not Path("results").exists() and not Path(".segbench").exists()


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cpu:", "cuda:x"])
def test_a_wrong_device_is_named(device: str, suite: Path, segbench: Command, capsys: Any) -> None:
    assert segbench("run", suite, "--device", device) == 2
    assert device in capsys.readouterr().err
    assert written(Path()) == []


def test_dry_run_prints_the_plan_and_writes_nothing(suite: Path, segbench: Command, capsys: Any) -> None:
    assert segbench("run", suite, "--dry-run") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 runs" in out and "6 iterations of 4" in out and "48 images" in out and written(Path()) == []
    swept = "profile={res: 24x32, precision: [fp32, bf16], memory: false}"
    assert segbench("run", suite, "--dry-run", "--set", swept) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "4 runs" in out and "48 images" in out and "bf16" in out  # the points of a sweep share a training
    assert segbench("run", suite, "--only", "fcn-basic") == 0
    capsys.readouterr()
    assert segbench("run", suite, "--dry-run") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "24 images" in out and "done" in out


def test_one_process_a_work_folder(suite: Path, segbench: Command, capsys: Any) -> None:
    with hold(Path(".segbench"), "--work"):
        assert segbench("run", suite) == 2
    assert "another segbench works there" in capsys.readouterr().err
    assert not Path("results").exists()


def test_clean_removes_only_what_is_ours(suite: Path, segbench: Command, capsys: Any) -> None:
    assert segbench("clean") == 0
    assert segbench("run", suite, "--only", "fcn-basic") == 0
    assert segbench("clean", "--yes") == 0
    assert not Path(".segbench").exists() and record_folders(Path("results"))
    Path("mine/thesis").mkdir(parents=True)
    Path("mine/thesis/text.txt").write_text("years of work")
    assert segbench("clean", "--work", "mine", "--yes") == 2
    assert Path("mine/thesis/text.txt").exists() and "not removed" in capsys.readouterr().err


def test_report_formats_and_broken_records(suite: Path, segbench: Command, capsys: Any) -> None:
    assert segbench("run", suite) == 0
    capsys.readouterr()
    assert segbench("report", "results/mini", "--format", "markdown") == 0
    text = capsys.readouterr().out
    assert text.startswith("## mini\n\n| Model | At | G |")
    assert segbench("report", "results/mini", "--format", "csv", "--output", "out/table.csv") == 0
    rows = Path("out/table.csv").read_text().splitlines()
    assert len(rows) == 5 and rows[0].startswith("Model,At,G,C,mIoU,BF bsds@0.75%,BF distance@0.75%")
    assert segbench("report", "nowhere") == 2
    assert "does not exist" in capsys.readouterr().err
    broken = record_folders(Path("results"))[0] / "record.json"
    values = json.loads(broken.read_text())
    for content, words in (("{", "not a readable record"), (json.dumps(values | {"version": 99}), "is of version 99")):
        broken.write_text(content)
        assert segbench("report", "results") == 2
        assert words in capsys.readouterr().err
