"""The cells of `segbench score`'s tables and the values of its JSON, worked by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from segbench.cli import main
from segbench.metrics.comparison import Comparison, Pair
from segbench.metrics.intervals import Bootstrap, Interval
from segbench.metrics.significance import PairedBootstrap
from segbench.report import score_files, scorecard
from segbench.scoring.classes import ClassList, index_table
from segbench.scoring.counts import Counts
from segbench.scoring.pairs import PairCounts
from segbench.scoring.scored import Scored, read_scores

NAMES = ("road", "sky")
CLASSES = ClassList(NAMES, index_table(2, void=True), index_table(2, void=True))
# Summed: of road's 12 pixels 10 are right and 2 called sky; of sky's 4 pixels 1 is right and 3 are called road.
CONFUSION = np.array([[[8, 0, 0], [2, 1, 0], [1, 1, 4]], [[2, 2, 0], [1, 0, 0], [0, 0, 0]]])


@pytest.fixture
def scored() -> Scored:
    return read_scores(["mine"], [PairCounts(Counts(("a", "b"), CONFUSION, {}), [])], CLASSES, Bootstrap())[0]


def between(low: float, high: float) -> Interval:
    return Interval(low, high, 0.95, "expanded", "images", 9, 1, 2000, 0.0, ())


COMPARISON = Comparison(
    ("best", "worst"),
    (0.75, 0.5),
    ("a", "b"),
    (1, 2),
    (1, 2),
    (Pair("best", "worst", PairedBootstrap(0.25, between(0.125, 0.375), 0.0), 0.01, 0.03),),
    (),
)


def test_scores_are_percent_with_their_intervals(scored: Scored) -> None:
    rows = {row[0]: row[1:] for row in scorecard.overall(scored, []).rows}
    assert rows["G, global accuracy"][0] == "68.75"
    assert rows["C, class accuracy"][0] == "54.17"  # (10/12 + 1/4) / 2
    assert rows["mIoU"][0] == "41.67"  # (10/15 + 1/6) / 2
    assert rows["frequency-weighted IoU"][0] == "54.17"  # (12 * 10/15 + 4 * 1/6) / 16
    assert rows["mean Dice"][0] == "54.29"  # (20/25 + 2/7) / 2
    for cells in rows.values():
        low, high = map(float, cells[1].split(" to "))
        assert low < float(cells[0]) < high
    assert scorecard.percent(float("nan")) == "n/a"


def test_classes_have_rows_of_their_own(scored: Scored) -> None:
    table = scorecard.classes(scored, NAMES)
    assert table.columns == ["Class", "% of truth", "IoU", "Interval", "Accuracy", "Precision", "Dice"]
    road, sky = table.rows
    assert [*road[:3], *road[4:]] == ["road", "75.00", "66.67", "83.33", "76.92", "80.00"]
    assert [*sky[:3], *sky[4:]] == ["sky", "25.00", "16.67", "25.00", "33.33", "28.57"]
    assert road[3] != sky[3]
    found = score_files.per_class(scored, NAMES)
    assert found["road"] == {
        "truth_pixels": 12,
        "iou": pytest.approx(10 / 15),
        "accuracy": pytest.approx(10 / 12),
        "precision": pytest.approx(10 / 13),
        "dice": pytest.approx(20 / 25),
    }
    assert found["sky"]["truth_pixels"] == 4
    ends = score_files.intervals(scored.intervals, NAMES)["per_class"]
    of_iou = scored.intervals["per_class iou"]
    assert ends["sky"]["iou"] == [of_iou.low[1], of_iou.high[1]]
    assert ends["sky"]["iou"] != ends["road"]["iou"]


def test_pairs_and_ranks() -> None:
    (row,) = scorecard.pairs(COMPARISON, "mean_iou").rows
    assert row == ["best - worst", "+25.00", "+12.50 to +37.50", "0.0100", "0.0300"]
    assert scorecard.probability(0.00005) == "<= 0.0001"
    found = score_files.compared(COMPARISON._replace(best_rank=(1, 1), worst_rank=(1, 2)), "mean_iou")
    assert found["groups"] == {"best": "a", "worst": "b"}
    assert found["ranks"] == {"best": [1, 1], "worst": [1, 2]}
    (pair,) = found["pairs"]
    assert (pair["p"], pair["p_holm"], pair["difference"], pair["interval"]) == (0.01, 0.03, 0.25, [0.125, 0.375])


def test_folders_stand_side_by_side_with_their_own_letters(scored: Scored) -> None:
    both = [Scored(name, scored.counts, scored.scores, scored.units, scored.intervals) for name in ("worst", "best")]
    table = scorecard.side_by_side(both, COMPARISON, "mean_iou", [])
    assert [row[:3] for row in table.rows] == [["best", "a", "1-1"], ["worst", "b", "2-2"]]


def write(folder: Path, labels: np.ndarray) -> None:
    folder.mkdir()
    for name in "ab":
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"{name}.png")


def score(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    given = ["score", "--predictions", "guesses", "--truth", "truth", "--classes", "classes.yaml", "--no-boundary"]
    monkeypatch.setattr(sys, "argv", ["segbench", *given, *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_a_doubtful_numbering_stops_unless_it_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Truth of ids 1..3 with void 0, predictions of indices 0..2: read as ids, all of them are wrong or void."""
    indices = np.tile(np.repeat(np.arange(3), 4), (6, 1))
    write(tmp_path / "truth", indices + 1)
    write(tmp_path / "guesses", indices)
    (tmp_path / "classes.yaml").write_text("classes: {1: a, 2: b, 3: c}\nvoid: 0\n")
    monkeypatch.chdir(tmp_path)
    assert score(monkeypatch) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "--prediction-ids classes" in printed.err and len(printed.err.splitlines()) == 1
    assert score(monkeypatch, "--prediction-ids", "files") in (0, None)
    assert "state the one that holds" in capsys.readouterr().err
    assert score(monkeypatch, "--prediction-ids", "classes", "--json", "out.json") in (0, None)
    assert '"mean_iou": 1.0' in (tmp_path / "out.json").read_text()


def test_neither_torch_nor_pandas_is_loaded(tmp_path: Path) -> None:
    for folder in ("truth", "guesses", "others"):
        write(tmp_path / folder, np.eye(8))
    (tmp_path / "classes.yaml").write_text("classes: [a, b]\n")
    code = (
        "import sys\nfrom segbench.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    code = e.code\n"
        "print([m for m in ('torch', 'pandas') if m in sys.modules], code)\n"
    )
    arguments = ["score", "--predictions", "guesses", "--predictions", "others", "--truth", "truth"]
    arguments += ["--classes", "classes.yaml", "--conventions", "--worst", "1", "--json", "o.json", "--csv", "o.csv"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] in ("[] 0", "[] None"), done.stdout + done.stderr
