"""Confusion counts against a per-pixel loop, and region scores worked by hand."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

from segbench.metrics import compiled
from segbench.metrics import confusion as metrics
from segbench.metrics.compiled import kernels

SIZES = [(1, 1), (1, 7), (7, 1), (3, 5), (17, 33), (45, 60)]

# Two classes and void. Truth row 0: 3 right, 1 taken for 1, 2 for void; row 1: 4 right; 5 void pixels predicted as 0.
HAND = np.array([[3, 1, 2], [0, 4, 0], [5, 0, 0]], np.int64)


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
    assert metrics.mean_iou(relabelled) == pytest.approx(metrics.mean_iou(counts), abs=1e-12)


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
        assert kernels() is None
        assert metrics.confusion(np.zeros((1, 2), np.uint8), np.ones((1, 2), np.uint8), 1)[0, 1] == 2
    finally:
        compiled._import_kernels.cache_clear()


def test_scores_by_hand():
    assert metrics.global_accuracy(HAND) == pytest.approx(7 / 10)
    np.testing.assert_allclose(metrics.per_class_accuracy(HAND), [3 / 6, 4 / 4])
    assert metrics.class_accuracy(HAND) == pytest.approx(0.75)
    # The 5 void pixels predicted as class 0 are in no union: 3 / (6 + 3 - 3) and 4 / (4 + 5 - 4).
    np.testing.assert_allclose(metrics.per_class_iou(HAND), [3 / 6, 4 / 5])
    assert metrics.mean_iou(HAND) == pytest.approx(0.65)
    assert metrics.frequency_weighted_iou(HAND) == pytest.approx(0.6 * 0.5 + 0.4 * 0.8)


def test_classes_without_truth():
    # Class 1 is only predicted, class 2 is nowhere: IoU 0 and undefined.
    counts = np.array([[6, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.int64)
    np.testing.assert_allclose(metrics.per_class_accuracy(counts), [0.75, np.nan, np.nan])
    np.testing.assert_allclose(metrics.per_class_iou(counts), [0.75, 0, np.nan])
    assert metrics.class_accuracy(counts) == 0.75
    assert metrics.mean_iou(counts) == 0.375
    assert metrics.frequency_weighted_iou(counts) == 0.75


SCORES = [metrics.global_accuracy, metrics.class_accuracy, metrics.mean_iou, metrics.frequency_weighted_iou]


@pytest.mark.parametrize("score", SCORES)
def test_nothing_scored_is_nan(score):
    void = np.zeros((3, 3), np.int64)
    void[2, 0] = 9
    assert np.isnan(score(void))


@pytest.mark.parametrize("score", [*SCORES, metrics.per_class_accuracy, metrics.per_class_iou])
def test_leading_axes_are_kept(score):
    stack = np.random.default_rng(2).integers(0, 50, (2, 3, 5, 5))
    scores = score(stack)
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(scores[i], score(stack[i]))
    assert isinstance(score(HAND), float | np.ndarray)


def test_counts_stay_exact_where_float32_does_not():
    stack = np.tile(np.array([[700_001, 0], [0, 0]], np.int64), (500, 1, 1))
    assert stack.sum(0)[0, 0] == 350_000_500
    assert metrics.global_accuracy(stack.sum(0)) == 1.0


def test_numba_is_imported_at_the_first_count():
    code = (
        "import sys, segbench.metrics.confusion, segbench.metrics.boundary;"
        "print([m for m in ('numba', 'scipy', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
