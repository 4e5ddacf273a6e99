"""Region scores against values worked by hand, and against sets of pixels of the label maps themselves."""

from fractions import Fraction

import numpy as np
import pytest

from segbench.metrics import region
from segbench.metrics.confusion import confusion
from segbench.metrics.region import areas

# Two classes and void. Truth row 0: 3 right, 1 taken for 1, 2 for void; row 1: 4 right; 5 void pixels predicted as 0.
HAND = areas(np.array([[3, 1, 2], [0, 4, 0], [5, 0, 0]], np.int64))

OVERALL = [
    region.global_accuracy,
    region.class_accuracy,
    region.mean_iou,
    region.mean_dice,
    region.frequency_weighted_iou,
]
PER_CLASS = [
    region.per_class_accuracy,
    region.per_class_precision,
    region.per_class_iou,
    region.per_class_dice,
]


def test_areas_by_hand():
    # The 5 void pixels predicted as 0 are in no area; the 2 pixels of 0 predicted as void are in its truth only.
    assert HAND.tolist() == [[6, 4], [3, 5], [3, 4]]


def test_scores_by_hand():
    assert region.global_accuracy(HAND) == pytest.approx(7 / 10)
    np.testing.assert_allclose(region.per_class_accuracy(HAND), [3 / 6, 4 / 4])
    np.testing.assert_allclose(region.per_class_precision(HAND), [3 / 3, 4 / 5])
    np.testing.assert_allclose(region.per_class_iou(HAND), [3 / 6, 4 / 5])
    np.testing.assert_allclose(region.per_class_dice(HAND), [6 / 9, 8 / 9])
    assert region.class_accuracy(HAND) == pytest.approx(0.75)
    assert region.mean_iou(HAND) == pytest.approx(0.65)
    assert region.mean_dice(HAND) == pytest.approx(7 / 9)
    assert region.frequency_weighted_iou(HAND) == pytest.approx(0.6 * 0.5 + 0.4 * 0.8)


def test_classes_without_truth():
    # Class 1 is only predicted, class 2 is nowhere: 0 and undefined.
    found = areas(np.array([[6, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.int64))
    np.testing.assert_allclose(region.per_class_accuracy(found), [0.75, np.nan, np.nan])
    np.testing.assert_allclose(region.per_class_precision(found), [1, 0, np.nan])
    np.testing.assert_allclose(region.per_class_iou(found), [0.75, 0, np.nan])
    np.testing.assert_allclose(region.per_class_dice(found), [12 / 14, 0, np.nan])
    assert region.class_accuracy(found) == 0.75
    assert region.mean_iou(found) == 0.375
    assert region.mean_dice(found) == pytest.approx(6 / 14)
    assert region.frequency_weighted_iou(found) == 0.75


def test_a_class_that_is_never_predicted():
    found = areas(np.array([[0, 4, 0], [0, 6, 0], [0, 0, 0]], np.int64))
    np.testing.assert_allclose(region.per_class_precision(found), [np.nan, 0.6])
    np.testing.assert_allclose(region.per_class_accuracy(found), [0, 1])
    assert region.mean_iou(found) == pytest.approx(0.3)


@pytest.mark.parametrize("score", OVERALL)
def test_nothing_scored_is_nan(score):
    void = np.zeros((3, 3), np.int64)
    void[2, 0] = 9
    assert np.isnan(score(areas(void)))


def slow_scores(truth, prediction, num_classes):
    """The scores from sets of pixels, in fractions; None is undefined."""
    labels = list(zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True))
    valid = {i for i, (t, _) in enumerate(labels) if t != num_classes}
    expected = {score.__name__: [] for score in PER_CLASS}
    for c in range(num_classes):
        true = {i for i in valid if labels[i][0] == c}
        found = {i for i in valid if labels[i][1] == c}
        for score, part, whole in (
            ("per_class_accuracy", len(true & found), len(true)),
            ("per_class_precision", len(true & found), len(found)),
            ("per_class_iou", len(true & found), len(true | found)),
            ("per_class_dice", 2 * len(true & found), len(true) + len(found)),
        ):
            expected[score].append(Fraction(part, whole) if whole else None)
    frequency = [Fraction(sum(labels[i][0] == c for i in valid), len(valid)) for c in range(num_classes)]
    right = sum(labels[i][0] == labels[i][1] for i in valid)
    return expected | {
        "global_accuracy": Fraction(right, len(valid)),
        "class_accuracy": mean(expected["per_class_accuracy"]),
        "mean_iou": mean(expected["per_class_iou"]),
        "mean_dice": mean(expected["per_class_dice"]),
        "frequency_weighted_iou": sum(
            f * iou for f, iou in zip(frequency, expected["per_class_iou"], strict=True) if f
        ),
    }


def mean(values):
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined)


@pytest.mark.parametrize("num_classes", [2, 5, 11, 40])
@pytest.mark.parametrize("seed", range(4))
def test_equals_sets_of_pixels(num_classes, seed):
    """Classes missing in truth, in prediction and in both; void in both; predictions out of range."""
    rng = np.random.default_rng(seed)
    size = (13, 17) if seed else (3, 4)
    truth = rng.choice(rng.integers(0, num_classes + 1, 1 + num_classes // 2), size).astype(np.uint8)
    truth[0, 0] = 0  # not all void
    prediction = np.where(rng.random(size) < 0.4, truth, rng.integers(0, num_classes + 3, size)).astype(np.uint8)
    found = areas(confusion(truth, prediction, num_classes))
    for name, expected in slow_scores(truth, prediction, num_classes).items():
        expected = [np.nan if e is None else float(e) for e in (expected if isinstance(expected, list) else [expected])]
        np.testing.assert_allclose(np.atleast_1d(getattr(region, name)(found)), expected, rtol=1e-12, err_msg=name)


def random_areas(rng, batch=()):
    counts = rng.integers(0, 50, (*batch, 6, 6)) * (rng.random((*batch, 6, 6)) < 0.6)
    counts[..., 2, :] = 0
    return areas(counts)


@pytest.mark.parametrize("score", OVERALL + PER_CLASS)
def test_permuting_classes_permutes_the_scores(score):
    rng = np.random.default_rng(1)
    truth, prediction = rng.integers(0, 6, (2, 20, 30), np.uint8)
    order = np.append(rng.permutation(5), 5).astype(np.uint8)
    one = score(areas(confusion(truth, prediction, 5)))
    other = score(areas(confusion(order[truth], order[prediction], 5)))
    np.testing.assert_allclose(other[order[:5]] if score in PER_CLASS else other, one, rtol=1e-12)


@pytest.mark.parametrize("score", OVERALL + PER_CLASS)
def test_leading_axes_and_floats(score):
    stack = random_areas(np.random.default_rng(2), (2, 3))
    scores = score(stack)
    np.testing.assert_array_equal(score(stack.astype(np.float64)), scores)
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(scores[i], score(stack[i]))
    assert isinstance(score(HAND), float | np.ndarray)


def test_areas_of_images_add_up():
    counts = np.random.default_rng(3).integers(0, 50, (7, 6, 6))
    np.testing.assert_array_equal(areas(counts).sum(0), areas(counts.sum(0)))


def test_scores_of_one_pixel_set_agree():
    """Dice is 2 IoU / (1 + IoU), and the harmonic mean of accuracy and precision."""
    found = random_areas(np.random.default_rng(4), (50,))
    iou, dice = region.per_class_iou(found), region.per_class_dice(found)
    np.testing.assert_allclose(dice, 2 * iou / (1 + iou))
    recall, precision = region.per_class_accuracy(found), region.per_class_precision(found)
    some = recall + precision > 0
    assert some.any() and not some.all()
    np.testing.assert_allclose(dice[some], 2 / (1 / recall[some] + 1 / precision[some]))


def test_a_perfect_prediction():
    truth = np.random.default_rng(5).integers(0, 6, (9, 9), np.uint8)
    found = areas(confusion(truth, np.where(truth == 5, 3, truth).astype(np.uint8), 5))
    assert [score(found) for score in OVERALL] == [1.0] * 5


def test_counts_stay_exact_where_float32_does_not():
    stack = np.tile(np.array([[700_001, 0], [0, 0]], np.int64), (500, 1, 1))
    assert areas(stack.sum(0))[0, 0] == 350_000_500
    assert region.global_accuracy(areas(stack.sum(0))) == 1.0
