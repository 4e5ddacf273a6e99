"""Which counts are made and kept, and that tolerances are compared in integers."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from segbench.metrics.boundary import boundary_counts
from segbench.metrics.confusion import confusion
from segbench.scoring import BoundarySpec, Counts, ScoreSpec, count, gather, squared


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
