"""How often 95 % intervals cover the truth, and how often tests reject where there is nothing to find, by simulation.

    python benchmarks/intervals.py > benchmarks/intervals.md

A world draws images and predictions from one hierarchical model; the truth is the score of hundreds of thousands of
images of it. Eleven classes have areas like those of a road scene, log-normal, from a quarter of the image down to two
thousandths of it; the two rarest are in two images of five and in one of three. What an image's difficulty and chance
leave of a class is predicted right; the rest goes to other classes, mostly the large ones. Frames of a sequence share
70 % of the variance of every one of these draws. All that is simulated are the sums that scores are read from, so
a world takes milliseconds.

Predictors of one world see the same images of the same difficulty, and err on their own: alike in distribution, which
is the null hypothesis of the tests. Seeds are predictors that also differ by a lasting shift of each class's recall.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple, get_args

import numpy as np
from scipy.special import expit, ndtri

from segbench.metrics import region
from segbench.metrics.intervals import Bootstrap, Method, interval
from segbench.metrics.resampling import leave_one_out, resample
from segbench.metrics.score import Facts, Score
from segbench.metrics.significance import paired_bootstrap, permutation_test
from segbench.metrics.units import Units

K, PIXELS = 11, 360 * 480
SHARE = np.array([0.25, 0.25, 0.17, 0.11, 0.09, 0.04, 0.012, 0.01, 0.01, 0.006, 0.002])
PRESENT = np.array([1, 1, 1, 1, 0.97, 0.95, 0.95, 0.9, 0.9, 0.4, 0.35])
AREA_SD = np.array([0.4, 0.4, 0.5, 0.5, 1, 1.5, 0.8, 1.2, 1.2, 1.5, 1.6])
RECALL = np.array([2.5, 1.8, 3, 2, 1.5, 1.5, 0, 0.3, 0, 0, -0.3])  # log-odds
CONFUSED = np.sqrt(SHARE) * np.exp(np.random.default_rng(5).normal(0, 0.5, (K, K))) * (1 - np.eye(K))
CORRELATION, FRAMES, SEED_SD = 0.7, 20, 0.2

IMAGES, SEQUENCES, SEEDS = (50, 100, 233), (2, 5, 10, 15, 20, 40), (1, 3, 10)
METHODS: tuple[Method, ...] = get_args(Method)


def _region(read: Callable) -> Callable:
    return lambda sums: read(sums[..., : 3 * K].reshape(*sums.shape[:-1], 3, K))


READ = {
    "G": _region(region.global_accuracy),
    "C": _region(region.class_accuracy),
    "mIoU": _region(region.mean_iou),
    "FWIoU": _region(region.frequency_weighted_iou),
    "BF": lambda sums: sums[..., -2] / sums[..., -1],
    "IoU of the rarest class": _region(lambda areas: region.per_class_iou(areas)[..., -1]),
}


def read(sums: np.ndarray) -> np.ndarray:
    """All of them as one score with a vector of values, so that they are resampled together."""
    return np.stack([one(sums) for one in READ.values()], axis=-1)


class World(NamedTuple):
    facts: Facts
    sequence: np.ndarray

    @property
    def score(self) -> Score:
        return Score(self.facts, read)

    def units(self, kind: str) -> Units:
        return Units("images", np.arange(len(self.sequence))) if kind == "images" else Units("sequences", self.sequence)


def world(rng: np.random.Generator, lengths: np.ndarray, predictors: int = 1, seed_sd: float = 0.0) -> World:
    """Sequences of `lengths` frames, seen by `predictors`. Sequences of one frame are independent images."""
    sequence = np.repeat(np.arange(len(lengths)), lengths)

    def normal(columns: int) -> np.ndarray:
        lasting, passing = (rng.standard_normal((rows, columns)) for rows in (len(lengths), len(sequence)))
        return np.sqrt(CORRELATION) * lasting[sequence] + np.sqrt(1 - CORRELATION) * passing

    area = SHARE / PRESENT * np.exp(AREA_SD * normal(K) - AREA_SD**2 / 2) * (normal(K) < ndtri(PRESENT))
    area = np.rint(PIXELS * area / area.sum(1, keepdims=True))
    difficulty = normal(1)
    facts = []
    for _ in range(predictors):
        recall = expit(RECALL + seed_sd * rng.standard_normal(K) + 0.7 * difficulty + 0.7 * normal(K))
        correct = np.rint(area * recall)
        confused = CONFUSED * np.exp(normal(K))[:, None]
        wrong = np.einsum("nk,nkj->nj", area - correct, confused / confused.sum(2, keepdims=True))
        f1 = expit(0.8 + 0.5 * difficulty + 0.3 * normal(1))
        facts.append(np.concatenate([area, correct + np.rint(wrong), correct, f1, np.ones_like(f1)], axis=1))
    return World(np.stack(facts), sequence)


def images(rng: np.random.Generator, number: int, predictors: int = 1, seed_sd: float = 0.0) -> World:
    return world(rng, np.ones(number, np.int64), predictors, seed_sd)


def video(rng: np.random.Generator, sequences: int, predictors: int = 1) -> World:
    return world(rng, 1 + rng.poisson(FRAMES - 1, sequences), predictors)


@cache
def truth(seed_sd: float = 0.0) -> np.ndarray:
    """Scores of half a million images; with seeds, the mean over 200 of the scores of ten thousand images each."""
    rng = np.random.default_rng(99)
    if not seed_sd:
        facts = sum(images(rng, 20_000).facts.sum(1)[0] for _ in range(25))
        return read(facts)
    seeds = [images(rng, 10_000, seed_sd=seed_sd).facts.sum(1)[0] for _ in range(200)]
    return read(np.stack(seeds)).mean(0)


def covered(found: World, kind: str, truths: np.ndarray, methods: Sequence[Method] = ("expanded",)) -> np.ndarray:
    """[method, score]: whether the interval covers the truth. One that is not given covers nothing."""
    units, score = found.units(kind), found.score
    drawn = resample([score], units, resamples=Bootstrap.resamples, seed=0)[0]
    without = leave_one_out(score, units) if "bca" in methods else None
    given = [
        interval(score.value, drawn, without, units=units, seeds=len(score.facts), how=Bootstrap(method=method))
        for method in methods
    ]
    return np.stack([(one.low <= truths) & (truths <= one.high) for one in given])


def rejected(found: World, kind: str) -> np.ndarray:
    """[test, score]: whether the permutation test and the paired bootstrap tell two predictors apart at 5 %."""
    one, other = Score(found.facts[:1], read), Score(found.facts[1:], read)
    p = permutation_test(one, other, found.units(kind), permutations=1000).p
    between = paired_bootstrap(one, other, found.units(kind)).interval
    return np.stack([p <= 0.05, (between.low > 0) | (between.high < 0)])


def share(worlds: int, number: int, find: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
    """The mean of what `find` finds in each of the worlds of so many units, in percent."""
    return 100 * np.mean([find(np.random.default_rng([number, i])) for i in range(worlds)], axis=0)


def coverage_of_images(worlds: int) -> Iterable[tuple[str, np.ndarray]]:
    for number in IMAGES:
        found = share(worlds, number, lambda rng, n=number: covered(images(rng, n), "images", truth(), METHODS))
        yield from ((f"{number} images | {method}", row) for method, row in zip(METHODS, found, strict=True))


def coverage_of_sequences(worlds: int) -> Iterable[tuple[str, np.ndarray]]:
    for number in SEQUENCES:
        found = share(worlds, number, lambda rng, m=number: _units_compared(video(rng, m)))
        names = (*METHODS, "expanded, frames as independent")
        yield from ((f"{number} sequences | {name}", row) for name, row in zip(names, found, strict=True))


def coverage_of_seeds(worlds: int) -> Iterable[tuple[str, np.ndarray]]:
    truths = truth(SEED_SD)
    for seeds in SEEDS:
        found = share(worlds, seeds, lambda rng, s=seeds: covered(images(rng, 100, s, SEED_SD), "images", truths))
        yield f"100 images, {seeds} seed{'s' if seeds > 1 else ''} | expanded", found[0]


def rejections(worlds: int) -> Iterable[tuple[str, np.ndarray]]:
    rows: list[tuple[str, Callable[[np.random.Generator, int, int], World], int, str]] = [
        *(("images", images, number, "images") for number in IMAGES),
        *(("sequences", video, number, "sequences") for number in (5, 10, 20)),
        ("sequences, frames as independent", video, 20, "images"),
    ]
    for name, make, number, kind in rows:
        found = share(worlds, number, lambda rng, m=make, n=number, k=kind: rejected(m(rng, n, 2), k))
        yield from (
            (f"{number} {name} | {test}", row)
            for test, row in zip(("permutation", "paired bootstrap"), found, strict=True)
        )


def _units_compared(found: World) -> np.ndarray:
    return np.vstack([covered(found, "sequences", truth(), METHODS), covered(found, "images", truth())])


def table(title: str, head: str, columns: Iterable[str], rows: Iterable[tuple[str, np.ndarray]]) -> None:
    columns = list(columns)
    print(f"\n## {title}\n\n| {head} | {' | '.join(columns)} |\n|---|---|{'---:|' * len(columns)}")
    for name, values in rows:
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=1000)
    worlds = parser.parse_args().worlds
    began = time.perf_counter()
    error = 100 * np.sqrt(0.95 * 0.05 / worlds)
    print("# Coverage of 95 % intervals, and false alarms of tests at 5 %\n")
    print(f"`python benchmarks/intervals.py`; {worlds} worlds a row, 2000 resamples, 1000 permutations. Percent; the")
    print(f"standard error of a figure near 95 or 5 is {error:.1f}. {datetime.now(UTC).date()}.\n")
    print("The truth: " + ", ".join(f"{name} {value:.3f}" for name, value in zip(READ, truth(), strict=True)) + ".")
    table("Coverage, independent images", "units | method", READ, coverage_of_images(worlds))
    table("Coverage, sequences of 20 frames", "units | method", READ, coverage_of_sequences(worlds))
    table("Coverage, with seeds", "units | method", READ, coverage_of_seeds(worlds))
    table("False alarms", "units | test", READ, rejections(worlds))
    print(f"\nIt took {(time.perf_counter() - began) / 60:.0f} minutes.")


if __name__ == "__main__":
    main()
