"""The order of images: each once an epoch under every rule, from its number alone; epochs in iterations."""

from typing import Any

import numpy as np
import pytest

from segbench.engine.order import batch_indices, passes_per_epoch, with_length
from segbench.engine.recipe import Recipe
from segbench.errors import SettingError

PINNED = [1, 4, 2, 0, 3, 1, 0, 3, 2, 4]
"""Two epochs of 5 images at seed 3."""

SIZES = [(10, 4), (10, 5), (10, 10), (10, 1), (1, 1), (7, 3)]


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 4} | changes)


def passes(count: int, size: int, rule: Any, seed: int, numbers: range) -> list[list[int]]:
    return [batch_indices(count, size, rule, seed, number) for number in numbers]


def flat(batches: list[list[int]]) -> list[int]:
    return [image for batch in batches for image in batch]


def epochs(count: int, seed: int, number: int) -> list[int]:
    """The stream, written out: NumPy promises to keep what RandomState draws."""
    return [int(i) for epoch in range(number) for i in np.random.RandomState((seed, epoch)).permutation(count)]


def test_the_order_is_pinned() -> None:
    assert epochs(5, 3, 2) == PINNED
    assert flat(passes(5, 2, "wrap", 3, range(5))) == PINNED


@pytest.mark.parametrize(("count", "size"), [*SIZES, (3, 8)])
def test_wrap_is_one_epoch_after_another_in_full_batches(count: int, size: int) -> None:
    found = passes(count, size, "wrap", 5, range(3 * count))
    assert {len(batch) for batch in found} == {size}
    assert flat(found) == epochs(count, 5, 3 * size)


@pytest.mark.parametrize(("count", "size"), [*SIZES, (3, 8)])
def test_keep_shows_each_image_once_an_epoch(count: int, size: int) -> None:
    each = passes_per_epoch(count, size, "keep")
    found = passes(count, size, "keep", 5, range(3 * each))
    assert flat(found) == epochs(count, 5, 3)
    short = count % size or size
    for epoch in range(3):
        lengths = [len(batch) for batch in found[epoch * each : (epoch + 1) * each]]
        assert lengths[:-1] == [size] * (each - 1) and lengths[-1] == min(short, count)


@pytest.mark.parametrize(("count", "size"), SIZES)
def test_drop_leaves_out_the_end_of_each_epoch(count: int, size: int) -> None:
    each = passes_per_epoch(count, size, "drop")
    assert each == count // size
    found = passes(count, size, "drop", 5, range(3 * each))
    whole = epochs(count, 5, 3)
    assert flat(found) == flat([whole[e * count : e * count + each * size] for e in range(3)])
    assert {len(batch) for batch in found} == {size}


@pytest.mark.parametrize("rule", ["wrap", "keep", "drop"])
def test_a_pass_depends_on_its_number_and_the_seed_alone(rule: Any) -> None:
    forward = passes(10, 3, rule, 7, range(20))
    assert [batch_indices(10, 3, rule, 7, number) for number in reversed(range(20))] == forward[::-1]
    assert passes(10, 3, rule, 8, range(20)) != forward
    first, second = (sorted(flat(forward[e * 3 : e * 3 + 3])) for e in (0, 1))
    assert rule == "wrap" or forward[:3] != forward[3:6]
    assert rule != "drop" or (len(set(first)), len(set(second))) == (9, 9)


@pytest.mark.parametrize(
    ("rule", "accumulate", "expected"),
    [
        # 3 epochs of 10 images in batches of 4: 7.5 passes; 3 * 3 passes; 3 * 2 passes.
        ("wrap", 1, 8), ("wrap", 2, 4), ("wrap", 3, 3),
        ("keep", 1, 9), ("keep", 2, 5), ("keep", 9, 1),
        ("drop", 1, 6), ("drop", 4, 2), ("drop", 6, 1),
    ],
)  # fmt: skip
def test_epochs_become_iterations(rule: str, accumulate: int, expected: int) -> None:
    asked = recipe(epochs=3, last_batch=rule, accumulate=accumulate)
    given = with_length(asked, 10)
    assert (given.iterations, given.epochs) == (expected, 3)
    assert given.model_dump(exclude={"iterations"}) == asked.model_dump(exclude={"iterations"})
    assert with_length(given, 10) == given


def test_iterations_stay() -> None:
    asked = recipe(iterations=7, validate_every=7)
    assert with_length(asked, 2) is asked
    # Millions of images are no reason to be a float off.
    assert with_length(recipe(epochs=3, batch_size=1), 2**60 + 1).iterations == 3 * (2**60 + 1)


@pytest.mark.parametrize("length", [{"epochs": 3}, {"iterations": 3}])
def test_drop_with_fewer_images_than_a_batch_is_refused(length: dict[str, int]) -> None:
    words = r"recipe\.last_batch is drop, but the 3 training images are fewer than recipe\.batch_size \(4\)"
    with pytest.raises(SettingError, match=words):
        with_length(recipe(last_batch="drop", **length), 3)
    with_length(recipe(last_batch="drop", **length), 4)


def test_a_validation_that_never_comes_is_refused() -> None:
    words = r"validate_every \(9\) is more than the 8 iterations of 3 epochs over 10 images.*lower validate_every"
    with pytest.raises(SettingError, match=words):
        with_length(recipe(epochs=3, validate_every=9), 10)
    assert with_length(recipe(epochs=3, validate_every=8), 10).iterations == 8


def test_what_cannot_be_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="pass -1 over 3"):
        batch_indices(3, 2, "wrap", 0, -1)
    with pytest.raises(AssertionError, match="3 images has no batch of 4"):
        batch_indices(3, 4, "drop", 0, 0)
    with pytest.raises(AssertionError, match="no passes of their own"):
        passes_per_epoch(10, 4, "wrap")
