"""Do two sets of predictions of the same images differ by more than chance? A paired bootstrap and a permutation test.

Both keep the pairing: an image that is hard for one network is hard for the other, so the difference varies much less
than either score does.

- The paired bootstrap draws the same units for both and gives the interval of the difference (Koehn, EMNLP 2004, is its
  well-known use). Seeds are drawn for each of the two on its own.
- The permutation test (Fisher; Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses", 2005, section 3.7;
  for scores that are no means: Yeh, COLING 2000) asks how often a difference at least as large in absolute value comes
  about when in each unit it is a coin's toss which of the two predicted it. It is exact: under no difference it rejects
  in at most 5 % at 5 %, with any number of units. Few units cannot have a small p, and the result says how small.

Seeds in the permutation test: seed j of the one is paired with seed j of the other, and a swapped unit is swapped in
all of them. So it tells whether these trained networks differ on other images like these, not whether the methods
would if trained again; the paired bootstrap draws seeds, and does. Departures: none known.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from segbench.errors import SettingError
from segbench.metrics.intervals import Bootstrap, Interval, Method, interval, no_interval
from segbench.metrics.resampling import CHUNK_MIB, UnitSums, every_swap, leave_one_out, resample, swap_weights
from segbench.metrics.score import Score
from segbench.metrics.units import Units

Value = float | Float64[np.ndarray, " k"]

TIE = 1e-10
"""Differences closer than this are the same: shares are summed in another order when units are swapped."""


class PairedBootstrap(NamedTuple):
    """a - b: its value, its interval, and the share of resamples in which it is 0 or less."""

    difference: Value
    interval: Interval
    share_not_above: Value


class PermutationTest(NamedTuple):
    """a - b, its two-sided p, and the smallest p that so many units and permutations can have.

    `exact`: all ways to swap were gone through.
    """

    difference: Value
    p: Value
    smallest_p: float
    permutations: int
    exact: bool


def paired_bootstrap(
    a: Score,
    b: Score,
    units: Units,
    *,
    level: float = 0.95,
    method: Method = "expanded",
    resamples: int = 2000,
    seed: int = 0,
) -> PairedBootstrap:
    """The interval of score a less score b. Raises SettingError as `Bootstrap` does.

    A resample in which one of the two is not defined has no difference.
    """
    how = Bootstrap(level, method, resamples, seed)
    check_pair(a, b)
    if units.number < 2:
        return undrawn(a, b, units, how)
    drawn = resample([a, b], units, resamples=resamples, seed=seed, systems=(0, 1))
    return difference(a, b, drawn[0] - drawn[1], units, how)


def undrawn(a: Score, b: Score, units: Units, how: Bootstrap) -> PairedBootstrap:
    """A difference without an interval, for fewer than two units."""
    return PairedBootstrap((a.value - b.value)[()], no_interval(a, units, how), np.full(a.value.shape, np.nan)[()])


def difference(
    a: Score, b: Score, drawn: Float64[np.ndarray, "r *values"], units: Units, how: Bootstrap
) -> PairedBootstrap:
    """What `paired_bootstrap` says, from resampled differences."""
    value = np.asarray(a.value - b.value)
    left_out = leave_one_out(a, units) - leave_one_out(b, units) if how.method == "bca" else None
    seeds = min(len(a.facts), len(b.facts))
    defined = np.isfinite(drawn)
    not_above = np.divide(
        (drawn <= 0).sum(0), defined.sum(0), out=np.full(value.shape, np.nan), where=defined.any(0) & np.isfinite(value)
    )
    between = interval(value, drawn, left_out, units=units, seeds=seeds, how=how)
    return PairedBootstrap(value[()], between, not_above[()])


def permutation_test(a: Score, b: Score, units: Units, *, permutations: int = 10_000, seed: int = 0) -> PermutationTest:
    """The two-sided p of score a less score b. Raises SettingError where the two have not the same number of seeds."""
    check_pair(a, b)
    if len(a.facts) != len(b.facts):
        raise SettingError(
            f"permutation test: {len(a.facts)} and {len(b.facts)} seeds cannot be swapped; give as many of each"
        )
    p = permutation_p([a, b], [(0, 1)], units, permutations=permutations, seed=seed)[0]
    exact = is_exact(units, permutations)
    done = 2**units.number if exact else permutations
    return PermutationTest((a.value - b.value)[()], p[()], smallest_p(units, permutations), done, exact)


def permutation_p(
    scores: Sequence[Score], pairs: Sequence[tuple[int, int]], units: Units, *, permutations: int, seed: int
) -> list[Float64[np.ndarray, "..."]]:
    """The p of each pair of scores, all under the same swaps; NaN where the difference is not defined.

    A swap that leaves a score undefined counts as one with a larger difference, which can only raise p.
    """
    facts = UnitSums(scores, units)
    stay = np.zeros((1, units.number))
    totals = facts.sums(np.ones((1, units.number)))
    observed = _differences(scores, pairs, totals, facts.sums(stay))
    reached = [np.zeros(value.shape[1:], np.int64) for value in observed]
    done = 0
    for weights in _swaps(units, permutations, seed, facts.rows_in_chunk(CHUNK_MIB)):
        for i, swapped in enumerate(_differences(scores, pairs, totals, facts.sums(weights))):
            reached[i] += _reaches(swapped, observed[i]).sum(0)
        done += len(weights)
    # The predictions as they are count as one of the permutations; among all 2**units they are there already.
    one = 0 if is_exact(units, permutations) else 1
    return [np.where(np.isnan(o[0]), np.nan, (r + one) / (done + one)) for o, r in zip(observed, reached, strict=True)]


def smallest_p(units: Units, permutations: int) -> float:
    """Swapping no unit and swapping all give the same absolute difference: two of all 2**units ways always reach it."""
    return min(1.0, 2.0 ** (1 - units.number)) if is_exact(units, permutations) else 1 / (1 + permutations)


def is_exact(units: Units, permutations: int) -> bool:
    """Whether all ways to swap are no more than the permutations asked for."""
    return units.number < 60 and 2**units.number <= permutations


def check_pair(a: Score, b: Score) -> None:
    assert a.facts.shape[1:] == b.facts.shape[1:], f"facts of other images: {a.facts.shape} and {b.facts.shape}"


def _swaps(units: Units, permutations: int, seed: int, rows: int) -> Iterator[Float64[np.ndarray, "r u"]]:
    if is_exact(units, permutations):
        return every_swap(units.number, rows)
    return swap_weights(units.number, permutations, seed, rows)


def _differences(
    scores: Sequence[Score],
    pairs: Sequence[tuple[int, int]],
    totals: Sequence[Float64[np.ndarray, "1 _ _"]],
    swapped: Sequence[Float64[np.ndarray, "r _ _"]],
) -> list[Float64[np.ndarray, "r ..."]]:
    """Each pair's difference after its swapped units, whose facts sum to `swapped`, changed sides."""
    results = []
    for i, j in pairs:
        crossed = swapped[j] - swapped[i]
        one, other = scores[i].read(totals[i] + crossed), scores[j].read(totals[j] - crossed)
        results.append(np.asarray(one).mean(1) - np.asarray(other).mean(1))
    return results


def _reaches(
    swapped: Float64[np.ndarray, "r *values"], observed: Float64[np.ndarray, "1 *values"]
) -> Bool[np.ndarray, "r *values"]:
    return ~(np.abs(swapped) < np.abs(observed) - TIE)
