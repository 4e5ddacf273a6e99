"""Which counts are made and kept, and that tolerances are compared in integers."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from segbench.metrics.boundary import boundary_counts
from segbench.metrics.confusion import confusion
from segbench.scoring.count import count
from segbench.scoring.counts import Counts, gather
from segbench.scoring.spec import BoundarySpec, ScoreSpec, band_width, squared


@pytest.mark.parametrize(
    ("tolerance", "size", "limit"),
    [
        ("0.75%", (360, 480), 20),  # 4.5 px
        ("0.75%", (720, 960), 81),  # 9 px exactly: a distance of 9 counts
        ("0.75%", (90, 120), 1),  # 1.125 px
        ("1%", (30, 40), 0),  # half a pixel: only the same place
        ("2px", (5, 5), 4),
        ("4.5px", (5, 5), 20),
        ("0px", (5, 5), 0),
    ],
)
def test_tolerances_are_exact(tolerance: str, size: tuple[int, int], limit: int) -> None:
    assert squared(tolerance, size) == limit


@pytest.mark.parametrize(
    ("width", "size", "pixels"),
    [
        ("2%", (360, 480), 12),
        ("2%", (100, 100), 3),  # 2.83
        ("5%", (30, 40), 2),  # 2.5: half to even
        ("2%", (3, 4), 1),
        ("3px", (9, 9), 3),
    ],
)
def test_widths_of_bands_are_rounded(width: str, size: tuple[int, int], pixels: int) -> None:
    assert band_width(width, size) == pixels


def test_what_is_not_a_tolerance_is_refused() -> None:
    assert BoundarySpec(tolerances=("0.75 %",)).tolerances == ("0.75%",)
    for text in ("0.75", "-1px", "1e-2%", "px", "1 m"):
        with pytest.raises(ValidationError, match="is not a tolerance"):
            BoundarySpec(tolerances=(text,))


def test_counts_are_those_of_the_metrics_and_survive_the_disk(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    spec = ScoreSpec(boundary=BoundarySpec(rules=("bsds", "distance"), tolerances=("1px", "10%")))
    pairs = {f"image {i}": rng.randint(0, 6, (2, 20, 30)).astype(np.uint8) for i in range(3)}
    counts = gather((name, count(truth, guess, 5, spec)) for name, (truth, guess) in pairs.items())
    assert counts.names == tuple(pairs)
    assert set(counts.boundary) == {"bsds@1px", "bsds@10%", "distance@1px", "distance@10%"}
    for index, (truth, guess) in enumerate(pairs.values()):
        assert np.array_equal(counts.confusion[index], confusion(truth, guess, 5))
        assert np.array_equal(counts.boundary["bsds@1px"][index], boundary_counts(truth, guess, 5, "bsds", 1))
    counts.save(tmp_path / "counts.npz")
    loaded = Counts.load(tmp_path / "counts.npz")
    assert loaded.names == counts.names
    assert np.array_equal(loaded.confusion, counts.confusion)
    for key, value in counts.boundary.items():
        assert np.array_equal(loaded.boundary[key], value)


def test_without_boundary_nothing_is_counted_for_it() -> None:
    labels = np.zeros((4, 4), np.uint8)
    assert count(labels, labels, 2, ScoreSpec(boundary=None)).boundary == {}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
def test_maps_of_any_integer_type_count_alike(dtype: type[np.integer]) -> None:
    rng = np.random.RandomState(1)
    spec = ScoreSpec(boundary=BoundarySpec(rules=("bsds", "distance"), tolerances=("2px",), iou=("1px",)))
    truth, guess = (rng.randint(0, 5, (2, 20, 30)) // 2 * 2).astype(np.uint8)
    expected = count(truth, guess, 4, spec)
    wide = truth.astype(dtype)
    wide[truth == 4] = 255
    found = count(wide, np.where(guess == 4, 200, guess).astype(dtype), 4, spec)
    assert np.array_equal(found.confusion, expected.confusion)
    for key in expected.boundary:
        assert np.array_equal(found.boundary[key], expected.boundary[key])
    assert np.array_equal(found.bands["1px"], expected.bands["1px"])


def test_a_truth_label_that_is_neither_class_nor_void_is_refused() -> None:
    labels = np.array([[0, 7]])
    with pytest.raises(ValueError, match="7"):
        count(labels, labels, 4, ScoreSpec())


def test_every_matching_has_a_key_and_the_authors_policy_goes_unsaid() -> None:
    spec = ScoreSpec(boundary=BoundarySpec(rules=("bsds", "distance"), tolerances=("1px",), void=("script", "copied")))
    labels = np.eye(6, dtype=np.uint8)
    assert list(count(labels, labels, 2, spec).boundary) == [
        "bsds@1px",
        "bsds@1px/copied",
        "distance@1px",
        "distance@1px/copied",
    ]


def test_counts_of_some_images_keep_their_order_and_sequences(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    spec = ScoreSpec(boundary=BoundarySpec(rules=("distance",), tolerances=("1px",), iou=("1px",)))
    maps = {f"{i}": rng.randint(0, 4, (2, 9, 9)).astype(np.uint8) for i in range(4)}
    counts = gather(((name, count(t, p, 3, spec)) for name, (t, p) in maps.items()), ["a", "a", "b", "b"])
    some = counts.of(["3", "0"])
    assert some.names == ("3", "0")
    assert some.sequences == ("b", "a")
    assert np.array_equal(some.confusion, counts.confusion[[3, 0]])
    assert np.array_equal(some.bands["1px"], counts.bands["1px"][[3, 0]])
    some.save(tmp_path / "counts.npz")
    loaded = Counts.load(tmp_path / "counts.npz")
    assert (loaded.names, loaded.sequences) == (some.names, some.sequences)
    assert np.array_equal(loaded.bands["1px"], some.bands["1px"])


def test_counts_of_before_there_were_bands_and_sequences_are_read() -> None:
    from conftest import REPOSITORY

    for path in (REPOSITORY / "results/camvid-small").rglob("counts-*.npz"):
        counts = Counts.load(path)
        assert (len(counts.names), counts.bands, counts.sequences) == (233, {}, ())
        break
    else:
        pytest.fail("results/camvid-small holds no counts")
