"""Boundary F1 read from counts: by hand for every average, and against loops that follow the definitions."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segbench.metrics import boundary_f1 as module
from segbench.metrics.averages import read_means
from segbench.metrics.boundary import boundary_counts
from segbench.metrics.boundary_f1 import Averaging, boundary_f1, facts, read

# Image 0: class 0 has P = 1/2, R = 1; class 1 is only predicted; class 2 is nowhere. Image 1: class 0 is found.
COUNTS = np.array(
    [
        [[4, 2, 3, 3], [5, 0, 0, 0], [0, 0, 0, 0]],
        [[6, 6, 6, 6], [0, 0, 0, 0], [0, 0, 0, 0]],
    ],
    np.int64,
)
EMPTY = np.zeros((1, 3, 4), np.int64)

AVERAGES = ["classes-then-images", "images-then-classes", "pooled-per-class", "pooled-per-image", "f-of-means"]
ALL = [Averaging(*names) for names in product(AVERAGES, ["either", "truth"], ["zero", "skip"])]


def test_f1_by_hand():
    np.testing.assert_allclose(module.boundary_f1_of_classes(COUNTS), [[2 / 3, 0, np.nan], [1, np.nan, np.nan]])
    np.testing.assert_allclose(read(facts(COUNTS)), [1 / 3, 1])
    assert boundary_f1(COUNTS) == pytest.approx(2 / 3)
    np.testing.assert_allclose(module.boundary_f1_per_class(COUNTS), [5 / 6, 0, np.nan])


def test_f1_by_hand_where_truth_decides():
    np.testing.assert_allclose(
        module.boundary_f1_of_classes(COUNTS, "truth"), [[2 / 3, np.nan, np.nan], [1, np.nan, np.nan]]
    )
    assert boundary_f1(COUNTS, presence="truth") == pytest.approx((2 / 3 + 1) / 2)
    np.testing.assert_allclose(module.boundary_f1_per_class(COUNTS, "truth"), [5 / 6, np.nan, np.nan])


@pytest.mark.parametrize(
    ("average", "presence", "value"),
    [
        # Classes of F 5/6 and 0; without the one only predicted, 5/6.
        ("images-then-classes", "either", 5 / 12),
        ("images-then-classes", "truth", 5 / 6),
        # Class 0: P = 8/10, R = 9/9, F = 16/18. Class 1: F = 0.
        ("pooled-per-class", "either", 4 / 9),
        ("pooled-per-class", "truth", 8 / 9),
        # Image 0: P = 2/9, R = 3/3, F = 4/11; without class 1 it is 2/3. Image 1: F = 1.
        ("pooled-per-image", "either", 15 / 22),
        ("pooled-per-image", "truth", 5 / 6),
        # P is 1/2, 0 and 1; R is 1, 0 (class 1 has no truth) and 1: means 1/2 and 2/3, F = 4/7.
        ("f-of-means", "either", 4 / 7),
        ("f-of-means", "truth", 6 / 7),
    ],
)
def test_averages_by_hand(average, presence, value):
    assert boundary_f1(COUNTS, average=average, presence=presence) == pytest.approx(value)


def test_an_image_without_boundaries():
    counts = np.concatenate([COUNTS, EMPTY])
    assert boundary_f1(counts) == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert boundary_f1(counts, empty="skip") == pytest.approx((1 / 3 + 1) / 2)
    assert boundary_f1(counts, average="pooled-per-image") == pytest.approx((4 / 11 + 1 + 0) / 3)
    assert boundary_f1(counts, average="pooled-per-image", empty="skip") == pytest.approx((4 / 11 + 1) / 2)
    for average, empty in product(["images-then-classes", "pooled-per-class", "f-of-means"], ["zero", "skip"]):
        assert boundary_f1(counts, average=average, empty=empty) == boundary_f1(COUNTS, average=average)


def test_an_image_whose_classes_are_only_predicted_is_empty_where_truth_decides():
    counts = np.concatenate([COUNTS[:, :1], np.array([[[5, 0, 0, 0]]])])
    assert boundary_f1(counts, presence="truth") == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert boundary_f1(counts, presence="truth", empty="skip") == pytest.approx((2 / 3 + 1) / 2)
    assert boundary_f1(counts, empty="skip") == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_precision_and_recall_by_hand():
    np.testing.assert_allclose(module.boundary_precision_per_class(COUNTS), [(1 / 2 + 1) / 2, 0, np.nan])
    np.testing.assert_allclose(module.boundary_recall_per_class(COUNTS), [1, np.nan, np.nan])
    np.testing.assert_allclose(module.boundary_precision_per_class(COUNTS, "truth"), [3 / 4, np.nan, np.nan])


def test_the_defaults_are_the_script():
    assert Averaging() == module.SCRIPT == ("classes-then-images", "either", "zero")
    assert boundary_f1(COUNTS) == boundary_f1(COUNTS, average="classes-then-images", presence="either", empty="zero")


@pytest.mark.parametrize("averaging", ALL, ids="/".join)
def test_no_images(averaging):
    assert np.isnan(boundary_f1(COUNTS[:0], **averaging._asdict()))
    zero = averaging.empty == "zero" and averaging.average in ("classes-then-images", "pooled-per-image")
    np.testing.assert_equal(boundary_f1(EMPTY, **averaging._asdict()), 0.0 if zero else np.nan)


def mean(values):
    return sum(values) / len(values) if values else np.nan


def slow_f1(n_pred, tp_pred, n_gt, tp_gt):
    precision = tp_pred / n_pred if n_pred else 0
    recall = tp_gt / n_gt if n_gt else 0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0


def slow_boundary_f1(counts, averaging):
    """Word by word from the module's docstring."""
    images = [
        {c: row for c, row in enumerate(image) if row[2] or (row[0] and averaging.presence == "either")}
        for image in counts.tolist()
    ]
    if averaging.average == "f-of-means":
        pairs = [row for image in images for row in image.values()]
        precision = mean([row[1] / row[0] if row[0] else 0 for row in pairs])
        recall = mean([row[3] / row[2] if row[2] else 0 for row in pairs])
        return 2 * precision * recall / (precision + recall) if precision + recall else 0
    if averaging.average in ("images-then-classes", "pooled-per-class"):
        classes = [[image[c] for image in images if c in image] for c in range(counts.shape[1])]
        if averaging.average == "images-then-classes":
            return mean([mean([slow_f1(*row) for row in rows]) for rows in classes if rows])
        return mean([slow_f1(*map(sum, zip(*rows, strict=True))) for rows in classes if rows])
    scored = [image for image in images if image or averaging.empty == "zero"]
    if averaging.average == "pooled-per-image":
        return mean([slow_f1(*map(sum, zip(*image.values(), strict=True))) if image else 0 for image in scored])
    return mean([mean([slow_f1(*row) for row in image.values()]) if image else 0 for image in scored])


@st.composite
def boundary_counts_of_images(draw):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    sizes = draw(arrays(np.int64, (*shape, 2), elements=st.sampled_from([0, 0, 1, 2, 7])))
    found = draw(arrays(np.float64, (*shape, 2), elements=st.sampled_from([0, 0.5, 1])))
    hits = (sizes * found).astype(np.int64) * (sizes > 0).all(-1, keepdims=True)  # none without the other map's pixels
    return np.stack([sizes[..., 0], hits[..., 0], sizes[..., 1], hits[..., 1]], axis=-1)


@settings(deadline=None, derandomize=True, database=None)
@given(counts=boundary_counts_of_images(), averaging=st.sampled_from(ALL))
def test_equals_loops_over_images_and_classes(counts, averaging):
    expected = slow_boundary_f1(counts, averaging)
    np.testing.assert_allclose(boundary_f1(counts, **averaging._asdict()), expected, rtol=1e-12)


def random_counts(rng, images=9, classes=4):
    """Some classes absent from truth, from prediction or from both; the last image is empty."""
    sizes = rng.integers(0, 30, (images, classes, 2)) * (rng.random((images, classes, 2)) < 0.7)
    sizes[-1] = 0
    hits = rng.integers(0, sizes + 1) * (sizes > 0).all(-1, keepdims=True)
    return np.stack([sizes[..., 0], hits[..., 0], sizes[..., 1], hits[..., 1]], axis=-1)


@pytest.mark.parametrize("averaging", ALL, ids="/".join)
def test_facts_add_up_and_are_never_nan(averaging):
    counts = random_counts(np.random.default_rng(0))
    numbers = facts(counts, averaging)
    assert np.isfinite(numbers).all()
    # Batches, images alone, and images drawn several times.
    np.testing.assert_array_equal(facts(counts[:4], averaging), numbers[:4])
    alone = [boundary_f1(counts[i : i + 1], **averaging._asdict()) for i in range(len(counts))]
    np.testing.assert_allclose(read(numbers, averaging), alone, rtol=1e-12)
    drawn = np.random.default_rng(1).integers(0, len(counts), (5, 2, 12))
    resampled = read(numbers[drawn].sum(2), averaging)
    assert np.shape(resampled) == (5, 2)
    for i in np.ndindex(5, 2):
        np.testing.assert_allclose(resampled[i], boundary_f1(counts[drawn[i]], **averaging._asdict()), rtol=1e-12)


@pytest.mark.parametrize("averaging", ALL, ids="/".join)
def test_order_of_classes_and_images_does_not_matter(averaging):
    rng = np.random.default_rng(2)
    counts = random_counts(rng)
    one, other = (boundary_f1(c, **averaging._asdict()) for c in (counts, rng.permutation(counts)[:, ::-1]))
    assert one == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("statistic", ["f1", "precision", "recall"])
def test_class_facts_are_the_means_of_classes(statistic):
    counts = random_counts(np.random.default_rng(3))
    numbers = module.class_facts(counts, statistic)
    assert np.isfinite(numbers).all()
    per_class = getattr(module, f"boundary_{statistic}_per_class")(counts)
    np.testing.assert_array_equal(read_means(numbers.sum(0)), per_class)
    n_pred, _, n_gt, _ = counts.transpose(2, 0, 1)
    for c in range(counts.shape[1]):
        defined = {"f1": n_pred + n_gt, "precision": n_pred, "recall": n_gt}[statistic][:, c] > 0
        part, whole = {"f1": (0, 0), "precision": (1, 0), "recall": (3, 2)}[statistic]
        rows = counts[defined, c].tolist()
        values = [slow_f1(*row) if statistic == "f1" else row[part] / row[whole] for row in rows]
        assert per_class[c] == pytest.approx(mean(values))


def test_of_label_maps():
    """A shifted edge within the tolerance is found; two constant maps that agree score 0 or nothing."""
    truth, prediction = np.zeros((2, 8, 8), np.uint8)
    truth[:, 4:], prediction[:, 5:] = 1, 1
    found = np.stack([boundary_counts(truth, prediction, 2, "bsds", 1), boundary_counts(truth, truth, 2, "bsds", 0)])
    assert boundary_f1(found) == 1.0
    missed = boundary_counts(truth, prediction, 2, "bsds", 0)[None]
    assert boundary_f1(missed) == 0.0
    constant = boundary_counts(truth * 0, truth * 0, 2, "bsds", 1)[None]
    assert boundary_f1(constant) == 0.0
    assert np.isnan(boundary_f1(constant, empty="skip"))
