"""Boundary counts against slow per-class oracles (SciPy's distance transform and maximum matching)."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from segbench.metrics import boundary
from segbench.metrics.boundary import Matching, boundary_counts, boundary_counts_of
from segbench.metrics.compiled import kernels

SIZES = [(1, 1), (1, 7), (7, 1), (3, 5), (17, 33), (45, 60)]
CLASSES = [2, 11, 37, 70]
KINDS = ["noise", "blobs", "constant", "void", "disjoint", "identical"]
TOLERANCES = [0, 1, 2, 20]
VOID = ["script", "copied", "touching", "band"]


@pytest.fixture(params=["numba", "numpy"])
def path(request, monkeypatch):
    monkeypatch.setenv("SEGBENCH_NO_NUMBA", "1" if request.param == "numpy" else "0")
    assert (kernels() is None) == (request.param == "numpy")


def labels(text):
    """A map drawn in digits; a dot is void (2 classes)."""
    return np.array([[2 if c == "." else int(c) for c in line] for line in text.split()], np.uint8)


def blobs(size, num_labels, rng):
    fields = gaussian_filter(rng.standard_normal((num_labels, *size)), (0, 2, 2))
    return fields.argmax(0).astype(np.uint8)


def maps(kind, size, num_classes, rng):
    """(truth, prediction), both with void except where it makes no sense."""
    if kind == "noise":
        return rng.integers(0, num_classes + 1, size, np.uint8), rng.integers(0, 256, size, np.uint8)
    if kind == "constant":
        return np.zeros(size, np.uint8), np.full(size, num_classes - 1, np.uint8)
    prediction = blobs(size, num_classes + 1, rng)
    if kind == "void":
        return np.full(size, num_classes, np.uint8), prediction
    if kind == "disjoint":
        half = num_classes // 2
        return prediction % half, half + prediction % half
    return (prediction if kind == "identical" else blobs(size, num_classes + 1, rng)), prediction


def class_boundary(map_, label):
    """The 2x2 rule on one class's own map."""
    padded = np.pad(map_ == label, ((0, 1), (0, 1)), mode="edge")
    windows = np.stack([padded[:-1, :-1], padded[1:, :-1], padded[:-1, 1:], padded[1:, 1:]])
    return windows.any(0) & ~windows.all(0)


def squared_distances(other):
    """To the nearest pixel of a boundary map; SciPy's transform is undefined without one."""
    if not other.any():
        return np.full(other.shape, 10**9)
    indices = distance_transform_edt(~other, return_distances=False, return_indices=True)
    return ((indices - np.indices(other.shape)) ** 2).sum(0)


def matched(one, other, tolerance_sq):
    """Size of SciPy's maximum matching; the half keeps the tree's float radius away from integers."""
    a, b = np.argwhere(one), np.argwhere(other)
    pairs = KDTree(a).sparse_distance_matrix(KDTree(b), (tolerance_sq + 0.5) ** 0.5, output_type="ndarray")
    graph = csr_array((np.ones(len(pairs)), (pairs["i"], pairs["j"])), shape=(len(a), len(b)))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def left_out(truth, num_classes, void, tolerance_sq):
    """The pixels where a policy counts no boundary, of either map."""
    is_void = truth >= num_classes
    if void == "touching":
        padded = np.pad(is_void, ((0, 1), (0, 1)), mode="edge")
        return padded[:-1, :-1] | padded[1:, :-1] | padded[:-1, 1:] | padded[1:, 1:]
    if void == "band":
        return squared_distances(is_void) <= tolerance_sq
    return np.zeros(truth.shape, bool)


def slow_counts(truth, prediction, num_classes, rule, tolerances, void="script"):
    """{tolerance_sq: counts}, class by class."""
    if void == "copied":
        prediction = prediction.copy()
        prediction[truth >= num_classes] = num_classes
    counts = {t: np.zeros((num_classes, 4), np.int64) for t in tolerances}
    keep = {t: ~left_out(truth, num_classes, void, t) for t in tolerances}
    for label in sorted({*truth.ravel().tolist(), *prediction.ravel().tolist()} & {*range(num_classes)}):
        of_prediction, of_truth = class_boundary(prediction, label), class_boundary(truth, label)
        for t in tolerances:
            found, expected = of_prediction & keep[t], of_truth & keep[t]
            hits, hit = (
                (found & (squared_distances(expected) <= t)).sum(),
                (expected & (squared_distances(found) <= t)).sum(),
            )
            if rule == "bsds" and hits:
                hits = hit = matched(found, expected, t)
            counts[t][label] = found.sum(), hits, expected.sum(), hit
    return counts


@pytest.mark.parametrize("num_classes", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_oracle_on_both_paths(kind, num_classes, monkeypatch):
    rng = np.random.default_rng(num_classes)
    for size in SIZES:
        truth, prediction = maps(kind, size, num_classes, rng)
        # One tolerance, in turn, for the larger maps: their oracle is slow.
        tolerances = TOLERANCES if size[0] * size[1] < 100 else [TOLERANCES[(num_classes + KINDS.index(kind)) % 4]]
        for rule in ("distance", "bsds"):
            for tolerance_sq, expected in slow_counts(truth, prediction, num_classes, rule, tolerances).items():
                for no_numba in "01":
                    monkeypatch.setenv("SEGBENCH_NO_NUMBA", no_numba)
                    counts = boundary_counts(truth, prediction, num_classes, rule, tolerance_sq)
                    np.testing.assert_array_equal(counts, expected, err_msg=f"{size} {rule} {tolerance_sq} {no_numba}")


@pytest.mark.parametrize("void", ["copied", "touching", "band"])
@pytest.mark.parametrize(("kind", "num_classes"), [("noise", 2), ("blobs", 11), ("void", 11), ("blobs", 37)])
def test_void_policies_equal_the_oracle(path, kind, num_classes, void):
    rng = np.random.default_rng(num_classes)
    for size in [(1, 1), (1, 9), (8, 1), (3, 5), (17, 33)]:
        truth, prediction = maps(kind, size, num_classes, rng)
        if kind == "noise":  # little void, or a band of it would leave nothing
            truth[rng.random(size) < 0.95] //= 2
        tolerances = [0, 2, 20] if kind == "blobs" else [2]
        for rule in ("distance", "bsds"):
            for tolerance_sq, expected in slow_counts(truth, prediction, num_classes, rule, tolerances, void).items():
                counts = boundary_counts(truth, prediction, num_classes, rule, tolerance_sq, void)
                np.testing.assert_array_equal(counts, expected, err_msg=f"{size} {rule} {tolerance_sq}")


def test_void_policies_by_hand(path):
    # In the truth 0 ends at x = 1 and 1 begins at x = 4, void between; the prediction goes from 0 to 1 behind x = 5.
    truth, prediction = labels("00..1111"), labels("00000011")

    def counts(void, tolerance_sq):
        return boundary_counts(truth, prediction, 2, "distance", tolerance_sq, void).tolist()

    # The edges of 0 and of 1 to void are boundaries, at x = 1 and 3; the prediction's lies at 5.
    assert counts("script", 4) == [[1, 0, 1, 0], [1, 1, 1, 1]]
    # With the truth's void the prediction is 0 0 . . 0 0 1 1: edges of 0 at 1, 3 and 5, of 1 at 5.
    assert counts("copied", 4) == [[3, 2, 1, 1], [1, 1, 1, 1]]
    # The windows of the truth at x = 1, 2, 3 hold void: its two boundary pixels go.
    assert counts("touching", 4) == [[1, 0, 0, 0], [1, 0, 0, 0]]
    # Void at x = 3 is two pixels from 5, so a tolerance of two pixels leaves that out as well.
    assert counts("band", 4) == [[0, 0, 0, 0], [0, 0, 0, 0]]
    assert counts("band", 1) == [[1, 0, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("void", VOID)
@pytest.mark.parametrize("tolerance_sq", [0, 2, 20])
def test_strips_change_nothing(path, monkeypatch, void, tolerance_sq):
    asked = [Matching("distance", tolerance_sq, void), Matching("bsds", tolerance_sq, void)]
    for num_classes, size in [(3, (45, 31)), (20, (30, 7)), (3, (1, 60))]:
        truth, prediction = maps("blobs", size, num_classes, np.random.default_rng(num_classes))
        counted = []
        for pixels in (1 << 18, 1, 5 * size[1]):  # the whole; strips of one row, or as many as the tolerance asks for
            monkeypatch.setattr(boundary, "STRIP_PIXELS", pixels)
            counted.append(boundary_counts_of(truth, prediction, num_classes, asked))
        np.testing.assert_array_equal(counted[1], counted[0])
        np.testing.assert_array_equal(counted[2], counted[0])
        assert np.any(counted[0]) or void == "band"


def test_matchings_counted_together_are_those_counted_alone(path):
    truth, prediction = maps("blobs", (45, 60), 11, np.random.default_rng(10))
    asked = [Matching(rule, t, void) for void in VOID for t in (2, 5) for rule in ("bsds", "distance")]
    together = boundary_counts_of(truth, prediction, 11, [*asked, asked[0]])
    assert len({counts.tobytes() for counts in together}) == len(asked)
    for matching, counts in zip([*asked, asked[0]], together, strict=True):
        np.testing.assert_array_equal(counts, boundary_counts(truth, prediction, 11, *matching))
    assert boundary_counts_of(truth, prediction, 11, []) == []


def test_maps_of_many_sizes_one_after_another(path):
    """The compiled kernels use their memory again: nothing of a larger map may shine through."""
    rng = np.random.default_rng(11)
    for num_classes, size, tolerance_sq in [(11, (45, 60), 20), (11, (5, 9), 2), (20, (9, 5), 2), (3, (17, 33), 0)] * 2:
        # Noise of 20 classes takes masks of 64 bits.
        truth, prediction = maps("noise" if num_classes == 20 else "blobs", size, num_classes, rng)
        expected = slow_counts(truth, prediction, num_classes, "bsds", [tolerance_sq])[tolerance_sq]
        for _ in range(2):
            counts = boundary_counts(truth, prediction, num_classes, "bsds", tolerance_sq)
            np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_maps_without_pixels(path, size):
    empty = np.zeros(size, np.uint8)
    for void in VOID:
        assert not boundary_counts(empty, empty, 3, "bsds", 2, void).any()


@pytest.mark.parametrize("num_classes", [16, 17, 64, 65, 150])
@pytest.mark.parametrize("rule", ["distance", "bsds"])
def test_groups_of_classes(path, rule, num_classes):
    """Where one mask ends and the next begins; nearly every class has a boundary in both maps."""
    rng = np.random.default_rng(num_classes)
    truth = rng.permutation(np.arange(18 * 18) % (num_classes + 1)).reshape(18, 18).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.5, truth, np.roll(truth, 1, axis=0))
    expected = slow_counts(truth, prediction, num_classes, rule, [1])[1]
    assert (expected[:, 0] > 0).mean() > 0.9
    np.testing.assert_array_equal(boundary_counts(truth, prediction, num_classes, rule, 1), expected)


@pytest.mark.parametrize("rule", ["distance", "bsds"])
def test_all_classes_of_a_byte_in_one_pair(path, rule):
    """254 classes at once: four groups of masks, whose edges towards one another must not be lost."""
    rng = np.random.default_rng(3)
    truth = rng.permutation(np.arange(24 * 24) % 255).reshape(24, 24).astype(np.uint8)
    prediction = np.roll(truth, 1, axis=1)
    expected = slow_counts(truth, prediction, 254, rule, [2])[2]
    assert (expected[:, 1] > 0).all()
    np.testing.assert_array_equal(boundary_counts(truth, prediction, 254, rule, 2), expected)


@pytest.mark.parametrize("rule", ["distance", "bsds"])
def test_tolerance_beyond_the_image(path, rule):
    truth, prediction = maps("blobs", (17, 33), 11, np.random.default_rng(4))
    counts = boundary_counts(truth, prediction, 11, rule, 10**6)
    np.testing.assert_array_equal(counts, slow_counts(truth, prediction, 11, rule, [10**6])[10**6])


def test_strips_of_a_tall_map(path):
    """More rows than fit into one strip of the compiled kernel, with boundaries across the strips' edges."""
    truth, prediction = maps("noise", (900, 300), 2, np.random.default_rng(5))
    truth[:] = np.where(np.arange(900)[:, None] % 97 < 50, truth // 2, 1)
    expected = slow_counts(truth, prediction, 2, "distance", [20])[20]
    np.testing.assert_array_equal(boundary_counts(truth, prediction, 2, "distance", 20), expected)


def test_two_by_two_rule_by_hand(path):
    # The crack between 0 and 1 marks the pixels to its upper left, for both classes; the frame marks none.
    truth = labels("0011 0011 0000")
    counts = boundary_counts(truth, truth, 2, "distance", 0)
    # (0,1) (1,1) beside the crack, (1,2) (1,3) above it.
    assert counts.tolist() == [[4, 4, 4, 4], [4, 4, 4, 4]]


def test_void_is_only_another_label(path):
    # Truth's edge to void is boundary of 0; void has no outline; the 0|1 edge predicted inside void is scored.
    counts = boundary_counts(labels("00...."), labels("000011"), 2, "distance", 0)
    assert counts.tolist() == [[1, 0, 1, 0], [1, 0, 0, 0]]


def test_rules_differ_where_two_pixels_share_one(path):
    # Prediction has boundaries of 0 at x = 1 and 3, truth only at 2; the tolerance is one pixel.
    truth, prediction = labels("000111"), labels("001100")
    assert boundary_counts(truth, prediction, 2, "distance", 1)[0].tolist() == [2, 2, 1, 1]
    assert boundary_counts(truth, prediction, 2, "bsds", 1)[0].tolist() == [2, 1, 1, 1]


def test_greedy_pairs_are_augmented(path):
    """Sparse boundaries, where pairing in raster order alone leaves pixels over."""
    rng = np.random.default_rng(6)
    truth, prediction = rng.integers(0, 2, (2, 40, 50), np.uint8) * (rng.random((2, 40, 50)) < 0.1)
    for tolerance_sq, expected in slow_counts(truth, prediction, 2, "bsds", [1, 2, 5, 9]).items():
        np.testing.assert_array_equal(boundary_counts(truth, prediction, 2, "bsds", tolerance_sq), expected)


def test_disks_of_many_shapes(path):
    """Few boundary pixels, far apart, so that each row of a disk decides about some of them."""
    rng = np.random.default_rng(12)
    truth, prediction = (rng.random((2, 60, 80)) < 0.002).astype(np.uint8)
    tolerances = [3, 8, 10, 13, 25, 45, 81, 130, 300, 700]
    for rule in ("distance", "bsds"):
        for tolerance_sq, expected in slow_counts(truth, prediction, 2, rule, tolerances).items():
            np.testing.assert_array_equal(boundary_counts(truth, prediction, 2, rule, tolerance_sq), expected)


@pytest.mark.parametrize("rule", ["distance", "bsds"])
def test_relabelling_permutes_the_counts(path, rule):
    rng = np.random.default_rng(7)
    truth, prediction = maps("blobs", (45, 60), 37, rng)
    order = np.append(rng.permutation(37), 37).astype(np.uint8)
    counts = boundary_counts(truth, prediction, 37, rule, 5)
    relabelled = boundary_counts(order[truth], order[prediction], 37, rule, 5)
    np.testing.assert_array_equal(relabelled[order[:37]], counts)


@pytest.mark.parametrize("rule", ["distance", "bsds"])
def test_identity_is_perfect(path, rule):
    truth, _ = maps("blobs", (45, 60), 11, np.random.default_rng(8))
    counts = boundary_counts(truth, truth.copy(), 11, rule, 0)
    assert counts.sum() > 0
    assert (counts == counts[:, :1]).all()


def test_read_only_and_strided_maps(path):
    truth, prediction = maps("blobs", (17, 33), 11, np.random.default_rng(9))
    expected = boundary_counts(truth.T.copy(), prediction[:, ::-1].T.copy(), 11, "distance", 2)
    truth.flags.writeable = False
    np.testing.assert_array_equal(boundary_counts(truth.T, prediction[:, ::-1].T, 11, "distance", 2), expected)


@pytest.mark.parametrize(
    ("size", "expected"),
    # 400x800: the tolerance is sqrt(45), 45 = 9 * 800000 / 160000, which floats miss; 400x400: sqrt(18).
    [((360, 480), 20), ((720, 960), 81), ((400, 800), 45), ((400, 400), 18), ((1, 1), 0)],
)
def test_tolerance_is_exact(size, expected):
    assert boundary.tolerance_squared(size, Fraction("0.75") / 100) == expected


@pytest.mark.parametrize("rule", ["bsds", "distance"])
@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        (np.zeros((2, 3), np.uint8), "truth of shape (2, 2), prediction of (2, 3)"),
        (np.zeros((2, 2), np.int64), "maps of uint8 and int64, not uint8"),
    ],
)
def test_maps_that_do_not_match_are_our_bug(path, prediction, words, rule):
    count = inspect.unwrap(boundary_counts_of)  # in production, where nothing checks the annotations
    with pytest.raises(AssertionError) as caught:
        count(np.zeros((2, 2), np.uint8), prediction, 2, [Matching(rule, 1)])
    assert words in str(caught.value)
    with pytest.raises(AssertionError):
        count(prediction, np.zeros((2, 2), np.uint8), 2, [Matching(rule, 1)])


def test_a_kernel_calls_kernels_of_its_own_file_only():
    """numba's cache looks at the file of the kernel that Python calls, so a change elsewhere would go unseen."""
    package = importlib.import_module("segbench.metrics.kernels")
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        compiled = [value for value in vars(module).values() if isinstance(value, Dispatcher)]
        assert {kernel.py_func.__module__ for kernel in compiled} <= {module.__name__}


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from segbench.metrics.boundary import boundary_counts_of, Matching, tolerance_squared
from segbench.metrics.confusion import confusion
from fractions import Fraction

kind, side = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)

def pair(side):
    # Filled row by row: a peak of their making would hide the counters'.
    width = 1 if kind == "noise" else 50
    maps = np.empty((2, side, side), np.uint8)
    for y in range(side):
        if y % width == 0:
            rows = [rng.integers(0, 12, side // width + 1, np.uint8).repeat(width)[:side] for _ in "tp"]
        maps[:, y] = rows
    return maps

def count(truth, prediction):
    tolerance_sq = tolerance_squared(truth.shape, Fraction(3, 400))
    confusion(truth, prediction, 11)
    return boundary_counts_of(truth, prediction, 11, [Matching("distance", tolerance_sq)])

def peak_kib():  # of this program alone: ru_maxrss also knows that of the program which started it
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

count(*pair(64))
truth, prediction = pair(side)
before = peak_kib()
count(truth, prediction)
print((peak_kib() - before) * 1024 / side**2)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read as Linux tells it")
@pytest.mark.parametrize("kind", ["noise", "tiles"])
def test_memory_of_a_large_pair(kind):
    """Peak memory above the two maps, in bytes a pixel, in a process of its own."""
    run = [sys.executable, "-c", MEMORY, kind, "6000"]
    result = subprocess.run(
        run, capture_output=True, text=True, check=True, env={**os.environ, "SEGBENCH_NO_NUMBA": "0"}
    )
    assert 0 < float(result.stdout) < 6
