"""Tables from records whose numbers are worked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from segbench.report import render, tables
from segbench.report.table import Table
from segbench.scoring import Counts
from segbench.store.files import Results
from segbench.store.record import Evaluation, Record

RECIPE = {
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "batch_size": 2,
    "iterations": 5,
    "class_weights": "natural",
    "select_by": "mean_iou",
    "validate_every": 5,
}
MACHINE = {
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
                  "Abacus", "c0ffee", "2026-01-01", "Seeds: 0 alone", "sgd, rate 0.1 and momentum 0.9"):  # fmt: skip
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
    assert row(table, "B")["At"] == "seed 0 failed: OSError: disk full"
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
        ["B", "seed 1 failed: E", "n/a"],
    ]
    assert row_of(table, 0)["G"] == f"{G * 100:.2f} ± 0.00"


def row_of(table: Table, index: int) -> dict[str, str]:
    return dict(zip(table.columns, table.rows[index], strict=True))


def test_a_newer_failure_hides_an_older_success(tmp_path: Path) -> None:
    make(tmp_path, "A")
    make(tmp_path, "A", id="A-new", status="failed", reason="E", evaluations=[], created="2026-03-01T00:00:00Z")
    assert row(tables.summary(tables.read([tmp_path])), "A")["At"] == "seed 0 failed: E"


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
