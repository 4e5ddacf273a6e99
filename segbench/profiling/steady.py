"""When times can be believed: a warm-up that has ended, and samples that came from one state of the machine.

*Drift*: the later half of the samples against the earlier one. They drift when the later half ranks higher or lower
than chance puts it (Mann & Whitney, Annals of Mathematical Statistics 18, 1947: U, by its normal approximation) *and*
the medians of the halves differ by more than a stated share of the median. The first alone would call a thousand
samples drifting that change by a thousandth, the second alone would call noise drift. Ranks and medians do not ask how
slow an outlier is: a few of them, which every machine has, change neither.

*Warm*: the later half of the warm-up, `WINDOW` samples at least, does not drift. The window grows with the warm-up, so
that slow drift shows in it and the slow first passes leave it.

*Stable*: no drift; an interval of the median no wider than `INTERVAL` of it; and the middle two thirds of the samples
(of normal noise, what lies within one standard deviation) no wider than `SPREAD` of it, since of a machine that changes
between two speeds many samples give a narrow interval around the more frequent one. The limits belong to the promise
that five repetitions agree within 3 % or are called unstable: with them, at 20 samples, normal noise of 2 % is stable
99 times in 100, and noise of any size makes five stable repetitions that disagree in one case of a hundred at most.

What this cannot see is a state that lasted for all samples, such as another program that was there from start to end.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from segbench.profiling.usage import Samples

WINDOW = 10
"""Samples by which a warm-up is judged, at the least: of two halves of five, U can tell chance from drift."""
JUDGED_FROM = 6
"""Samples below which stability is not judged: the extremes of five do not hold the median with 95 %."""

CHANCE = 1.96  # standard deviations of U: what remains within them 95 % of the time without any drift
WARM_DRIFT, DRIFT = 0.01, 0.03
INTERVAL = 0.04
SPREAD = 0.10


def warm(times_ms: Sequence[float]) -> bool:
    """Whether the later half of these passes no longer drifts; False below `WINDOW` passes."""
    if len(times_ms) < WINDOW:
        return False
    return not drift(times_ms[-max(WINDOW, len(times_ms) // 2) :], beyond=WARM_DRIFT)


def stable(times_ms: Sequence[float]) -> bool | None:
    """Whether the samples came from one state of the machine; None below `JUDGED_FROM` samples, which cannot tell."""
    return None if len(times_ms) < JUDGED_FROM else not unrest(times_ms)


def unrest(times_ms: Sequence[float]) -> str:
    """Why samples are not stable, in words; empty for stable ones. Shares are those of the median."""
    samples = Samples(measured_ms=tuple(times_ms))
    if len(times_ms) < JUDGED_FROM or samples.interval is None:
        return f"{len(times_ms)} samples are too few to tell"
    if samples.median == 0:
        return "half of the samples are shorter than the clock can tell"
    change = drift(times_ms, beyond=DRIFT)
    if change:
        return f"the later half is {'slower' if change > 0 else 'faster'} than the earlier one by {abs(change):.1%}"
    low, high = samples.interval
    width = (high - low) / samples.median
    if width > INTERVAL:
        return f"the 95 % interval of the median is {width:.1%} of it wide"
    spread = (samples.percentile(250 / 3) - samples.percentile(50 / 3)) / samples.median
    return f"the middle two thirds of the samples spread over {spread:.1%} of the median" if spread > SPREAD else ""


def drift(times_ms: Sequence[float], beyond: float) -> float:
    """By which share of the median the later half's median is above (below: negative) the earlier one's.

    0 where that is within `beyond`, or the halves rank as chance may have it. An odd sample in the middle belongs to
    neither half.
    """
    times = np.asarray(times_ms, dtype=np.float64)
    half = len(times) // 2
    earlier, later = times[:half], times[len(times) - half :]
    change, median = float(np.median(later) - np.median(earlier)), float(np.median(times))
    if median == 0 or abs(change) <= beyond * median or abs(rank_deviation(earlier, later)) <= CHANCE:
        return 0.0
    return change / median


def rank_deviation(earlier: Float[np.ndarray, " n"], later: Float[np.ndarray, " m"]) -> float:
    """Mann and Whitney's U of `later` over `earlier`, less its mean, in standard deviations; ties count half.

    Without drift U has the mean n m / 2 and the variance n m (n + m + 1) / 12; ties would make it a little smaller.
    """
    n, m = len(earlier), len(later)
    ordered = np.sort(earlier)
    below, not_above = (np.searchsorted(ordered, later, side).sum() for side in ("left", "right"))
    return float((below + not_above) / 2 - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
