"""Intervals against SciPy's bootstrap, slow loops over drawn images, values worked by hand, and simulated worlds."""

import importlib.util
import tracemalloc

import numpy as np
import pytest
from conftest import REPOSITORY
from scipy import stats

from segbench.errors import SettingError
from segbench.metrics import region, resampling
from segbench.metrics.intervals import Bootstrap, interval, intervals
from segbench.metrics.resampling import bootstrap_weights, leave_one_out, resample
from segbench.metrics.score import Score
from segbench.metrics.units import ENOUGH, Units, choose_units

K = 4


@pytest.fixture(scope="module")
def coverage():
    """The simulation of `benchmarks/intervals.py`."""
    spec = importlib.util.spec_from_file_location("interval_benchmark", REPOSITORY / "benchmarks/intervals.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def facts_of(images, seeds=1, seed=0, rare=0.3):
    """Areas of K classes, of which the last is in few images."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 1000, (1, images, K)) * (rng.random((1, images, K)) < np.r_[np.ones(K - 1), rare])
    correct = np.floor(truth * rng.random((seeds, images, K)))
    predicted = correct + rng.integers(0, 100, (seeds, images, K))
    return np.concatenate([np.broadcast_to(truth, correct.shape), predicted, correct], axis=-1).astype(np.float64)


def of_areas(read):
    return lambda sums: np.asarray(read(sums.reshape(*sums.shape[:-1], 3, K)))


def all_scores(facts):
    reads = {"mean_iou": region.mean_iou, "global": region.global_accuracy, "iou": region.per_class_iou}
    return {name: Score(facts, of_areas(read)) for name, read in reads.items()}


def ratio(facts):
    """Score of [s, n, 2] facts: the sum of the first over the sum of the second."""

    def read(sums):
        with np.errstate(invalid="ignore"):
            return sums[..., 0] / sums[..., 1]

    return Score(np.asarray(facts, np.float64), read)


def weights_of(units, resamples, seed=0, rows=64):
    return np.concatenate(list(bootstrap_weights(units, resamples, seed, rows)))


def test_weights_count_what_was_drawn():
    weights = weights_of(7, 5000)
    assert weights.shape == (5000, 7) and (weights.sum(1) == 7).all()
    # Binomial(7, 1/7) a unit: mean 1, variance 6/7; the units of a resample take from each other.
    assert np.abs(weights.mean(0) - 1).max() < 0.06 and np.abs(weights.var(0) - 6 / 7).max() < 0.08
    assert np.abs(np.corrcoef(weights.T)[0, 1:] + 1 / 6).max() < 0.06


@pytest.mark.parametrize("rows", [1, 3, 100, 1000])
def test_weights_do_not_depend_on_the_chunk(rows):
    assert (weights_of(13, 101, rows=rows) == weights_of(13, 101, rows=101)).all()
    assert (weights_of(13, 101, seed=1) != weights_of(13, 101)).any()


@pytest.mark.parametrize("kind", ["images", "sequences"])
def test_resamples_equal_a_loop_over_the_images_drawn(kind):
    facts = facts_of(12)
    units = Units(kind, np.arange(12) if kind == "images" else np.array([2, 0, 0, 1, 1, 1, 3, 2, 2, 3, 0, 4]))
    scores = all_scores(facts)
    drawn = dict(zip(scores, resample(list(scores.values()), units, resamples=40, seed=5), strict=True))
    for r, weights in enumerate(weights_of(units.number, 40, 5).astype(int)):
        images = [i for unit, times in enumerate(weights) for i in list(np.flatnonzero(units.index == unit)) * times]
        areas = facts[0, images].sum(0).reshape(3, K).astype(np.int64)
        assert drawn["mean_iou"][r] == region.mean_iou(areas)
        np.testing.assert_array_equal(drawn["iou"][r], region.per_class_iou(areas))


@pytest.mark.parametrize("kind", ["images", "sequences"])
def test_left_out_units_equal_a_loop(kind, monkeypatch):
    facts = facts_of(9, seeds=2)
    units = Units(kind, np.arange(9) if kind == "images" else np.array([0, 1, 1, 0, 2, 2, 2, 3, 3]))
    score = all_scores(facts)["iou"]
    for mib in (64, 1e-4):
        monkeypatch.setattr(resampling, "CHUNK_MIB", mib)
        found = leave_one_out(score, units)
        for unit in range(units.number):
            kept = Score(facts[:, units.index != unit], score.read)
            np.testing.assert_array_equal(found[unit], kept.value)


@pytest.mark.parametrize(("method", "scipy_method"), [("percentile", "percentile"), ("bca", "BCa")])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_bounds_equal_scipys_on_its_own_resamples(method, scipy_method, level):
    rng = np.random.default_rng(2)
    parts = rng.lognormal(0, 1.5, 15)
    wholes = parts + rng.lognormal(0, 1, 15)
    score = ratio(np.stack([parts, wholes], -1)[None])
    theirs = stats.bootstrap(
        (parts, wholes),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=999,
        confidence_level=level,
        method=scipy_method,
        rng=np.random.default_rng(0),
    )
    units = choose_units(15)
    ours = interval(
        score.value,
        theirs.bootstrap_distribution,
        leave_one_out(score, units),
        units=units,
        seeds=1,
        how=Bootstrap(level, method),
    )
    np.testing.assert_allclose([ours.low, ours.high], list(theirs.confidence_interval), rtol=0, atol=1e-12)
    # With resamples of our own: to their chance.
    own = intervals({"x": score}, units, level=level, method=method, resamples=20_000)["x"]
    np.testing.assert_allclose([own.low, own.high], list(theirs.confidence_interval), atol=0.02)


def test_expanded_bounds_of_a_mean_are_students():
    """Resamples placed at the quantiles of a normal bootstrap distribution give Student's interval."""
    values = np.array([3.0, 5.0, 4.0, 8.0, 1.0, 6.0])
    steps = (np.arange(400_000) + 0.5) / 400_000
    drawn = stats.norm.ppf(steps, values.mean(), values.std() / np.sqrt(6))
    found = interval(
        np.asarray(values.mean()), drawn, None, units=choose_units(6), seeds=1, how=Bootstrap(method="expanded")
    )
    student = stats.t.interval(0.95, 5, values.mean(), values.std(ddof=1) / np.sqrt(6))
    np.testing.assert_allclose([found.low, found.high], student, atol=2e-3)


def test_intervals_are_the_same_alone_together_and_in_any_chunk(monkeypatch):
    scores = all_scores(facts_of(30))
    units = choose_units(30)
    together = intervals(scores, units, resamples=300)
    monkeypatch.setattr(resampling, "CHUNK_MIB", 0)
    for name, score in scores.items():
        alone = intervals({name: score}, units, resamples=300)[name]
        np.testing.assert_array_equal(alone.low, together[name].low)
        np.testing.assert_array_equal(alone.high, together[name].high)
    monkeypatch.undo()
    assert intervals(scores, units, resamples=300, seed=1)["mean_iou"].low != together["mean_iou"].low
    one = together["mean_iou"]
    assert one.low < scores["mean_iou"].value < one.high and together["iou"].low.shape == (K,)
    assert (one.level, one.method, one.kind, one.units, one.seeds, one.resamples) == (
        *(0.95, "expanded", "images", 30, 1, 300),
    )


def test_shared_facts_are_summed_once(monkeypatch):
    products = []
    weighted = resampling._weighted
    monkeypatch.setattr(resampling, "_weighted", lambda w, f: products.append(f.shape) or weighted(w, f))
    intervals(all_scores(facts_of(30)), choose_units(30))
    assert products == [(1, 30, 3 * K)]


def test_scores_of_unlike_facts_go_together():
    """Region facts, per-image means and vectors in one call, as a report asks for them."""
    scores = {**all_scores(facts_of(30)), "bf": ratio(np.random.default_rng(0).random((1, 30, 2)))}
    together = intervals(scores, choose_units(30), method="bca", resamples=300)
    alone = intervals({"bf": scores["bf"]}, choose_units(30), method="bca", resamples=300)["bf"]
    np.testing.assert_allclose([together["bf"].low, together["bf"].high], [alone.low, alone.high], rtol=1e-12)


def test_memory_does_not_grow_with_the_resamples():
    scores, units = all_scores(facts_of(20_000)), choose_units(20_000)
    tracemalloc.start()
    intervals(scores, units, resamples=400)
    peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert peak_mib < 75, f"{peak_mib:.0f} MiB; the weights of 400 resamples are 61, and are made in three steps"


def test_seeds_draw_the_same_images():
    """Seeds that predicted alike are one seed, in every resample."""
    one = facts_of(40)
    same = np.repeat(one, 4, axis=0)
    units = choose_units(40)
    single, four = (resample([all_scores(f)["mean_iou"]], units, resamples=200, seed=0)[0] for f in (one, same))
    np.testing.assert_allclose(four, single, rtol=1e-14)


def test_seeds_are_drawn_with_replacement():
    """Seeds that score 0, 0.3 and 0.9 in every image: the mean of three drawn has a third of their variance."""
    shares = np.array([0.0, 3.0, 9.0])
    facts = np.stack([np.stack([np.full(60, share), np.full(60, 10.0)], -1) for share in shares])
    drawn = resample([ratio(facts)], choose_units(60), resamples=20_000, seed=0)[0]
    possible = sorted({(a + b + c) / 30 for a in shares for b in shares for c in shares})
    np.testing.assert_allclose(np.unique(drawn.round(12)), possible, atol=1e-9)
    assert drawn.mean() == pytest.approx(0.4, abs=0.005)
    assert drawn.var() == pytest.approx(np.var(shares / 10) / 3, rel=0.03)
    found = intervals({"x": ratio(facts)}, choose_units(60))["x"]
    assert found.seeds == 3 and "3 seeds are few" in found.words[1] and "18%" in found.words[1]


def test_a_score_undefined_in_one_seed_drawn_is_undefined():
    facts = np.ones((2, 60, 2))
    facts[1] = 0
    drawn = resample([ratio(facts)], choose_units(60), resamples=4000, seed=0)[0]
    assert np.isnan(drawn).mean() == pytest.approx(0.75, abs=0.03) and (drawn[np.isfinite(drawn)] == 1).all()


@pytest.mark.parametrize("method", ["expanded", "percentile", "bca"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_score_that_cannot_vary_has_no_width_and_a_word(method, share):
    facts = np.stack([np.full(60, share), np.ones(60)], -1)[None]
    found = intervals({"x": ratio(facts)}, choose_units(60), method=method)["x"]
    np.testing.assert_allclose([found.low, found.high], share, atol=1e-12)
    assert "not certainty" in found.words[-1] and found.undefined == 0


@pytest.mark.parametrize("method", ["expanded", "percentile", "bca"])
def test_a_class_of_few_images_has_no_interval(method):
    """A class in 1 of 60 images is missing from 36 % of the resamples, one in 2 of them from 13 %, in 4 from 2 %."""
    truth = np.zeros((1, 60, 4))
    truth[0, 0, 0], truth[0, :2, 1], truth[0, :4, 2] = 10, (10, 20), (10, 20, 30, 40)
    correct = truth * np.linspace(0.2, 1, 60)[:, None]
    with np.errstate(invalid="ignore"):
        score = Score(np.concatenate([correct, truth], -1), lambda sums: sums[..., :4] / sums[..., 4:])
        found = intervals({"x": score}, choose_units(60), method=method)["x"]
    assert (np.isfinite(found.low) == [False, False, True, False]).all()
    assert (np.isfinite(found.low) == np.isfinite(found.high)).all()
    np.testing.assert_allclose(found.undefined, [(59 / 60) ** 60, (58 / 60) ** 60, (56 / 60) ** 60, 1], atol=0.03)
    assert found.words[1:] == ("no interval where over 5% of the resamples have no score: too few have the class",)


def test_bca_says_where_it_is_not_defined():
    found = interval(
        np.asarray(0.9),
        np.linspace(0.1, 0.5, 200),
        np.linspace(0.8, 1, 60),
        units=choose_units(60),
        seeds=1,
        how=Bootstrap(method="bca"),
    )
    assert np.isnan([found.low, found.high]).all() and "BCa is not defined" in found.words[-1]


@pytest.mark.parametrize(
    ("units", "word"),
    [
        (choose_units(1), "1 image cannot"),
        (choose_units(0), "0 images cannot"),
        (choose_units(5, ["a"] * 5, "sequences"), "1 sequence cannot"),
    ],
)
def test_fewer_than_two_units_have_no_interval(units, word):
    found = intervals(all_scores(facts_of(len(units.index))), units)
    assert np.isnan([found["mean_iou"].low, found["mean_iou"].high]).all() and np.isnan(found["iou"].low).all()
    assert word in found["iou"].words[0]


def test_many_sequences_are_the_units():
    names = [f"{i % 20:02d}" for i in range(100)]
    units = choose_units(100, names)
    assert (units.kind, units.number, units.words) == ("sequences", 20, ())
    assert [names[i] for i in np.flatnonzero(units.index == 3)] == ["03"] * 5


def test_few_sequences_are_the_units_still_with_a_word():
    units = choose_units(233, ["0001TP"] * 62 + ["Seq05VD"] * 171)
    assert (units.kind, units.number) == ("sequences", 2)
    assert units.words == ("2 sequences are too few (needed: 20): the interval is too narrow",)
    assert choose_units(60, ["a"] * 60).words[0].startswith("frames of 1 sequence are taken as independent")
    assert intervals({"x": all_scores(facts_of(233))["mean_iou"]}, units)["x"].words == units.words


def test_units_can_be_asked_for_by_name():
    names = ["a"] * 60 + ["b"] * 60
    asked = choose_units(120, names, "sequences")
    assert (asked.kind, asked.number) == ("sequences", 2) and "2 sequences are too few" in asked.words[0]
    frames = choose_units(600, [str(i // 20) for i in range(600)], "images")
    assert frames.kind == "images" and "frames of 30 sequences are taken as independent" in frames.words[0]
    assert choose_units(ENOUGH["images"]).words == () and "(99)" in choose_units(99).words[0]
    with pytest.raises(SettingError, match="names no sequences"):
        choose_units(3, (), "sequences")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"level": 95.0}, "level of 95.0 is not between"),
        ({"resamples": 99}, "99 resamples are too few"),
    ],
)
def test_wrong_settings_are_named(setting, message):
    with pytest.raises(SettingError, match=message):
        intervals({}, choose_units(9), **setting)


def beyond_chance(covered, worlds):
    """Whether a coverage is outside of 93-97 % by more than chance makes of so many worlds (3.5 standard errors)."""
    slack = 3.5 * np.sqrt(0.95 * 0.05 / worlds)
    return (covered < 0.93 - slack) | (covered > 0.97 + slack)


def covered_of_images(coverage, number, worlds):
    """Of each dataset score (the rarest class's IoU is none), the share of worlds in which its interval covers."""
    found = coverage.share(
        worlds, number, lambda rng: coverage.covered(coverage.images(rng, number), "images", coverage.truth())
    )
    return found[0, :5] / 100


def covered_of_video(coverage, sequences, worlds):
    """[kind of units, score]: the same, with sequences and with their frames as units."""

    def both(rng):
        video = coverage.video(rng, sequences)
        return np.vstack([coverage.covered(video, kind, coverage.truth())[0, :5] for kind in ("sequences", "images")])

    return coverage.share(worlds, sequences, both) / 100


def test_intervals_cover_in_worlds_of_independent_images(coverage):
    assert not beyond_chance(covered_of_images(coverage, 100, 120), 120).any()


def test_intervals_of_sequences_cover_where_those_of_frames_do_not(coverage):
    sequences, frames = covered_of_video(coverage, 20, 100)
    assert not beyond_chance(sequences, 100).any() and (frames < 0.65).all()


@pytest.mark.slow
def test_intervals_cover_in_many_worlds_of_images(coverage):
    assert not beyond_chance(covered_of_images(coverage, 100, 500), 500).any()


@pytest.mark.slow
def test_intervals_cover_in_many_worlds_of_sequences(coverage):
    sequences, frames = covered_of_video(coverage, 20, 300)
    assert not beyond_chance(sequences, 300).any() and (frames < 0.5).all()
