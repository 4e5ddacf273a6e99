"""Confusion counts against a per-pixel loop."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

from segbench.errors import SegbenchWarning
from segbench.metrics import compiled
from segbench.metrics import confusion as metrics
from segbench.metrics.compiled import kernels

SIZES = [(1, 1), (1, 7), (7, 1), (3, 5), (17, 33), (45, 60)]


@pytest.fixture(params=["numba", "numpy"])
def path(request, monkeypatch):
    monkeypatch.setenv("SEGBENCH_NO_NUMBA", "1" if request.param == "numpy" else "0")
    assert (kernels() is None) == (request.param == "numpy")


def by_pixel(truth, prediction, num_classes):
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        counts[t, min(p, num_classes)] += 1
    return counts


def maps(kind, size, num_classes, rng):
    """(truth, prediction); predictions may hold void and labels out of range."""
    if kind == "noise":
        return rng.integers(0, num_classes + 1, size, np.uint8), rng.integers(0, 256, size, np.uint8)
    if kind == "blobs":  # runs of a few bytes to several words, which start at any byte
        lengths = rng.integers(1, 90, size[0] * size[1])
        rows = [np.repeat(rng.integers(0, num_classes + 1, lengths.size), lengths)[: size[0] * size[1]] for _ in "tp"]
        return tuple(row.astype(np.uint8).reshape(size) for row in rows)
    truth = np.full(size, num_classes if kind == "void" else 0, np.uint8)
    return truth, np.full(size, num_classes - 1, np.uint8)


@pytest.mark.parametrize("num_classes", [1, 2, 11, 15, 16, 37, 70, 254])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["noise", "blobs", "void", "constant"])
def test_equals_a_loop_over_pixels(path, kind, size, num_classes):
    truth, prediction = maps(kind, size, num_classes, np.random.default_rng(num_classes))
    counts = metrics.confusion(truth, prediction, num_classes)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, by_pixel(truth, prediction, num_classes))


def test_strided_unaligned_and_read_only_maps(path):
    rng = np.random.default_rng(0)
    batch = np.repeat(rng.integers(0, 12, (3, 11, 5), np.uint8), 7, axis=2)  # 385 bytes a map: odd offsets
    truth, prediction = batch[1], batch[2, ::-1]
    truth.flags.writeable = False
    expected = by_pixel(truth, prediction, 11)
    np.testing.assert_array_equal(metrics.confusion(truth, prediction, 11), expected)
    np.testing.assert_array_equal(metrics.confusion(truth.T, prediction.T, 11), expected)


def test_relabelling_permutes_the_counts(path):
    rng = np.random.default_rng(1)
    truth, prediction = maps("blobs", (45, 60), 11, rng)
    order = np.append(rng.permutation(11), 11).astype(np.uint8)
    counts = metrics.confusion(truth, prediction, 11)
    relabelled = metrics.confusion(order[truth], order[prediction], 11)
    np.testing.assert_array_equal(relabelled[np.ix_(order, order)], counts)


def test_truth_above_void_is_our_bug(path):
    with pytest.raises(AssertionError, match="truth holds 255"):
        metrics.confusion(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 11)


@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        (np.zeros((2, 3), np.uint8), "truth of shape (2, 2), prediction of (2, 3)"),
        (np.zeros((4, 1), np.uint8), "truth of shape (2, 2), prediction of (4, 1)"),
        (np.zeros((2, 2), np.int64), "maps of uint8 and int64, not uint8"),
    ],
)
def test_maps_that_do_not_match_are_our_bug(path, prediction, words):
    count = inspect.unwrap(metrics.confusion)  # in production, where nothing checks the annotations
    with pytest.raises(AssertionError) as caught:
        count(np.zeros((2, 2), np.uint8), prediction, 11)
    assert words in str(caught.value)
    with pytest.raises(AssertionError):
        count(prediction, np.zeros((2, 2), np.uint8), 11)


@pytest.mark.parametrize("module", ["numba", "segbench.metrics.kernels"])
def test_whatever_numba_raises_the_numpy_path_takes_over(monkeypatch, module):
    def import_module(name):
        if name == module:
            raise RuntimeError("cannot cache: no locator available")

    monkeypatch.setenv("SEGBENCH_NO_NUMBA", "0")
    monkeypatch.setattr(compiled, "import_module", import_module)
    compiled._import_kernels.cache_clear()
    try:
        with pytest.warns(SegbenchWarning, match=r"^counting in NumPy, .* \(RuntimeError: cannot cache: no locator"):
            assert kernels() is None
        assert metrics.confusion(np.zeros((1, 2), np.uint8), np.ones((1, 2), np.uint8), 1)[0, 1] == 2
    finally:
        compiled._import_kernels.cache_clear()


def test_numba_is_imported_at_the_first_count():
    code = (
        "import sys, segbench.metrics.confusion, segbench.metrics.boundary;"
        "print([m for m in ('numba', 'scipy', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_chunks_of_a_large_map(path, monkeypatch):
    monkeypatch.setattr(metrics, "PIXELS_AT_ONCE", 7)
    for kind in ("noise", "blobs"):
        truth, prediction = maps(kind, (17, 33), 11, np.random.default_rng(3))
        np.testing.assert_array_equal(metrics.confusion(truth, prediction, 11), by_pixel(truth, prediction, 11))


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_maps_without_pixels(path, size):
    empty = np.zeros(size, np.uint8)
    for num_classes in (1, 11, 20):
        assert metrics.confusion(empty, empty, num_classes).tolist() == np.zeros([num_classes + 1] * 2).tolist()


@pytest.mark.parametrize("num_classes", [11, 14, 15, 20])
def test_one_truth_above_void_anywhere_is_seen(path, num_classes):
    for place in (0, 13, 40, 67):
        truth = np.zeros((2, 34), np.uint8)
        for label in (num_classes + 1, 255):
            truth.reshape(-1)[place] = label
            with pytest.raises(AssertionError, match=f"truth holds {label}"):
                metrics.confusion(truth, np.zeros_like(truth), num_classes)
