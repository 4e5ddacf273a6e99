"""Boundary IoU: its bands against an erosion of each class's mask, its readings by hand and by loops."""

import inspect

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter

from segbench.metrics import boundary_iou as module
from segbench.metrics.boundary_iou import band_counts, band_map, boundary_iou, boundary_iou_per_class, facts, read
from segbench.metrics.compiled import kernels

SIZES = [(1, 1), (1, 7), (7, 1), (3, 5), (4, 4), (17, 33), (45, 60)]
WIDTHS = [1, 2, 3, 7, 100]
KINDS = ["noise", "blobs", "constant", "void", "disjoint", "identical"]
AVERAGES = ["pooled-per-class", "images-then-classes", "classes-then-images"]


@pytest.fixture(params=["numba", "numpy"])
def path(request, monkeypatch):
    monkeypatch.setenv("SEGBENCH_NO_NUMBA", "1" if request.param == "numpy" else "0")
    assert (kernels() is None) == (request.param == "numpy")


def labels(text):
    """A map drawn in digits; a dot is void (2 classes)."""
    return np.array([[2 if c == "." else int(c) for c in line] for line in text.split()], np.uint8)


def blobs(size, num_labels, rng):
    return gaussian_filter(rng.standard_normal((num_labels, *size)), (0, 4, 4)).argmax(0).astype(np.uint8)


def maps(kind, size, num_classes, rng):
    """(truth, prediction), both with void except where it makes no sense."""
    if kind == "noise":  # mostly one label, so that some windows are constant
        truth = np.where(rng.random(size) < 0.9, 0, rng.integers(0, num_classes + 1, size))
        return truth.astype(np.uint8), np.where(rng.random(size) < 0.9, 1, rng.integers(0, 256, size)).astype(np.uint8)
    if kind == "constant":
        return np.zeros(size, np.uint8), np.full(size, num_classes - 1, np.uint8)
    prediction = blobs(size, num_classes + 1, rng)
    if kind == "void":
        return np.full(size, num_classes, np.uint8), prediction
    if kind == "disjoint":
        half = num_classes // 2
        return prediction % half, half + prediction % half
    return (prediction if kind == "identical" else blobs(size, num_classes + 1, rng)), prediction


def slow_counts(truth, prediction, num_classes, width_px):
    """Class by class: a mask less its erosion, with nothing outside of the image."""
    counts = np.zeros((num_classes, 3), np.int64)
    for c in {*truth.ravel().tolist(), *prediction.ravel().tolist()} & {*range(num_classes)}:
        masks = [prediction == c, truth == c]
        square = np.ones((3, 3), bool)
        found, true = (m & ~binary_erosion(m, square, iterations=width_px, border_value=0) for m in masks)
        counts[c] = found.sum(), true.sum(), (found & true).sum()
    return counts


@pytest.mark.parametrize("num_classes", [2, 11, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_erosion_on_both_paths(kind, num_classes, monkeypatch):
    rng = np.random.default_rng(num_classes)
    inner = 0
    for size in SIZES:
        truth, prediction = maps(kind, size, num_classes, rng)
        for width_px in WIDTHS:
            expected = slow_counts(truth, prediction, num_classes, width_px)
            inner += (truth < num_classes).sum() - expected[:, 1].sum()
            for no_numba in "01":
                monkeypatch.setenv("SEGBENCH_NO_NUMBA", no_numba)
                counts = band_counts(truth, prediction, num_classes, width_px)
                assert counts.dtype == np.int64
                np.testing.assert_array_equal(counts, expected, err_msg=f"{size} {width_px} {no_numba}")
    assert inner > 0 or kind == "void"  # some pixels lie in no band


def test_bands_by_hand(path):
    # One pixel along the frame and both sides of the edge, in eight directions: inner are the middles of the squares.
    truth = labels("0000011 0000011 0000011 0000011 1111111")
    assert band_map(truth, 2, 1).tolist() == labels("0000011 0...011 0...011 0000011 1111111").tolist()
    assert (band_map(truth, 2, 2) == truth).all()  # no 5x5 window holds one label alone


def test_counts_by_hand(path):
    truth, prediction = labels("00011 00011 00011"), labels("00001 00001 00001")
    # Bands: truth's 0 is all but its middle (1, 1), the prediction's 0 all but (1, 1) and (1, 2); 1 is all band.
    assert band_counts(truth, prediction, 2, 1).tolist() == [[10, 8, 7], [3, 6, 3]]


def test_void_is_only_another_label(path):
    # Void gives 0 a band and has none; the prediction inside void is scored. Inner: 2x2 pixels of the truth's 0, 2x4 of
    # the prediction's, of which 2x3 are 0 in the truth.
    truth, prediction = labels("0000.... " * 4), labels("00000011 " * 4)
    expected = [[4 * 6 - 2 * 4, 4 * 4 - 2 * 2, 4 * 4 - 2 * 3], [8, 0, 0]]
    assert band_counts(truth, prediction, 2, 1).tolist() == expected
    counts = band_counts(truth, truth, 2, 1)
    assert counts.tolist() == [[12, 12, 12], [0, 0, 0]]


def test_predictions_out_of_range_are_void(path):
    truth, prediction = maps("noise", (17, 33), 11, np.random.default_rng(1))
    clipped = np.minimum(prediction, 11).astype(np.uint8)
    assert prediction.max() > 11
    np.testing.assert_array_equal(band_counts(truth, prediction, 11, 2), band_counts(truth, clipped, 11, 2))


def test_all_classes_of_a_byte_in_one_pair(path):
    """254 classes of 6x6 pixels, with 4x4 inner ones each."""
    truth = np.kron((np.arange(256) % 255).reshape(16, 16), np.ones((6, 6))).astype(np.uint8)
    prediction = np.roll(truth, 1, axis=1)
    counts = band_counts(truth, prediction, 254, 1)
    np.testing.assert_array_equal(counts, slow_counts(truth, prediction, 254, 1))
    assert (counts[1:, 1] == 20).all()


@pytest.mark.parametrize("width_px", [1, 6, 40])
def test_strips_of_a_large_map(path, width_px, monkeypatch):
    """Inner pixels on both sides of the strips' edges."""
    monkeypatch.setattr(module, "STRIP_PIXELS", 1 << 12)
    rng = np.random.default_rng(2)
    truth, prediction = (np.kron(rng.integers(0, 3, (6, 3)), np.ones((150, 100))).astype(np.uint8) for _ in "tp")
    truth[rng.integers(0, 900, 5), rng.integers(0, 300, 5)] = 3
    counts = band_counts(truth, prediction, 3, width_px)
    np.testing.assert_array_equal(counts, slow_counts(truth, prediction, 3, width_px))
    assert counts[:, 1].sum() < truth.size


def test_read_only_and_strided_maps(path):
    truth, prediction = maps("blobs", (33, 45), 3, np.random.default_rng(3))
    expected = band_counts(truth.T.copy(), prediction[:, ::-1].T.copy(), 3, 2)
    truth.flags.writeable = False
    kept = truth.copy()
    np.testing.assert_array_equal(band_counts(truth.T, prediction[:, ::-1].T, 3, 2), expected)
    np.testing.assert_array_equal(truth, kept)


def test_relabelling_permutes_and_swapping_swaps(path):
    rng = np.random.default_rng(4)
    truth, prediction = maps("blobs", (45, 60), 11, rng)
    order = np.append(rng.permutation(11), 11).astype(np.uint8)
    counts = band_counts(truth, prediction, 11, 3)
    np.testing.assert_array_equal(band_counts(order[truth], order[prediction], 11, 3)[order[:11]], counts)
    np.testing.assert_array_equal(band_counts(prediction, truth, 11, 3), counts[:, [1, 0, 2]])


def test_a_band_as_wide_as_the_image_is_the_mask(path):
    truth, prediction = maps("blobs", (20, 30), 4, np.random.default_rng(5))
    expected = [
        [(prediction == c).sum(), (truth == c).sum(), ((truth == c) & (prediction == c)).sum()] for c in range(4)
    ]
    assert band_counts(truth, prediction, 4, 10).tolist() == np.array(expected).tolist()


@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        (np.zeros((2, 3), np.uint8), "truth of shape (2, 2), prediction of (2, 3)"),
        (np.zeros((2, 2), np.int64), "maps of uint8 and int64, not uint8"),
    ],
)
def test_maps_that_do_not_match_are_our_bug(path, prediction, words):
    count = inspect.unwrap(band_counts)  # in production, where nothing checks the annotations
    with pytest.raises(AssertionError) as caught:
        count(np.zeros((2, 2), np.uint8), prediction, 2, 1)
    assert words in str(caught.value)
    with pytest.raises(AssertionError):
        count(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), 2, 0)


# Image 0: class 0 has an IoU of 2 / (4 + 6 - 2), class 1 is only predicted, class 2 is nowhere. Image 1: 0 is found.
COUNTS = np.array([[[4, 6, 2], [5, 0, 0], [0, 0, 0]], [[6, 6, 6], [0, 0, 0], [0, 0, 0]]], np.int64)


def test_readings_by_hand():
    assert boundary_iou(COUNTS) == pytest.approx((8 / 14 + 0) / 2)
    np.testing.assert_allclose(boundary_iou_per_class(COUNTS), [8 / 14, 0, np.nan])
    assert boundary_iou(COUNTS, average="images-then-classes") == pytest.approx(((1 / 4 + 1) / 2 + 0) / 2)
    np.testing.assert_allclose(boundary_iou_per_class(COUNTS, average="images-then-classes"), [5 / 8, 0, np.nan])
    assert boundary_iou(COUNTS, average="classes-then-images") == pytest.approx(((1 / 4 + 0) / 2 + 1) / 2)


@pytest.mark.parametrize("average", AVERAGES)
def test_images_without_bands_are_left_out(average):
    more = np.concatenate([COUNTS, np.zeros((1, 3, 3), np.int64)])
    assert boundary_iou(more, average=average) == boundary_iou(COUNTS, average=average)
    assert np.isnan(boundary_iou(more[2:], average=average))
    assert np.isnan(boundary_iou(more[:0], average=average))


@pytest.mark.parametrize("average", AVERAGES)
def test_facts_add_up_and_are_never_nan(average):
    rng = np.random.default_rng(6)
    found = rng.integers(0, 20, (9, 4)) * (rng.random((9, 4)) < 0.6)
    true = rng.integers(0, 20, (9, 4)) * (rng.random((9, 4)) < 0.6)
    counts = np.stack([found, true, rng.integers(0, np.minimum(found, true) + 1)], axis=-1)
    numbers = facts(counts, average)
    assert np.isfinite(numbers).all()
    drawn = rng.integers(0, 9, (5, 2, 12))
    resampled = read(numbers[drawn].sum(2), average)
    assert np.shape(resampled) == (5, 2)
    for i in np.ndindex(5, 2):
        np.testing.assert_allclose(resampled[i], boundary_iou(counts[drawn[i]], average=average), rtol=1e-12)


def test_the_same_maps_score_1(path):
    truth, _ = maps("blobs", (45, 60), 11, np.random.default_rng(7))
    counts = band_counts(truth, truth.copy(), 11, 3)[None]
    assert [boundary_iou(counts, average=average) for average in AVERAGES] == [1.0] * 3
