"""Boundary counts against slow per-class oracles (SciPy's distance transform and maximum matching)."""

import inspect
from fractions import Fraction

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from segbench.metrics import boundary
from segbench.metrics.boundary import boundary_counts
from segbench.metrics.compiled import kernels

SIZES = [(1, 1), (1, 7), (7, 1), (3, 5), (17, 33), (45, 60)]
CLASSES = [2, 11, 20, 37, 70]
KINDS = ["noise", "blobs", "constant", "void", "disjoint", "identical"]
TOLERANCES = [0, 1, 2, 20]


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


def slow_counts(truth, prediction, num_classes, rule, tolerances):
    """{tolerance_sq: counts}, class by class."""
    counts = {t: np.zeros((num_classes, 4), np.int64) for t in tolerances}
    for label in sorted({*truth.ravel().tolist(), *prediction.ravel().tolist()} & {*range(num_classes)}):
        found, expected = class_boundary(prediction, label), class_boundary(truth, label)
        from_truth, from_prediction = squared_distances(expected), squared_distances(found)
        for t in tolerances:
            hits, hit = (found & (from_truth <= t)).sum(), (expected & (from_prediction <= t)).sum()
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
        # One tolerance, in turn, for the largest map: its oracle is slow.
        tolerances = TOLERANCES if size != SIZES[-1] else [TOLERANCES[(num_classes + KINDS.index(kind)) % 4]]
        for rule in ("distance", "bsds"):
            for tolerance_sq, expected in slow_counts(truth, prediction, num_classes, rule, tolerances).items():
                for no_numba in "01":
                    monkeypatch.setenv("SEGBENCH_NO_NUMBA", no_numba)
                    counts = boundary_counts(truth, prediction, num_classes, rule, tolerance_sq)
                    np.testing.assert_array_equal(counts, expected, err_msg=f"{size} {rule} {tolerance_sq} {no_numba}")


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
    assert boundary.boundary_f1(counts[None]) == 1.0


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


# Image 0: class 0 has P = 1/2, R = 1; class 1 is only predicted; class 2 is nowhere. Image 1: class 0 is found.
F1_COUNTS = np.array(
    [
        [[4, 2, 3, 3], [5, 0, 0, 0], [0, 0, 0, 0]],
        [[6, 6, 6, 6], [0, 0, 0, 0], [0, 0, 0, 0]],
    ],
    np.int64,
)


def test_f1_by_hand():
    np.testing.assert_allclose(boundary.boundary_f1_of_classes(F1_COUNTS), [[2 / 3, 0, np.nan], [1, np.nan, np.nan]])
    np.testing.assert_allclose(boundary.boundary_f1_of_images(F1_COUNTS), [1 / 3, 1])
    assert boundary.boundary_f1(F1_COUNTS) == pytest.approx(2 / 3)
    np.testing.assert_allclose(boundary.boundary_f1_per_class(F1_COUNTS), [5 / 6, 0, np.nan])


def test_an_image_without_boundaries_scores_0_and_counts():
    counts = np.concatenate([F1_COUNTS, np.zeros((1, 3, 4), np.int64)])
    assert boundary.boundary_f1(counts) == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert np.isnan(boundary.boundary_f1(counts[:0]))


@pytest.mark.parametrize("rule", ["bsds", "distance"])
@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        (np.zeros((2, 3), np.uint8), "truth of shape (2, 2), prediction of (2, 3)"),
        (np.zeros((2, 2), np.int64), "maps of uint8 and int64, not uint8"),
    ],
)
def test_maps_that_do_not_match_are_our_bug(path, prediction, words, rule):
    count = inspect.unwrap(boundary_counts)  # in production, where nothing checks the annotations
    with pytest.raises(AssertionError) as caught:
        count(np.zeros((2, 2), np.uint8), prediction, 2, rule, 1)
    assert words in str(caught.value)
    with pytest.raises(AssertionError):
        count(prediction, np.zeros((2, 2), np.uint8), 2, rule, 1)
