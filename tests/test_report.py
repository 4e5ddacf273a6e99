"""Tables from records whose numbers are worked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from segbench.engine.recipe import Recipe
from segbench.report import render, tables
from segbench.report.table import Table
from segbench.report.table6 import of_records
from segbench.scoring.counts import Counts
from segbench.store.files import Results
from segbench.store.record import Evaluation, Record

RECIPE: dict[str, Any] = {
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    "batch_size": 2,
    "iterations": 5,
    "class_weights": "natural",
    "select_by": "mean_iou",
    "validate_every": 5,
}
MACHINE: dict[str, Any] = {
    "device": "Abacus",
    "threads": 1,
    "segbench": "0",
    "commit": "c0ffee",
    "libraries": {"torch": "2"},
    "date": "2026-01-01T00:00:00Z",
}
# Two classes, 100 pixels, 10 of them void: 60 right of 70 of class 0 (one as void), 15 right of 20 of class 1.
CONFUSION = np.array([[[60, 9, 1], [5, 15, 0], [7, 3, 0]]])
G, C, MIOU = 75 / 90, (60 / 70 + 15 / 20) / 2, (60 / 75 + 15 / 29) / 2


def make(root: Path, label: str, seed: int | None = 0, confusion: np.ndarray = CONFUSION, **changes: Any) -> Record:
    """Write a record with one evaluation; `changes` override its fields."""
    counts = Counts(("a",), confusion, {"bsds@0.75%": np.array([[[10, 5, 8, 5], [0, 0, 0, 0]]])})
    root.mkdir(exist_ok=True, parents=True)
    counts.save(root / "counts.npz")
    score = {"at": ["best"], "boundary": {"rules": ["bsds"], "tolerances": ["0.75%"]}}
    values: dict[str, Any] = {
        "id": f"{label}-{seed}",
        "status": "done",
        "reason": None,
        "run": {"suite": "hand", "label": label, "model": label, "seed": seed, "recipe": RECIPE, "score": score},
        "keys": {"data": {"test": "abc"}, "group": label},
        "data": {"name": "hand", "origin": "by hand", "classes": ["x", "y"], "size": "10x10"},
        "environment": MACHINE,
        "training": None,
        "evaluations": [Evaluation("best", 5, "test", 1, "10x10", "counts-best.npz", environment=MACHINE)],
        "usage": None,
        "created": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    record = Record(**(values | changes))
    files = {"counts-best.npz": root / "counts.npz"} if record.evaluations else {}
    Results(root).write("hand", record, files)
    return record


def row(table: Table, label: str) -> dict[str, str]:
    (found,) = [r for r in table.rows if r[0] == label]
    return dict(zip(table.columns, found, strict=True))


def test_scores_are_those_worked_by_hand(tmp_path: Path) -> None:
    make(tmp_path, "A")
    table = tables.summary(tables.read([tmp_path]))
    cells = row(table, "A")
    assert cells["At"] == "best (5)"
    for name, value in (("G", G), ("C", C), ("mIoU", MIOU)):
        assert cells[name] == f"{value * 100:.2f}"
    assert cells["BF"] == f"{100 * 2 * 5 / 18:.2f}"
    text = " ".join(table.notes)
    for words in ("by hand; test split, 1 images scored at 10x10, 2 classes", "one-to-one", "0.75 % of the diagonal",
                  "Abacus", "c0ffee", "2026-01-01", "Seeds: 0 alone",
                  "sgd, rate 0.1 and momentum 0.9, weight decay 0.0005, batch 2"):  # fmt: skip
        assert words in text, text
    assert not any(cost in table.columns for cost in ("Fwd ms", "Train MiB"))


def test_several_seeds_give_mean_and_deviation(tmp_path: Path) -> None:
    right = np.array([[[70, 0, 0], [0, 20, 0], [0, 0, 10]]])
    make(tmp_path, "A", 0)
    make(tmp_path, "A", 1, right)
    table = tables.summary(tables.read([tmp_path]))
    values = np.array([G, 1.0]) * 100
    assert row(table, "A")["G"] == f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
    assert any("Seeds: 0, 1; mean ± sample standard deviation" in note for note in table.notes)


def test_failed_superseded_and_unlike_records_are_said(tmp_path: Path) -> None:
    make(tmp_path, "A", id="A-old", confusion=CONFUSION * 0)
    make(tmp_path, "A", created="2026-02-01T00:00:00Z")
    make(tmp_path, "B", status="failed", reason="OSError: disk full", evaluations=[])
    make(tmp_path, "C", keys={"data": {"test": "other"}, "group": "C"})
    table = tables.summary(tables.read([tmp_path]))
    assert row(table, "A")["G"] == f"{G * 100:.2f}"
    assert row(table, "B")["At"] == "seed 0 failed" and "B, seed 0 failed: OSError: disk full" in table.notes
    assert row(table, "B")["G"] == "n/a"
    assert any("do not compare" in note for note in table.notes)
    assert "1 older record(s) of the same runs are not shown." in table.notes


def test_only_records_that_differ_in_the_seed_alone_are_averaged(tmp_path: Path) -> None:
    run = make(tmp_path, "A", 0).run
    other = run | {"seed": 1, "recipe": RECIPE | {"iterations": 9, "optimizer": RECIPE["optimizer"] | {"lr": 0.5}}}
    make(tmp_path, "A", 1, run=other, keys={"data": {"test": "abc"}, "group": "smoke"})
    table = tables.summary(tables.read([tmp_path]))
    assert [r[0] for r in table.rows] == ["A (lr 0.1, iterations 5)", "A (lr 0.5, iterations 9)"]
    assert not any("±" in cell for r in table.rows for cell in r)


def test_equal_runs_under_two_labels_are_two_rows(tmp_path: Path) -> None:
    make(tmp_path, "A", 0, keys={"data": {"test": "abc"}, "group": "same"})
    make(tmp_path, "B", 1, keys={"data": {"test": "abc"}, "group": "same"})
    table = tables.summary(tables.read([tmp_path]))
    assert [r[0] for r in table.rows] == ["A", "B"]
    assert not any("±" in cell for r in table.rows for cell in r)


def test_each_row_says_how_many_seeds_it_averages(tmp_path: Path) -> None:
    for label, seed in (("A", 0), ("A", 1), ("B", 0)):
        make(tmp_path, label, seed)
    make(tmp_path, "B", 1, status="failed", reason="E", evaluations=[])
    table = tables.summary(tables.read([tmp_path]))
    assert [r[:3] for r in table.rows] == [
        ["A", "best (5)", "2"],
        ["B", "best (5)", "1"],
        ["B", "seed 1 failed", "n/a"],
    ]
    assert row_of(table, 0)["G"] == f"{G * 100:.2f} ± 0.00"


def notes_of(root: Path) -> list[str]:
    return tables.summary(tables.read([root])).notes


def run_of(label: str, **changes: Any) -> dict[str, Any]:
    score = {"at": ["best"], "boundary": None}
    return {"suite": "hand", "label": label, "model": label, "seed": 0, "recipe": RECIPE, "score": score} | changes


def test_the_words_of_a_recipe_that_is_not_the_default(tmp_path: Path) -> None:
    recipe = RECIPE | {
        "optimizer": {"name": "adamw", "lr": 0.1, "betas": [0.9, 0.98], "weight_decay": 0.0},
        "loss_normaliser": "none",
        "multipliers": "none",
        "norm_statistics": "training-set",
        "norm_eps": 1e-9,
        "input": {"order": "bgr", "scale": None, "local_normalisation": "none"},
    }
    weights = "/home/somebody/vgg16_bn.pth"
    make(tmp_path, "A", run=run_of("A", recipe=recipe, weights=weights, options={"bias": True}))
    assert (
        "Training: adamw, rate 0.1 and betas 0.9, 0.98, weight decay 0, batch 2, 5 iterations, natural class weights, "
        "loss summed over the batch, one rate and decay for all weights, batch-norm statistics of the training set, "
        "batch-norm epsilon 1e-09, input with order bgr, local_normalisation none; best by validation mean iou; "
        "from weights vgg16_bn.pth."
    ) in notes_of(tmp_path)
    assert "Options of A: bias true." in notes_of(tmp_path)
    text = " ".join(notes_of(tmp_path))
    assert "somebody" not in text


def test_defaults_go_unsaid(tmp_path: Path) -> None:
    recipe = RECIPE | {"loss_normaliser": "valid-pixels", "multipliers": "model", "norm_statistics": "running"}
    recipe |= {"norm_eps": None, "input": None}
    make(tmp_path, "A", run=run_of("A", recipe=recipe, weights=None, options={}))
    make(tmp_path, "B", run=run_of("B"))
    lines = [note for note in notes_of(tmp_path) if note.startswith(("Training", "No training", "Options", "Labels"))]
    assert lines == [
        "Training: sgd, rate 0.1 and momentum 0.9, weight decay 0.0005, batch 2, 5 iterations, natural class weights; "
        "best by validation mean iou."
    ]


def test_what_a_row_that_was_not_trained_is_made_of(tmp_path: Path) -> None:
    fed = {"scale": 0.5, "mean": [1.0, 2.0, 3.0], "std": None}
    given = Evaluation("given", None, "test", 1, "10x10", "counts-best.npz", environment=MACHINE)
    make(tmp_path, "A", run=run_of("A", recipe=None, weights="a/b.pt", input=fed), evaluations=[given])
    make(tmp_path, "B", run=run_of("B", recipe=None, weights="imagenet"), evaluations=[given])
    make(tmp_path, "C", run=run_of("C", recipe=None, score=None), evaluations=[])
    lines = [note for note in notes_of(tmp_path) if "raining" in note]
    assert lines == [
        "No training of A: weights b.pt, input with scale 0.5, mean [1.0, 2.0, 3.0].",
        "No training of B: weights imagenet.",
    ]


def test_how_labels_were_made_and_how_sure_they_are(tmp_path: Path) -> None:
    sampled = {"name": "monte-carlo", "samples": 50}
    crf = {"name": "dense-crf", "iterations": 10, "bilateral_weight": 5, "bilateral_xy_std_px": 50,
           "bilateral_rgb_std": 10, "gaussian_weight": 3, "gaussian_xy_std_px": 3}  # fmt: skip
    for seed, unsure in ((0, 0.01), (1, 0.02)):
        found = Evaluation("best", 5, "test", 1, "10x10", "counts-best.npz", uncertainty=unsure, environment=MACHINE)
        make(tmp_path, "A", seed, run=run_of("A", seed=seed, inference=sampled), evaluations=[found])
    make(tmp_path, "B", run=run_of("B", inference=crf))
    last = Evaluation("5", 5, "test", 1, "10x10", "counts-best.npz", environment=MACHINE)
    make(tmp_path, "C", run=run_of("C", inference=crf), evaluations=[last])
    make(tmp_path, "D", run=run_of("D", inference={"name": "plain"}))
    lines = [note for note in notes_of(tmp_path) if note.startswith(("Labels", "Uncertainty"))]
    chosen = "; the best checkpoint was chosen by the largest logit."
    filtered = (
        "dense CRF after the network, 10 iterations, bilateral weight 5 (50 px, 10 of 255), Gaussian weight 3 (3 px); "
        "costs are of the network alone"
    )
    assert lines == [
        f"Labels of A: the largest mean softmax of 50 passes with dropout; costs are of one pass{chosen}",
        f"Labels of B: {filtered}{chosen}",
        f"Labels of C: {filtered}.",
        "Uncertainty: mean variance of the softmax over passes, classes and pixels (void pixels included): "
        "A at best 0.015.",
    ]


LATER: dict[str, Any] = {
    "loss_normaliser": "valid-pixels",
    "norm_statistics": "running",
    "norm_eps": None,
    "input": None,
    "schedule": {"name": "fixed", "warmup": 0},
    "accumulate": 1,
    "epochs": None,
    "last_batch": "wrap",
    "augment": {"flip": 0.0, "scale": None, "crop": None, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    | {"hue": 0.0},
    "patience": None,
    "sync_norm": False,
    "mode": "deterministic",
    "precision": "fp32",
    "channels_last": False,
    "compile": False,
    "cuda_graphs": False,
    "fused": False,
    "activation_checkpointing": False,
}


def test_every_setting_of_a_recipe_is_known_to_older_records() -> None:
    asked = set(Recipe.model_fields) - {"optimizer", "batch_size", "iterations"}
    assert asked - set(LATER) == {"class_weights", "select_by", "validate_every", "multipliers"}, "since the first"


def test_a_newer_record_of_the_same_settings_is_told_apart_by_where_it_comes_from(tmp_path: Path) -> None:
    profile = {"res": "10x10"}
    make(tmp_path, "A", keys={"data": {}, "group": "1"}, run=run_of("A", profile=profile), id="1")
    newer = {"inference": {"name": "plain"}, "input": None, "profile": profile | {"scope": "model"}}
    newer = run_of("A", recipe=RECIPE | LATER, **newer)
    cases: dict[str, dict[str, Any]] = {
        "test data abcdef01": {"keys": {"data": {"test": "abcdef0123"}, "group": "2"}},
        "commit dead+": {"environment": MACHINE | {"commit": "dead+"}, "keys": {"data": {}, "group": "2"}},
        "2026-03-01": {"created": "2026-03-01T00:00:00Z", "keys": {"data": {}, "group": "2"}},
        "2": {"keys": {"data": {}, "group": "2"}},
    }
    olds = ["test data none", "commit c0ffee", "2026-01-01", "1"]
    for number, ((words, changes), old) in enumerate(zip(cases.items(), olds, strict=True)):
        folder = tmp_path / str(number)
        make(folder, "A", run=newer, id="2", **changes)
        kept = tables.read([tmp_path / "hand", folder])
        assert list(tables.row_labels(kept).values()) == [f"A ({old})", f"A ({words})"]


def test_rows_of_one_label_are_told_apart_by_what_differs_alone(tmp_path: Path) -> None:
    fed = {"order": "bgr", "scale": None}
    runs = [
        run_of("A"),
        run_of("A", inference={"name": "monte-carlo", "samples": 8}),
        run_of("A", recipe=RECIPE | LATER | {"loss_normaliser": "none", "input": fed}, input=fed),
        run_of("A", recipe=None, weights="imagenet"),
    ]
    for index, run in enumerate(runs):
        make(tmp_path, "A", run=run, id=str(index), keys={"data": {}, "group": str(index)})
    labels = list(tables.row_labels(tables.read([tmp_path])).values())
    assert labels == [
        "A (loss_normaliser valid-pixels, inference plain)",
        "A (loss_normaliser valid-pixels, inference monte-carlo, samples 8)",
        "A (loss_normaliser none, inference plain, order bgr)",
        "A (inference plain, recipe none, weights imagenet)",
    ]
    lines = [note for note in notes_of(tmp_path) if note.startswith(("Labels", "Training", "No training"))]
    assert [line.split(":")[0] for line in lines] == [
        f"Training of {labels[0]}, {labels[1]}",
        f"Training of {labels[2]}",
        f"No training of {labels[3]}",
        f"Labels of {labels[1]}",
    ]


def row_of(table: Table, index: int) -> dict[str, str]:
    return dict(zip(table.columns, table.rows[index], strict=True))


def test_a_newer_failure_hides_an_older_success(tmp_path: Path) -> None:
    make(tmp_path, "A")
    make(tmp_path, "A", id="A-new", status="failed", reason="E", evaluations=[], created="2026-03-01T00:00:00Z")
    assert row(tables.summary(tables.read([tmp_path])), "A")["At"] == "seed 0 failed"


def test_a_done_record_is_never_replaced(tmp_path: Path) -> None:
    make(tmp_path, "A")
    before = {p: p.read_bytes() for p in (tmp_path / "hand").rglob("*") if p.is_file()}
    make(tmp_path, "A", created="2027-01-01T00:00:00Z")
    assert {p: p.read_bytes() for p in (tmp_path / "hand").rglob("*") if p.is_file()} == before


def test_a_folder_that_lost_its_record_or_counts_is_replaced(tmp_path: Path) -> None:
    for lost in ("record.json", "counts-best.npz"):
        make(tmp_path, "A")
        (tmp_path / "hand/A-0" / lost).unlink()
        assert Results(tmp_path).find("hand", "A-0") is None
        make(tmp_path, "A")
        assert Results(tmp_path).find("hand", "A-0") is not None


def test_where_each_stage_ran_is_said(tmp_path: Path) -> None:
    training = {"environment": MACHINE | {"device": "H100", "commit": "0ld"}}
    make(tmp_path, "A", training=training)
    lines = [n for n in tables.summary(tables.read([tmp_path])).notes if n.startswith("Machine")]
    assert len(lines) == 2
    assert lines[0].startswith("Machine (trained): H100") and "0ld" in lines[0]
    assert lines[1].startswith("Machine (scored): Abacus")


def test_what_was_not_measured_is_not_zero(tmp_path: Path) -> None:
    empty = CONFUSION * 0
    make(tmp_path, "A", confusion=empty)
    cells = row(tables.summary(tables.read([tmp_path])), "A")
    assert cells["G"] == cells["C"] == cells["mIoU"] == "n/a"


def test_a_wide_table_goes_on_below_in_a_narrow_terminal() -> None:
    table = Table("t", ["Model", "At", *(f"Number {i}" for i in range(8))], [["SegNet", "best", *"12345678"]], [])
    for width, pieces in ((200, 1), (60, 3)):
        console = Console(width=width, record=True, quiet=True)
        console.quiet = False
        with console.capture() as capture:
            console.print(render.terminal(table, width))
        text = capture.get()
        assert text.count("SegNet") == pieces
        assert all(f"Number {i}" in text for i in range(8))
        assert max(map(len, text.splitlines())) <= width


def test_layouts_hold_the_same_cells() -> None:
    table = Table("t", ["Model", "At", "G"], [["a|b", "best", "1.00"]], ["a note"])
    assert (
        render.markdown(table)
        == "## t\n\n| Model | At | G |\n| :-- | :-- | --: |\n| a\\|b | best | 1.00 |\n\n- a note\n"
    )
    assert render.comma_separated(table) == "Model,At,G\na|b,best,1.00\n"
    assert "1.00" in render.plain(table)


USAGE: dict[str, Any] = {
    "device": "card",
    "res": [24, 32],
    "protocol": "caffe-time",
    "time_batch": 1,
    "train_memory_batch": 4,
    "infer_memory_batch": 1,
    "threads": 2,
    "forward_ms": {"measured_ms": [1.0]},
    "train_forward_ms": {"measured_ms": [2.0]},
    "backward_ms": None,
    "memory_mib": {},
    "parameters": 1,
    "trainable_parameters": 1,
    "parameter_mb": 1.0,
    "macs": None,
    "notes": [],
}
PROFILED: dict[str, Any] = {"options": {}, "profile": {"res": "24x32"}, "classes": 2}


def timed(root: Path, label: str, model: str, environment: dict[str, Any], **changes: Any) -> Record:
    """A record of a profile, with the paper's way to time it."""
    run = run_of(label, model=model, **PROFILED | changes)
    return make(root, label, run=run, evaluations=[], usage=USAGE, profiled_on=environment)


def test_records_compare_where_classes_and_versions_are_those_of_segnet(tmp_path: Path) -> None:
    newer = MACHINE | {"libraries": {"torch": "3"}}
    timed(tmp_path, "SegNet", "segnet", MACHINE)
    timed(tmp_path, "same", "unet", MACHINE | {"date": "2026-02-02T00:00:00Z", "commit": "d"})
    timed(tmp_path, "newer", "unet", newer)
    timed(tmp_path, "wide", "unet", MACHINE, classes=3)
    table = of_records(tables.read([tmp_path]))
    ratio = table.columns.index("Fwd /SegNet")
    found = {line[0]: line[ratio] for line in table.rows if line[1] == "measured"}
    assert found == {"SegNet": "1.00", "same": "1.00", "newer": "n/a", "wide": "n/a"}


def test_the_summary_says_what_a_variant_changes(tmp_path: Path) -> None:
    changed = {"changed_pixels": 0.0125, "largest_logit_error": 0.034, "largest_logit": 2.0}
    make(tmp_path, "plain", usage=USAGE)
    assert "Changed %" not in tables.summary(tables.read([tmp_path])).columns
    for seed in (0, 1):
        make(tmp_path, "half", seed, usage=USAGE | {"precision": "bf16", "deviation": changed})
    make(tmp_path, "scored")
    make(tmp_path, "gone", status="failed", reason="E", evaluations=[])
    table = tables.summary(tables.read([tmp_path]))
    expected = {
        "plain": ("0 (reference)", "0 (reference)"),
        "half": ("1.250", "0.034"),
        "scored": ("n/a", "n/a"),
        "gone": ("n/a", "n/a"),
    }
    for label, words in expected.items():
        cells = row(table, label)
        assert (cells["Changed %"], cells["Logit error"]) == words
    assert "| 1.250 | 0.034 |" in render.markdown(table) and ",1.250,0.034\n" in render.comma_separated(table)
    assert any("Changed %: pixels whose class is not that of fp32 eager" in note for note in table.notes)
    numbers = tables.frame(tables.read([tmp_path])).set_index("label")["changed_pixels"]
    assert numbers["plain"] == 0.0 and list(numbers["half"]) == [0.0125, 0.0125] and np.isnan(numbers["scored"])


def test_a_run_whose_profile_failed_keeps_its_scores(tmp_path: Path) -> None:
    make(tmp_path, "A", usage=USAGE, run=run_of("A", **PROFILED))
    make(tmp_path, "B", status="failed", reason="ModelError: no TF32", run=run_of("B", **PROFILED))
    make(tmp_path, "C", status="failed", reason="OSError: full", evaluations=[], run=run_of("C", profile=None))
    kept = tables.read([tmp_path])
    table = tables.summary(kept)
    assert [line[:2] for line in table.rows] == [["A", "best (5)"], ["B", "best (5)"], ["C", "seed 0 failed"]]
    assert row(table, "B")["mIoU"] == f"{MIOU * 100:.2f}" and row(table, "A")["Infer ms"] == "1.0"
    assert row(table, "B")["Infer ms"] == row(table, "B")["Size MB"] == "n/a"
    assert [note for note in table.notes if "failed" in note] == [
        "B, seed 0 failed: ModelError: no TF32",
        "C, seed 0 failed: OSError: full",
    ]
    assert list(tables.frame(kept)["label"]) == ["A", "B"]
    assert [line[:2] for line in of_records(kept).rows[-2:]] == [["A", "measured"], ["B", "failed"]]


def test_notes_tell_how_a_run_was_scored_whose_profile_failed(tmp_path: Path) -> None:
    make(tmp_path, "B", status="failed", reason="E", run=run_of("B", **PROFILED))
    text = " ".join(notes_of(tmp_path))
    assert "by hand; test split, 1 images" in text and "Machine (scored): Abacus" in text and "Training: sgd" in text


def test_a_profile_that_is_not_to_be_trusted_says_so_below_every_table(tmp_path: Path) -> None:
    doubt, plain = "forward unstable: the later half is 9 % slower", "macs leave out relu"
    times = {
        "forward_ms": {"measured_ms": [1.0, 2.0], "stable": False},
        "train_forward_ms": {"measured_ms": [3.0], "stable": False},
    }
    usage = USAGE | times | {"protocol": "steady", "notes": [doubt, plain]}
    make(tmp_path, "A", usage=usage, run=run_of("A", options={}, profile={"res": "24x32"}))
    make(
        tmp_path,
        "B",
        status="failed",
        reason="no TF32",
        evaluations=[],
        run=run_of("B", options={}, profile={"res": "24x32"}),
    )
    kept = tables.read([tmp_path])
    paper = of_records(kept)
    assert f"Note: {doubt}." in tables.summary(kept).notes and doubt in paper.notes
    assert not any(plain in note for note in [*tables.summary(kept).notes, *paper.notes])
    assert [row[:3] for row in paper.rows[-2:]] == [["A", "measured", "3.0~"], ["B", "failed", "n/a"]]
    assert "B: failed: no TF32" in paper.notes
