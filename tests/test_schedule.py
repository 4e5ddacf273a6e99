"""Schedules: tables of factors worked by hand, and what is said of settings that make no schedule."""

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from segbench.engine.recipe import Recipe
from segbench.engine.schedule import Cosine, Fixed, Poly, Schedule, Step, factor

STEP = {"name": "step", "every": 3, "factor": 0.1}
POLY = {"name": "poly", "power": 2}
COSINE = {"name": "cosine", "end": 0.2}
HALF = math.sqrt(0.5)


def read(given: Any) -> Any:
    return TypeAdapter(Schedule).validate_python(given)


@pytest.mark.parametrize(
    ("given", "table"),
    [
        ("fixed", [1, 1, 1, 1]),
        ({"name": "fixed", "warmup": 3}, [1 / 4, 2 / 4, 3 / 4, 1, 1]),
        ({"name": "fixed", "warmup": 9}, [0.1, 0.2, 0.3]),  # longer than the training
        (STEP, [1, 1, 1, 0.1, 0.1, 0.1, 0.01]),
        (STEP | {"warmup": 4}, [0.2, 0.4, 0.6, 0.08, 0.1, 0.1, 0.01]),
        (POLY, [1, 9 / 16, 4 / 16, 1 / 16]),
        (POLY | {"warmup": 1}, [1 / 2, 9 / 16, 4 / 16, 1 / 16]),
        ({"name": "poly", "power": 0.5, "warmup": 2}, [1 / 3, 2 / 3 * math.sqrt(0.75), HALF, 0.5]),
        # 0.2 + 0.8 * (1 + cos(0, 45, 90, 135 degrees)) / 2
        (COSINE, [1, 0.6 + 0.4 * HALF, 0.6, 0.6 - 0.4 * HALF]),
        (COSINE | {"warmup": 2}, [1 / 3, 2 / 3 * (0.6 + 0.4 * HALF), 0.6, 0.6 - 0.4 * HALF]),
        ("cosine", [1, (1 + HALF) / 2, 0.5, (1 - HALF) / 2]),
    ],
)
def test_a_schedule_is_a_table_of_factors(given: Any, table: list[float]) -> None:
    schedule = read(given)
    found = [factor(schedule, done, len(table)) for done in range(len(table))]
    assert found == pytest.approx(table, rel=1e-12)


def test_a_name_alone_is_a_schedule_with_its_defaults() -> None:
    assert [read("fixed"), read("poly"), read("cosine")] == [Fixed(), Poly(name="poly"), Cosine(name="cosine")]
    assert Poly(name="poly").power == 0.9 and Step(name="step", every=1).factor == 0.1
    assert Recipe.model_fields["schedule"].default == Fixed()
    # DeepLab's numbers: halfway 0.5 ** 0.9.
    assert factor(read("poly"), 10_000, 20_000) == pytest.approx(0.535886731268)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("linear", "'linear' found using 'name' does not match any of .*: 'fixed', 'step', 'poly', 'cosine'"),
        ("step", r"step\.every\s+Field required"),
        ({"name": "step", "every": 0}, r"step\.every\s+Input should be greater than 0"),
        ({"name": "step", "every": 3, "factor": 1}, r"step\.factor\s+Input should be less than 1"),
        ({"name": "poly", "power": 0}, r"poly\.power\s+Input should be greater than 0"),
        ({"name": "poly", "power": math.inf}, r"poly\.power\s+Input should be a finite number"),
        ({"name": "cosine", "end": 1.5}, r"cosine\.end\s+Input should be less than or equal to 1"),
        ({"name": "fixed", "warmup": -1}, r"fixed\.warmup\s+Input should be greater than or equal to 0"),
        ({"name": "fixed", "every": 3}, r"fixed\.every\s+Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_settings_that_make_no_schedule_are_refused(given: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        read(given)


@pytest.mark.parametrize("done", [-1, 4, 5])
def test_an_update_outside_of_the_training_is_our_bug(done: int) -> None:
    with pytest.raises(AssertionError, match=f"update {done} of 4"):
        factor(Fixed(), done, 4)
