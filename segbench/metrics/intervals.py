"""Bootstrap intervals of all scores at once, over images or video sequences, and over seeds where there are several.

Three readings of the same resamples:

- `percentile`: the quantiles of the resampled scores at the level's two ends (Efron, 1979);
- `expanded`, the default: quantiles further out, where Student's t with n - 1 degrees of freedom has its ends, times
  sqrt(n / (n - 1)), for n units (Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician
  69(4), 2015). A bootstrap's spread divides by n and its tails are the normal's; both make it too narrow;
- `bca`: ends corrected for bias and skewness (Efron, JASA 82, 1987; Efron & Tibshirani, "An Introduction to the
  Bootstrap", 1993, section 14.3), with the acceleration from leaving out each unit in turn.

`expanded` is the default because it covers best where units are few (`benchmarks/intervals.md`, 95 % intervals of G, C,
mIoU, FWIoU and BF; the lowest and the highest of the five): of 100 independent images 93.6-94.4 %, `percentile`
93.2-94.0 %, `bca` 89.9-94.5 %; of 20 sequences 93.8-94.9 %, 91.4-93.1 %, 89.7-92.7 %. BCa is lowest for the means over
classes, presumably because a resample that misses a rare class shifts them. Over the frames of those 20 sequences,
taken as independent, the default covers in 37-41 %. Of one rare class alone (in a third of the images, a few of which
hold most of its pixels) none of them covers: 79-90 % with 50 to 233 images.

Conventions: resamples in which a score is not defined (none of the images with its class was drawn) are left out, and
where they are over 5 % there is no interval: so few units have the class that the rest would be a fake. Fewer than two
units have no interval. A score that all resamples share, such as a perfect one, has an interval without width, and a
word says so. BCa with seeds takes the bias from both levels and the acceleration from the units. Departures: the
expansion is Hesterberg's for a mean, applied to every score.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from segbench.errors import SettingError
from segbench.metrics.resampling import leave_one_out, resample
from segbench.metrics.score import Score
from segbench.metrics.units import Kind, Units

Method = Literal["expanded", "percentile", "bca"]
Bound = float | Float64[np.ndarray, " k"]
Values = Float64[np.ndarray, "*values"]
Ends = tuple[float, float]

MAX_UNDEFINED = 0.05
MIN_RESAMPLES = 100
FEW_SEEDS = 10
ROUNDING = 1e-12  # scores that differ by less are the same: shares are summed in another order in each resample


@dataclass(frozen=True)
class Interval:
    """`low` and `high` are shaped as the score and NaN where there is no interval.

    `undefined` is the share of resamples in which the score was not defined. `units` many of a `kind` were resampled.
    `words` are sentences for the reader, where the interval says less than its level.
    """

    low: Bound
    high: Bound
    level: float
    method: Method
    kind: Kind
    units: int
    seeds: int
    resamples: int
    undefined: Bound
    words: tuple[str, ...]


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made. Raises SettingError for a level outside of 0 to 1 or fewer than 100 resamples."""

    level: float = 0.95
    method: Method = "expanded"
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise SettingError(f"intervals: a level of {self.level} is not between 0 and 1; write 0.95 for 95 %")
        if self.resamples < MIN_RESAMPLES:
            raise SettingError(f"intervals: {self.resamples} resamples are too few; write {MIN_RESAMPLES} or more")


def intervals(
    scores: Mapping[str, Score],
    units: Units,
    *,
    level: float = 0.95,
    method: Method = "expanded",
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """The interval of each score, all from the same resamples. The scores are those of one set of predictions.

    Raises SettingError as `Bootstrap` does.
    """
    how = Bootstrap(level, method, resamples, seed)
    if units.number < 2:
        return {name: no_interval(score, units, how) for name, score in scores.items()}
    drawn = resample(list(scores.values()), units, resamples=resamples, seed=seed)
    return {
        name: interval(
            np.asarray(score.value),
            values,
            leave_one_out(score, units) if method == "bca" else None,
            units=units,
            seeds=len(score.facts),
            how=how,
        )
        for (name, score), values in zip(scores.items(), drawn, strict=True)
    }


def interval(
    value: Values,
    drawn: Float64[np.ndarray, "r *values"],
    left_out: Float64[np.ndarray, "u *values"] | None,
    *,
    units: Units,
    seeds: int,
    how: Bootstrap,
) -> Interval:
    """The interval of a value from its resamples and, for BCa, from the value without each unit."""
    undefined = np.asarray(np.isnan(drawn).mean(0))
    low, high = np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    for at in np.ndindex(value.shape):
        if np.isfinite(value[at]) and undefined[at] <= MAX_UNDEFINED:
            column = drawn[(slice(None), *at)]
            column = column[np.isfinite(column)]
            without = None if left_out is None else left_out[(slice(None), *at)]
            low[at], high[at] = _quantiles(column, _ends(float(value[at]), column, without, units.number, how))
    words = (*units.words, *_seed_words(seeds), *_words(value, low, high, undefined))
    return _interval(low, high, undefined, units, seeds, how, words)


def no_interval(score: Score, units: Units, how: Bootstrap) -> Interval:
    """NaN bounds, for fewer than two units."""
    nothing = np.full(np.shape(score.value), np.nan)
    one = units.kind.removesuffix("s")
    word = f"no interval: {units.number} {one if units.number == 1 else units.kind} cannot be resampled"
    return _interval(nothing, nothing, nothing, units, len(score.facts), how, (word,))


def _interval(
    low: Values, high: Values, undefined: Values, units: Units, seeds: int, how: Bootstrap, words: tuple[str, ...]
) -> Interval:
    settings = (how.level, how.method, units.kind, units.number, seeds, how.resamples)
    return Interval(low[()], high[()], *settings, undefined[()], words)


def _quantiles(column: Float64[np.ndarray, " r"], ends: Ends) -> Ends:
    low, high = np.quantile(column, ends) if np.isfinite(ends).all() else (np.nan, np.nan)
    return float(low), float(high)


def _ends(value: float, column: np.ndarray, left_out: np.ndarray | None, units: int, how: Bootstrap) -> Ends:
    """At which quantiles of the resamples the interval ends."""
    tail = (1 - how.level) / 2
    if how.method == "bca":
        assert left_out is not None, "BCa needs the score without each unit"
        return _bca_ends(value, column, left_out, tail)
    return _expanded_ends(units, tail) if how.method == "expanded" else (tail, 1 - tail)


def _expanded_ends(units: int, tail: float) -> Ends:
    # Imported here, because the import takes longer than all that is computed.
    from scipy.special import ndtr, stdtrit

    end = float(ndtr(np.sqrt(units / (units - 1)) * stdtrit(units - 1, tail)))
    return end, 1 - end


def _bca_ends(value: float, column: np.ndarray, left_out: np.ndarray, tail: float) -> Ends:
    """NaN where the formula has none: no resample on one side of the score, or an acceleration past its pole.

    A score without some unit is never NaN here: then that unit alone has the class, and over a quarter of the resamples
    are undefined.
    """
    from scipy.special import ndtr, ndtri

    below, tied = (column < value - ROUNDING).mean(), (np.abs(column - value) <= ROUNDING).mean()
    bias = ndtri(below + tied / 2)
    deviations = left_out.mean() - left_out
    spread = (deviations**2).sum()
    acceleration = (deviations**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + ndtri(np.array([tail, 1 - tail]))
    scale = 1 - acceleration * shifted
    low, high = ndtr(bias + shifted / scale) if np.isfinite(bias) and (scale > 0).all() else (np.nan, np.nan)
    return float(low), float(high)


def _seed_words(seeds: int) -> tuple[str, ...]:
    """A bootstrap of s values has (s - 1) / s of their variance."""
    if not 1 < seeds < FEW_SEEDS:
        return ()
    short = 1 - np.sqrt((seeds - 1) / seeds)
    return (f"{seeds} seeds are few: the spread over seeds is understated (its standard deviation by {short:.0%})",)


def _words(value: np.ndarray, low: np.ndarray, high: np.ndarray, undefined: np.ndarray) -> tuple[str, ...]:
    words = []
    if (np.isfinite(value) & (undefined > MAX_UNDEFINED)).any():
        words.append(
            f"no interval where over {MAX_UNDEFINED:.0%} of the resamples have no score: too few have the class"
        )
    if (np.isfinite(value) & (undefined <= MAX_UNDEFINED) & np.isnan(low)).any():
        words.append("no interval where the score lies outside of its resamples: BCa is not defined there")
    if (high - low <= ROUNDING).any():
        words.append("no width where every resample has the same score: that is not certainty")
    return tuple(words)
