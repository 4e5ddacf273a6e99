"""Scores of resampled data: every resample is a row of weights, and one product with the facts is all their sums.

Facts add up over images (`score.py`), so a bootstrap resample is the number of times that each unit was drawn, and
swapping units between two sets of predictions is a row of zeros and ones. Weights times facts in float64 is exact while
the sums are integers below 2**53. Weights are made a chunk of rows at a time, so that memory does not grow with the
number of resamples, and the same chunk serves every score: resample r is the same draw of units for all of them.

Seeds are a second level. A resample draws as many seeds as there are, with replacement, and, for all of them, one set
of units, because every seed predicted the same images; its score is the mean over the seeds drawn.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from jaxtyping import Float64

from segbench.metrics.score import Facts, Score
from segbench.metrics.units import Units

CHUNK_MIB = 64
INDICES, SEEDS, SWAPS = range(3)  # streams of random numbers that have nothing to do with each other

Weights = Float64[np.ndarray, "r u"]
UnitFacts = Float64[np.ndarray, "s u m"]


def resample(
    scores: Sequence[Score], units: Units, *, resamples: int, seed: int, systems: Sequence[int] | None = None
) -> list[Float64[np.ndarray, "r ..."]]:
    """Each score in `resamples` bootstrap resamples; NaN where it is not defined in one.

    Scores of one system share the seeds drawn. Where `systems` numbers the system of each score, those of different
    systems draw theirs independently, as runs of different methods were made.
    """
    facts = UnitSums(scores, units)
    rows = facts.rows_in_chunk(CHUNK_MIB)
    chunks = [facts.read(weights) for weights in bootstrap_weights(units.number, resamples, seed, rows)]
    read = [np.concatenate(parts) for parts in zip(*chunks, strict=True)]
    return [_draw_seeds(values, seed, system) for values, system in zip(read, systems or [0] * len(read), strict=True)]


def leave_one_out(score: Score, units: Units) -> Float64[np.ndarray, "u *values"]:
    """The score without each unit in turn: the total minus the unit."""
    facts = unit_facts(score.facts, units)
    total = facts.sum(1)
    parts = np.array_split(facts, max(1, facts.nbytes // (CHUNK_MIB * 2**20)), axis=1)
    return np.concatenate([np.asarray(score.read(total[:, None] - part)).mean(0) for part in parts])


def unit_facts(facts: Facts, units: Units) -> UnitFacts:
    """Facts summed within units."""
    if units.kind == "images":
        return facts
    order = np.argsort(units.index, kind="stable")
    starts = np.searchsorted(units.index[order], np.arange(units.number))
    return np.add.reduceat(facts[:, order], starts, axis=1)


class UnitSums:
    """The facts of some scores, summed within units; those that several scores share are held and summed once."""

    def __init__(self, scores: Sequence[Score], units: Units) -> None:
        self.scores = scores
        distinct = {id(score.facts): score.facts for score in scores}
        self.facts = {key: unit_facts(facts, units) for key, facts in distinct.items()}

    def rows_in_chunk(self, mib: int) -> int:
        """How many resamples fit into `mib`: last chunk's weights, three arrays for this one's, and the sums."""
        seeds_times_facts = sum(facts.shape[0] * facts.shape[2] for facts in self.facts.values())
        units = next(iter(self.facts.values())).shape[1]
        return max(1, mib * 2**20 // (8 * (4 * units + 2 * seeds_times_facts)))

    def sums(self, weights: Weights) -> list[Float64[np.ndarray, "r _ _"]]:
        """Of each score, the weighted sums of its facts."""
        sums = {key: _weighted(weights, facts) for key, facts in self.facts.items()}
        return [sums[id(score.facts)] for score in self.scores]

    def read(self, weights: Weights) -> list[Float64[np.ndarray, "r _ ..."]]:
        """Each score of the weighted sums, seed by seed."""
        return [np.asarray(score.read(sums)) for score, sums in zip(self.scores, self.sums(weights), strict=True)]


def bootstrap_weights(units: int, resamples: int, seed: int, rows: int) -> Iterator[Weights]:
    """How often each unit was drawn, `rows` resamples at a time; the rows in all do not depend on `rows`."""
    generator = np.random.default_rng([seed, INDICES])
    for size in _sizes(resamples, rows):
        drawn = generator.integers(units, size=(size, units))
        drawn += units * np.arange(size)[:, None]
        yield np.bincount(drawn.reshape(-1), minlength=size * units).reshape(size, units).astype(np.float64)


def swap_weights(units: int, permutations: int, seed: int, rows: int) -> Iterator[Weights]:
    """1 where a unit is swapped and 0 where it stays, each with even odds."""
    generator = np.random.default_rng([seed, SWAPS])
    words = -(-units // 32)
    for size in _sizes(permutations, rows):
        bits = np.unpackbits(generator.integers(2**32, size=(size, words), dtype=np.uint32).view(np.uint8), axis=1)
        yield bits[:, :units].astype(np.float64)


def every_swap(units: int, rows: int) -> Iterator[Weights]:
    """All 2**units ways to swap, beginning with none."""
    for start in range(0, 2**units, rows):
        numbers = np.arange(start, min(start + rows, 2**units))
        yield (numbers[:, None] >> np.arange(units) & 1).astype(np.float64)


def _sizes(total: int, rows: int) -> Iterator[int]:
    return chain([rows] * (total // rows), [total % rows] if total % rows else [])


def _weighted(weights: Weights, facts: UnitFacts) -> Float64[np.ndarray, "r s m"]:
    seeds, units, columns = facts.shape
    flat = facts.transpose(1, 0, 2).reshape(units, seeds * columns)
    return (weights @ flat).reshape(len(weights), seeds, columns)


def _draw_seeds(values: Float64[np.ndarray, "r s *values"], seed: int, system: int) -> Float64[np.ndarray, "r *values"]:
    resamples, seeds = values.shape[:2]
    drawn = np.random.default_rng([seed, SEEDS, system]).integers(seeds, size=(resamples, seeds))
    return values[np.arange(resamples)[:, None], drawn].mean(1)
