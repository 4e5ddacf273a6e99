"""A table of systems: which of them can be told apart.

Every pair is tested; the p-values are adjusted over the whole table, so that the chance of even one false difference in
it stays below alpha (Holm, Scandinavian Journal of Statistics 6, 1979). Then each system gets letters such that two
systems share one if and only if they cannot be told apart: the compact letter display, made by insert and absorb
(Piepho, Journal of Computational and Graphical Statistics 13, 2004). A rank range says the same for one system: how
many are certainly better, how many certainly worse.

Departures from Piepho: no sweeping, so a letter may be spared in rare displays. Sharing a letter means "not told
apart", never "equal".
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isnan
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from segbench.metrics.intervals import Bootstrap, Method
from segbench.metrics.resampling import resample
from segbench.metrics.score import Score
from segbench.metrics.significance import PairedBootstrap, check_pair, difference, permutation_p, smallest_p, undrawn
from segbench.metrics.units import Units

Square = Float64[np.ndarray, "k k"]


class Ranks(NamedTuple):
    """For each system, in the order given: its letters (a: the best group), and the best and worst rank, from 1, that
    cannot be excluded. `order` lists the systems from the best score to the worst; NaN comes last."""

    order: tuple[int, ...]
    letters: tuple[str, ...]
    best: tuple[int, ...]
    worst: tuple[int, ...]


class Pair(NamedTuple):
    """Two systems, the one with the higher score first. p is NaN where no test was made; `adjusted_p` is Holm's."""

    better: str
    worse: str
    bootstrap: PairedBootstrap
    p: float
    adjusted_p: float


class Comparison(NamedTuple):
    """`names` from the best score to the worst, and with them `values`, `letters` and ranks; all pairs of them; and
    sentences for the reader."""

    names: tuple[str, ...]
    values: tuple[float, ...]
    letters: tuple[str, ...]
    best_rank: tuple[int, ...]
    worst_rank: tuple[int, ...]
    pairs: tuple[Pair, ...]
    words: tuple[str, ...]


def compare_all(
    scores: Mapping[str, Score],
    units: Units,
    *,
    alpha: float = 0.05,
    level: float = 0.95,
    method: Method = "expanded",
    resamples: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Test every pair of systems on a score with one value, of which more is better; each system under its name.

    Raises SettingError as `Bootstrap` does. Systems of unlike numbers of seeds have a paired bootstrap but no p.
    """
    how = Bootstrap(level, method, resamples, seed)
    names = sorted(scores, key=lambda name: _descending(float(scores[name].value)))
    systems = [scores[name] for name in names]
    pairs = list(combinations(range(len(names)), 2))
    p = _p_values(systems, pairs, units, permutations, seed)
    adjusted = holm(p)
    bootstraps = _bootstraps(systems, pairs, units, how)
    values = np.array([float(system.value) for system in systems])
    ranks = rank_groups(values, _square(pairs, adjusted, len(names)), alpha)
    return Comparison(
        tuple(names),
        tuple(values.tolist()),
        ranks.letters,
        ranks.best,
        ranks.worst,
        tuple(
            Pair(names[i], names[j], *rest)
            for (i, j), *rest in zip(pairs, bootstraps, p.tolist(), adjusted.tolist(), strict=True)
        ),
        _words(p, units, permutations, alpha),
    )


def holm(p: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """p-values adjusted for their number, step by step down from the smallest: below alpha where Holm rejects at alpha.

    A NaN is no test: it stays NaN and does not count.
    """
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]  # NaNs sort last
    remaining = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(remaining * p[order]))
    return adjusted


def rank_groups(scores: Float64[np.ndarray, " k"], p_values: Square, alpha: float = 0.05) -> Ranks:
    """Letters and rank ranges of systems, of which more is better, from scores and a symmetric matrix of p-values.

    Two systems are told apart where p is below alpha; a NaN tells nothing apart. The diagonal is not looked at.
    """
    order = sorted(range(len(scores)), key=lambda i: _descending(float(scores[i])))
    apart = p_values < alpha
    np.fill_diagonal(apart, False)
    groups = letter_groups(apart[np.ix_(order, order)])
    letters = {
        i: "".join(_letter(g) for g, members in enumerate(groups) if at in members) for at, i in enumerate(order)
    }
    better = (apart & (scores[None] > scores[:, None])).sum(1)
    worse = (apart & (scores[None] < scores[:, None])).sum(1)
    return Ranks(
        tuple(order),
        tuple(letters[i] for i in range(len(scores))),
        tuple((1 + better).tolist()),
        tuple((len(scores) - worse).tolist()),
    )


def letter_groups(apart: Bool[np.ndarray, "k k"]) -> list[frozenset[int]]:
    """Groups such that two systems are in one together if and only if they are not apart, sorted by their members.

    Insert: a group that holds two systems which are apart becomes two groups, each without one of them. Absorb: a group
    inside another goes.
    """
    groups = {frozenset(range(len(apart)))}
    for i, j in np.argwhere(np.triu(apart)).tolist():
        split = {group - {one} for group in groups for one in (i, j) if {i, j} <= group}
        kept = {group for group in groups if not {i, j} <= group}
        groups = kept | {group for group in split if not any(group <= other for other in kept)}
    return sorted(groups, key=sorted)


def _letter(number: int) -> str:
    """a to z, then a2 to z2."""
    times, letter = divmod(number, len(ascii_lowercase))
    return ascii_lowercase[letter] + (str(times + 1) if times else "")


def _p_values(
    systems: Sequence[Score], pairs: Sequence[tuple[int, int]], units: Units, permutations: int, seed: int
) -> Float64[np.ndarray, " pairs"]:
    for i, j in pairs:
        check_pair(systems[i], systems[j])
    p = np.full(len(pairs), np.nan)
    alike = [n for n, (i, j) in enumerate(pairs) if len(systems[i].facts) == len(systems[j].facts)]
    p[alike] = permutation_p(systems, [pairs[n] for n in alike], units, permutations=permutations, seed=seed)
    return p


def _bootstraps(
    systems: Sequence[Score], pairs: Sequence[tuple[int, int]], units: Units, how: Bootstrap
) -> list[PairedBootstrap]:
    if units.number < 2:
        return [undrawn(systems[i], systems[j], units, how) for i, j in pairs]
    drawn = resample(systems, units, resamples=how.resamples, seed=how.seed, systems=range(len(systems)))
    return [difference(systems[i], systems[j], drawn[i] - drawn[j], units, how) for i, j in pairs]


def _square(pairs: Sequence[tuple[int, int]], values: Float64[np.ndarray, " pairs"], k: int) -> Square:
    square = np.full((k, k), np.nan)
    for (i, j), value in zip(pairs, values.tolist(), strict=True):
        square[i, j] = square[j, i] = value
    return square


def _descending(score: float) -> tuple[bool, float]:
    return isnan(score), -score


def _words(p: Float64[np.ndarray, " pairs"], units: Units, permutations: int, alpha: float) -> tuple[str, ...]:
    words = []
    tests, least = int(np.isfinite(p).sum()), smallest_p(units, permutations)
    if tests and tests * least > alpha:
        words.append(
            f"{units.number} {units.kind} and {permutations} permutations allow no p below {least:.3g}, which times "
            f"{tests} tests is over {alpha:g}: no pair can be told apart"
        )
    if np.isnan(p).any():
        words.append(
            f"{np.isnan(p).sum()} pairs were not tested: their numbers of seeds differ, or a score is undefined"
        )
    return tuple(words)
