"""Normalised surface distance by hand, and against distances from every pixel of a contour to the other contour."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from segbench.metrics.averages import read_means
from segbench.metrics.boundary import boundary_counts
from segbench.metrics.boundary_f1 import boundary_f1_of_classes
from segbench.metrics.surface import (
    facts,
    read,
    surface_distance,
    surface_distance_of_classes,
    surface_distance_per_class,
)

# Image 0: class 0 has (2 + 3) of (4 + 6), class 1 is only predicted, class 2 is nowhere. Image 1: class 0 is found.
COUNTS = np.array([[[4, 2, 6, 3], [5, 0, 0, 0], [0, 0, 0, 0]], [[6, 6, 6, 6], [0, 0, 0, 0], [0, 0, 0, 0]]], np.int64)
AVERAGES = ["classes-then-images", "images-then-classes"]


def test_by_hand():
    np.testing.assert_allclose(surface_distance_of_classes(COUNTS), [[0.5, 0, np.nan], [1, np.nan, np.nan]])
    assert surface_distance(COUNTS) == pytest.approx((0.25 + 1) / 2)
    assert surface_distance(COUNTS, average="images-then-classes") == pytest.approx((0.75 + 0) / 2)
    np.testing.assert_allclose(surface_distance_per_class(COUNTS), [0.75, 0, np.nan])


def test_longer_contours_weigh_more_than_in_f1():
    counts = np.array([[[9, 9, 1, 0]]])  # all of 9 predicted pixels are found, the true one is not
    assert surface_distance(counts) == pytest.approx(0.9)
    assert boundary_f1_of_classes(counts)[0, 0] == 0


@pytest.mark.parametrize("average", AVERAGES)
def test_images_without_boundaries_are_left_out(average):
    more = np.concatenate([COUNTS, np.zeros((1, 3, 4), np.int64)])
    assert surface_distance(more, average=average) == surface_distance(COUNTS, average=average)
    assert np.isnan(surface_distance(more[2:], average=average))
    assert np.isnan(surface_distance(more[:0], average=average))


@pytest.mark.parametrize("average", AVERAGES)
def test_facts_add_up_and_are_never_nan(average):
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 30, (9, 4, 2)) * (rng.random((9, 4, 2)) < 0.7)
    hits = rng.integers(0, sizes + 1) * (sizes > 0).all(-1, keepdims=True)
    counts = np.stack([sizes[..., 0], hits[..., 0], sizes[..., 1], hits[..., 1]], axis=-1)
    numbers = facts(counts, average)
    assert np.isfinite(numbers).all()
    drawn = rng.integers(0, 9, (5, 2, 12))
    resampled = read(numbers[drawn].sum(2), average)
    assert np.shape(resampled) == (5, 2)
    for i in np.ndindex(5, 2):
        np.testing.assert_allclose(resampled[i], surface_distance(counts[drawn[i]], average=average), rtol=1e-12)
    classes = read_means(facts(counts, "images-then-classes")[drawn].sum(2))
    np.testing.assert_allclose(classes[1, 1], surface_distance_per_class(counts[drawn[1, 1]]), rtol=1e-12)


def contour(mask):
    """Places of the pixels whose 2x2 window, with the last row and column repeated, is mixed."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    windows = np.stack([padded[:-1, :-1], padded[1:, :-1], padded[:-1, 1:], padded[1:, 1:]])
    return np.argwhere(windows.any(0) & ~windows.all(0))


@pytest.mark.parametrize("tolerance_sq", [0, 1, 5])
def test_equals_all_distances_between_contours(tolerance_sq):
    rng = np.random.default_rng(1)
    truth, prediction = gaussian_filter(rng.standard_normal((2, 5, 30, 40)), (0, 0, 3, 3)).argmax(1).astype(np.uint8)
    values = surface_distance_of_classes(boundary_counts(truth, prediction, 6, "distance", tolerance_sq))
    for c in range(6):
        one, other = contour(prediction == c), contour(truth == c)
        squared = cdist(one, other, "sqeuclidean")
        hits = (squared.min(1) <= tolerance_sq).sum() + (squared.min(0) <= tolerance_sq).sum() if squared.size else 0
        expected = hits / (len(one) + len(other)) if len(one) + len(other) else np.nan
        np.testing.assert_allclose(values[c], expected)
    assert np.isnan(values[5]) and not np.isnan(values[:5]).any()
