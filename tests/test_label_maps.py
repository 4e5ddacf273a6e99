"""Label maps of every integer type become canonical, label by label as a loop over Python integers says."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segbench.metrics.label_maps import prediction_labels, truth_labels

TYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">u2", ">i4", ">i8"]


@st.composite
def cases(draw):
    """(labels of some type, their values as Python integers, number of classes, void)"""
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    num_classes = draw(st.sampled_from([1, 2, 11, 100, 127, 128, 200, 254]))
    # What wraps around in a byte: one below zero, 256 and the classes above it, negative bytes, the ends of the type.
    near = [-1, 0, 1, num_classes - 1, num_classes, num_classes + 1, 255, 256, 257, 256 + num_classes, 65535, 65536]
    near += [low, high, -100, -128, -256, 2**32, 2**32 + 1]
    value = st.sampled_from([v for v in near if low <= v <= high])
    rows = draw(st.lists(st.lists(value, min_size=3, max_size=3), min_size=1, max_size=3))
    void = tuple(draw(st.lists(st.sampled_from([0, 1, 255, -1, 256, 65535]), max_size=3)))
    return np.array(rows, dtype), rows, num_classes, void


@settings(deadline=None, derandomize=True, database=None, max_examples=150)
@given(cases())
def test_predictions_equal_a_loop(case):
    labels, rows, num_classes, void = case
    kept = labels.copy()
    canonical = prediction_labels(labels, num_classes, void)
    assert canonical.dtype == np.uint8
    assert canonical.tolist() == [
        [v if 0 <= v < num_classes and v not in void else num_classes for v in r] for r in rows
    ]
    np.testing.assert_array_equal(labels, kept)


@settings(deadline=None, derandomize=True, database=None, max_examples=150)
@given(cases())
def test_truths_equal_a_loop(case):
    labels, rows, num_classes, void = case
    values = [v for row in rows for v in row]
    unknown = {v for v in values if not 0 <= v <= num_classes and v not in void}
    if unknown:
        with pytest.raises(ValueError, match="neither a class") as caught:
            truth_labels(labels, num_classes, void)
        named = str(caught.value).split(" are neither")[0]
        assert named == "labels " + ", ".join(f"{v} ({values.count(v)} px)" for v in sorted(unknown))
        return
    canonical = truth_labels(labels, num_classes, void)
    assert canonical.dtype == np.uint8
    assert canonical.tolist() == [
        [v if v < num_classes and v not in void and v >= 0 else num_classes for v in r] for r in rows
    ]


@pytest.mark.parametrize("canonical", [truth_labels, prediction_labels])
def test_a_canonical_map_is_not_copied(canonical):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    labels.flags.writeable = False
    assert np.shares_memory(canonical(labels, 11), labels)
    assert np.shares_memory(canonical(labels[:, ::-1], 11), labels)
    masks = np.eye(3, dtype=bool)
    assert np.shares_memory(canonical(masks, 2), masks)


@pytest.mark.parametrize("canonical", [truth_labels, prediction_labels])
@pytest.mark.parametrize("dtype", ["u1", "i8"])
def test_canonical_maps_stay_as_they_are(canonical, dtype):
    labels = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(dtype)
    once = canonical(labels, 11, tuple(range(12, 256)))
    assert once.max() == 11
    np.testing.assert_array_equal(canonical(once, 11), once)


def test_void_defaults():
    labels = np.array([[0, 255, 11, 10]])
    assert truth_labels(labels, 11).tolist() == [[0, 11, 11, 10]]
    assert prediction_labels(labels + 1, 11).tolist() == [[1, 11, 11, 11]]


def test_nothing_wraps_around():
    labels = np.array([[256, 257, -1, -256, 2**32, 2**40 + 3]])
    assert prediction_labels(labels, 11).tolist() == [[11] * 6]
    assert prediction_labels(np.array([[-100, -128, -1]], np.int8), 200).tolist() == [[200] * 3]
    with pytest.raises(ValueError, match="256"):
        truth_labels(labels[:, :1], 11)


def test_void_pixels_do_not_make_up_for_unknown_ones():
    for void in [(11,), (0, 255), (255, 255)]:
        with pytest.raises(ValueError, match=r"labels 12 \(1 px\) are"):
            truth_labels(np.array([[11, 11, 0, 12]]), 11, void)
        assert truth_labels(np.array([[11, 11, 1]]), 11, void).tolist() == [[11, 11, 1]]


def test_empty_maps():
    assert truth_labels(np.zeros((0, 4), np.int64), 11).shape == (0, 4)
    assert prediction_labels(np.zeros((4, 0), np.uint8), 11).dtype == np.uint8


def test_unknown_labels_are_named_with_their_pixels():
    labels = np.array([[12, -1, 12], [3, 255, 11]], np.int16)
    with pytest.raises(ValueError, match="neither") as caught:
        truth_labels(labels, 11)
    assert str(caught.value) == ("labels -1 (1 px), 12 (2 px) are neither a class (0 to 10) nor void (11, 255)")
    with pytest.raises(ValueError, match=r"19 \(1 px\) and 5 more are neither"):
        truth_labels(np.arange(12, 25, dtype=np.uint8)[None], 11)


@pytest.mark.parametrize("canonical", [truth_labels, prediction_labels])
def test_what_no_byte_can_hold(canonical):
    for num_classes in (0, 255, 1000):
        with pytest.raises(ValueError, match=f"{num_classes} classes; label maps hold 1 to 254"):
            canonical(np.zeros((2, 2), np.uint8), num_classes)
    with pytest.raises(ValueError, match="labels of type float32"):
        inspect.unwrap(canonical)(np.zeros((2, 2), np.float32), 11)
