"""Paired tests against SciPy's and slow loops over every swap; tables of systems against brute force."""

import importlib.util
from itertools import combinations, product

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from segbench.errors import SettingError
from segbench.metrics import region, resampling
from segbench.metrics.comparison import compare_all, holm, letter_groups, rank_groups
from segbench.metrics.intervals import intervals
from segbench.metrics.resampling import resample, swap_weights
from segbench.metrics.score import Score
from segbench.metrics.significance import paired_bootstrap, permutation_test
from segbench.metrics.units import Units, choose_units

K = 3


def systems_of(images, shifts, seeds=1, seed=0):
    """mIoU of predictions of the same images, each system better by its shift."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 1000, (1, images, K))
    hard = rng.normal(0, 1, (images, K))
    scores = []
    for shift in shifts:
        recall = 1 / (1 + np.exp(-hard - shift - rng.normal(0, 0.5, (seeds, images, K))))
        correct = np.floor(truth * recall)
        predicted = correct + rng.integers(0, 100, correct.shape)
        facts = np.concatenate([np.broadcast_to(truth, correct.shape), predicted, correct], -1).astype(np.float64)
        scores.append(Score(facts, lambda sums: np.asarray(region.mean_iou(sums.reshape(*sums.shape[:-1], 3, K)))))
    return scores


def means(values):
    return Score(np.stack([values, np.ones(len(values))], -1)[None], lambda sums: sums[..., 0] / sums[..., 1])


def sequences(*lengths):
    return Units("sequences", np.repeat(np.arange(len(lengths)), lengths))


def by_loop(a, b, units, swaps):
    """The differences after each swap, image by image."""
    results = []
    for swap in swaps:
        one, other = a.facts.copy(), b.facts.copy()
        for image, unit in enumerate(units.index):
            if swap[unit]:
                one[:, image], other[:, image] = b.facts[:, image], a.facts[:, image]
        results.append(Score(one, a.read).value - Score(other, b.read).value)
    return np.array(results)


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_p_is_scipys(shift):
    """SciPy swaps the paired numbers of facts; its statistic looks them up."""
    n = 9
    a, b = systems_of(n, (shift, 0))
    both = np.concatenate([a.facts[0], b.facts[0]])

    def statistic(x, y):
        return float(a.read(both[x.astype(int)].sum(0)) - b.read(both[y.astype(int)].sum(0)))

    theirs = stats.permutation_test(
        (np.arange(n), n + np.arange(n)), statistic, permutation_type="samples", n_resamples=np.inf
    )
    ours = permutation_test(a, b, choose_units(n))
    assert ours.exact and ours.permutations == 512 and ours.smallest_p == 2 / 512
    # SciPy's two-sided p is twice the smaller tail; swapping all changes the sign, so the tails are alike.
    assert ours.p == theirs.pvalue and ours.difference == theirs.statistic


@pytest.mark.parametrize("seeds", [1, 3])
def test_p_equals_a_loop_over_every_swap_of_sequences(seeds):
    a, b = systems_of(20, (0.2, 0), seeds)
    units = sequences(3, 5, 2, 4, 6)
    found = permutation_test(a, b, units)
    swapped = by_loop(a, b, units, product((0, 1), repeat=5))
    assert found.p == (np.abs(swapped) >= abs(found.difference) - 1e-10).mean()
    assert found.difference == pytest.approx(a.value - b.value, abs=0)


@pytest.mark.parametrize("chunk_mib", [64, 0])
def test_random_swaps_count_the_predictions_as_they_are(chunk_mib, monkeypatch):
    monkeypatch.setattr(resampling, "CHUNK_MIB", chunk_mib)
    monkeypatch.setattr("segbench.metrics.significance.CHUNK_MIB", chunk_mib)
    a, b = systems_of(40, (0.1, 0))
    units = choose_units(40)
    found = permutation_test(a, b, units, permutations=199, seed=3)
    swapped = by_loop(a, b, units, np.concatenate(list(swap_weights(40, 199, 3, 50))))
    assert not found.exact
    assert found.p == (1 + (np.abs(swapped) >= abs(found.difference) - 1e-10).sum()) / 200


@pytest.mark.parametrize("units", [1, 31, 32, 33, 100])
def test_swaps_are_fair_and_do_not_depend_on_the_chunk(units):
    swaps = np.concatenate(list(swap_weights(units, 2000, 0, 2000)))
    assert swaps.shape == (2000, units) and set(np.unique(swaps)) == {0, 1}
    assert np.abs(swaps.mean(0) - 0.5).max() < 0.05
    for rows in (1, 7, 1999):
        assert (np.concatenate(list(swap_weights(units, 2000, 0, rows))) == swaps).all()


def test_two_sequences_allow_no_small_p():
    good, bad = means(np.full(40, 0.9)), means(np.full(40, 0.1))
    found = permutation_test(good, bad, sequences(20, 20))
    assert (found.p, found.smallest_p, found.permutations) == (0.5, 0.5, 4)
    images = permutation_test(good, bad, choose_units(40))
    assert images.p == images.smallest_p == 1 / 10_001


def test_predictions_that_are_the_same_do_not_differ():
    a = systems_of(30, (0,))[0]
    assert permutation_test(a, a, choose_units(30)).p == 1
    found = paired_bootstrap(a, a, choose_units(30))
    assert found.difference == found.interval.low == found.interval.high == 0 and found.share_not_above == 1


def test_the_order_of_the_two_changes_only_the_sign():
    a, b = systems_of(60, (0.2, 0))
    one, other = permutation_test(a, b, choose_units(60)), permutation_test(b, a, choose_units(60))
    assert one.p == other.p and one.difference == -other.difference
    one, other = paired_bootstrap(a, b, choose_units(60)), paired_bootstrap(b, a, choose_units(60))
    np.testing.assert_allclose([one.interval.low, one.interval.high], [-other.interval.high, -other.interval.low])
    assert one.share_not_above == pytest.approx(1 - other.share_not_above)


def test_shares_that_tie_are_ties_whatever_the_order_of_their_sum():
    """Swapping equal differences changes nothing but rounding: |d| is reached by all swaps of all or none."""
    values = np.random.default_rng(0).random(8)
    found = permutation_test(means(values + 0.1), means(values), choose_units(8))
    assert found.p == 2 / 256


def test_a_swap_that_leaves_a_score_undefined_counts_against_the_difference():
    """Class in image 0 only in a, in image 1 only in b: swapping either alone leaves one of the two without it."""

    def read(sums):
        share = np.full(sums.shape[:-1], np.nan)
        return np.divide(sums[..., 0], sums[..., 1], out=share, where=sums[..., 1] > 0)

    a = Score(np.array([[[9.0, 10], [0, 0], [0, 0]]]), read)
    b = Score(np.array([[[0.0, 0], [1, 10], [0, 0]]]), read)
    assert permutation_test(a, b, choose_units(3)).p == 1
    never = Score(np.zeros((1, 3, 2)), read)
    assert np.isnan(permutation_test(a, never, choose_units(3)).p)
    assert np.isnan(paired_bootstrap(a, never, choose_units(3)).share_not_above)


def test_seeds_must_be_as_many_to_be_swapped():
    a, b = systems_of(30, (0,), seeds=3)[0], systems_of(30, (0,), seeds=2)[0]
    with pytest.raises(SettingError, match="3 and 2 seeds cannot be swapped"):
        permutation_test(a, b, choose_units(30))
    assert "2 seeds are few" in " ".join(paired_bootstrap(a, b, choose_units(30)).interval.words)


@pytest.mark.parametrize("method", ["expanded", "percentile", "bca"])
def test_the_paired_bootstrap_of_means_is_that_of_their_differences(method):
    rng = np.random.default_rng(1)
    a, b = rng.random(50), rng.random(50)
    units = choose_units(50)
    pair = paired_bootstrap(means(a), means(b), units, method=method)
    single = intervals({"d": means(a - b)}, units, method=method)["d"]
    np.testing.assert_allclose([pair.interval.low, pair.interval.high], [single.low, single.high], rtol=0, atol=1e-12)
    drawn = resample([means(a - b)], units, resamples=2000, seed=0)[0]
    assert pair.share_not_above == (drawn <= 0).mean() and pair.difference == pytest.approx((a - b).mean())


def test_systems_draw_their_seeds_on_their_own():
    """Two systems of two seeds that score 0 and 1: the difference of two means of two draws has variance 2 * 1/8."""
    facts = np.ones((2, 30, 2))
    facts[0, :, 0] = 0
    score = Score(facts, lambda sums: sums[..., 0] / sums[..., 1])
    one, other = resample([score, score], choose_units(30), resamples=20_000, seed=0, systems=(0, 1))
    assert (one - other).var() == pytest.approx(0.25, rel=0.05)
    one, other = resample([score, score], choose_units(30), resamples=200, seed=0)
    assert (one == other).all()


def test_one_unit_has_a_difference_and_no_interval():
    a, b = systems_of(5, (1, 0))
    found = paired_bootstrap(a, b, sequences(5))
    assert found.difference == a.value - b.value and np.isnan([found.interval.low, found.share_not_above]).all()
    assert permutation_test(a, b, sequences(5)).p == 1


def test_holm_of_a_published_example():
    """Four tests at .01, .04, .03, .005: at 5 % the last and the first are rejected, then it stops."""
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1, 1])
    np.testing.assert_array_equal(holm(np.array([np.nan, 0.02, np.nan, 0.01])), [np.nan, 0.02, np.nan, 0.02])
    assert holm(np.array([])).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
@settings(deadline=None)
def test_holm_rejects_as_its_steps_do(p, alpha):
    rejected = set()
    for step, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if (len(p) - step) * p[index] > alpha:
            break
        rejected.add(index)
    adjusted = holm(np.array(p))
    assert {i for i in range(len(p)) if adjusted[i] <= alpha} == rejected
    assert (adjusted >= p).all() and (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


@st.composite
def apart(draw):
    k = draw(st.integers(1, 6))
    square = np.zeros((k, k), bool)
    for i, j in combinations(range(k), 2):
        square[i, j] = square[j, i] = draw(st.booleans())
    return square


@given(apart())
@settings(max_examples=60, deadline=None)
def test_groups_are_the_largest_sets_not_told_apart(apart):
    """Against brute force over all subsets."""
    k = len(apart)
    alike = [set(c) for size in range(1, k + 1) for c in combinations(range(k), size) if not apart[np.ix_(c, c)].any()]
    largest = {frozenset(group) for group in alike if not any(group < other for other in alike)}
    found = letter_groups(apart)
    assert set(found) == largest and len(found) == len(largest)


@given(apart(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_systems_share_a_letter_if_and_only_if_not_told_apart(apart, random):
    k = len(apart)
    scores = np.array([random.random() for _ in range(k)])
    ranks = rank_groups(scores, np.where(apart, 0.01, 0.5))
    for i, j in combinations(range(k), 2):
        assert bool(set(ranks.letters[i]) & set(ranks.letters[j])) == (not apart[i, j])
    assert list(scores[list(ranks.order)]) == sorted(scores, reverse=True) and "a" in ranks.letters[ranks.order[0]]
    for i in range(k):
        assert ranks.best[i] == 1 + sum(apart[i, j] and scores[j] > scores[i] for j in range(k))
        assert ranks.worst[i] == k - sum(apart[i, j] and scores[j] < scores[i] for j in range(k))


def test_rank_groups_by_hand():
    """Second and third are alike, and the third is like the first; the last is worse than all; NaN tells nothing."""
    p = np.full((5, 5), np.nan)
    for i, j, value in [(0, 1, 0.5), (0, 2, 0.01), (1, 2, 0.3), (0, 3, 0.001), (1, 3, 0.001), (2, 3, 0.04)]:
        p[i, j] = p[j, i] = value
    ranks = rank_groups(np.array([0.9, 0.8, 0.7, 0.1, np.nan]), p)
    assert ranks.order == (0, 1, 2, 3, 4)
    assert ranks.letters == ("a", "ab", "b", "c", "abc")
    assert ranks.best == (1, 1, 2, 4, 1) and ranks.worst == (3, 4, 4, 5, 5)
    assert rank_groups(np.array([0.9, 0.8]), np.array([[0, 0.03], [0.03, 0]]), alpha=0.01).letters == ("a", "a")


def test_a_table_is_its_pairs():
    scores = dict(zip(("low", "high", "middle", "too"), systems_of(120, (0, 1, 0.5, 0.52)), strict=True))
    units = choose_units(120)
    table = compare_all(scores, units, permutations=999)
    assert table.names == tuple(sorted(scores, key=lambda name: -scores[name].value)) and table.names[0] == "high"
    assert table.values == tuple(float(scores[name].value) for name in table.names)
    assert len(table.pairs) == 6
    for pair in table.pairs:
        a, b = scores[pair.better], scores[pair.worse]
        alone = permutation_test(a, b, units, permutations=999)
        assert pair.p == alone.p and pair.bootstrap.difference == alone.difference >= 0
        assert pair.bootstrap == paired_bootstrap(a, b, units)
    np.testing.assert_array_equal([p.adjusted_p for p in table.pairs], holm(np.array([p.p for p in table.pairs])))
    assert table.letters == ("a", "b", "b", "c")
    assert table.best_rank == (1, 2, 2, 4) and table.worst_rank == (1, 3, 3, 4) and table.words == ()
    assert compare_all(dict(reversed(scores.items())), units, permutations=999) == table


def test_a_table_says_what_it_cannot_say():
    systems = dict(zip("abc", systems_of(40, (2, 1, 0)), strict=True))
    table = compare_all(systems, sequences(10, 10, 20))
    assert table.letters == ("a", "a", "a")
    assert "3 sequences" in table.words[0] and "no p below 0.25" in table.words[0] and "3 tests" in table.words[0]
    systems["d"] = systems_of(40, (0,), seeds=2)[0]
    table = compare_all(systems, choose_units(40))
    assert "3 pairs were not tested" in table.words[-1]
    assert sum(np.isnan(pair.p) for pair in table.pairs) == 3
    assert not any(np.isnan(pair.bootstrap.interval.low) for pair in table.pairs)
    alone = compare_all({"a": systems["a"]}, choose_units(40))
    assert alone.letters == ("a",) and alone.pairs == ()


@pytest.fixture(scope="module")
def coverage():
    """The simulation of `benchmarks/intervals.py`."""
    spec = importlib.util.spec_from_file_location("interval_benchmark", REPOSITORY / "benchmarks/intervals.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "sequences"])
def test_under_no_difference_the_paired_test_rejects_in_at_most_six_percent(coverage, kind):
    """Chance leaves an honest test below 6 % and three standard errors; one of dependent frames passes that by far."""
    worlds, make = 200, {"images": coverage.images, "sequences": coverage.video}[kind]
    number = {"images": 100, "sequences": 10}[kind]
    found = coverage.share(worlds, number, lambda rng: coverage.rejected(make(rng, number, 2), kind))[0] / 100
    assert (found <= 0.06 + 3 * np.sqrt(0.06 * 0.94 / worlds)).all() and found.mean() > 0.01
