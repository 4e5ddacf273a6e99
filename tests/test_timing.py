"""Times under a clock whose hands the test moves, verdicts on drawn noise, and a sleep or two on the real clock."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from segbench.profiling import timing
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.steady import drift, rank_deviation, stable, unrest, warm
from segbench.profiling.timing import Times, clock, time_inference, time_model, to_settle
from segbench.profiling.usage import Samples
from segbench.profiling.workload import Batch, random_batch

CLASSES = 4
CPU = torch.device("cpu")
STEADY = ProfileSpec(res=(6, 8), min_samples=20, min_seconds=0.1, max_seconds=10.0)
CAFFE = ProfileSpec(res=(6, 8), protocol="caffe-time", warmup=2, repetitions=3)


class Clock:
    """Time passes when it is told to."""

    def __init__(self) -> None:
        self.now_ns = 0

    def sleep(self, ms: float) -> None:
        self.now_ns += round(ms * 1e6)


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter_ns=lambda: clock.now_ns))
    return clock


class Pointwise(nn.Module):
    """One 1x1 convolution that calls `during` in its forward and `back` in its backward, each with `training`."""

    def __init__(self, during: Callable[[bool], Any], back: Callable[[bool], Any] = lambda _: None) -> None:
        super().__init__()
        self.classify = nn.Conv2d(3, CLASSES, 1)
        self.during, self.back = during, back

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        self.during(self.training)
        logits = self.classify(images)
        if logits.requires_grad:
            logits.register_hook(lambda _: self.back(self.training))  # type: ignore[no-untyped-call]
        return logits


def drawn_batch(images: int = 1) -> Batch:
    return random_batch(images, STEADY.res, CLASSES, CPU)


def run(
    hands: Clock, times_ms: Iterator[float], spec: ProfileSpec = STEADY, **kwargs: Any
) -> tuple[Samples, list[str]]:
    """An inference whose passes take these times."""
    return time_inference(lambda: hands.sleep(next(times_ms)), CPU, spec, kwargs.get("watch"))


def times_of(model: nn.Module, spec: ProfileSpec, batch: Batch | None = None, **given: Any) -> Times:
    """Of a model whose training network and forward are itself, unless others are given."""
    batch = batch or drawn_batch()
    around = given.get("around", nullcontext)
    images = given.get("images", lambda: batch.images)

    def forward() -> Tensor:
        fed = images()
        with around():
            return model(fed)

    trained = given.get("trained", model)
    return time_model(trained, given.get("infer", forward), batch, spec, images, around, given.get("watch"))


def quiet(median_ms: float, sd: float = 0.01, seed: int = 0) -> Iterator[float]:
    """Normal noise without end."""
    draw = np.random.default_rng(seed)
    while True:
        yield median_ms * (1 + sd * float(draw.standard_normal()))


# --- verdicts ---


def test_the_rank_statistic_by_hand() -> None:
    """U counts the pairs in which the later one is larger; its variance for 2 and 2 is 2 * 2 * 5 / 12."""
    sd = math.sqrt(5 / 3)
    assert rank_deviation(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == pytest.approx((4 - 2) / sd)
    assert rank_deviation(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == pytest.approx((0 - 2) / sd)
    assert rank_deviation(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx((3.5 - 2) / sd)
    three = rank_deviation(np.array([1.0, 5.0, 3.0]), np.array([4.0, 2.0]))  # 4 > 1, 4 > 3, 2 > 1
    assert three == pytest.approx((3 - 3) / math.sqrt(3 * 2 * 6 / 12))


def test_drift_by_hand() -> None:
    rising = [10.0, 10.1, 10.2, 10.3, 10.4, 77.0, 11.0, 11.1, 11.2, 11.3, 11.4]  # the middle one belongs to no half
    assert drift(rising, beyond=0.03) == pytest.approx(1 / 11.0)
    assert drift(rising[::-1], beyond=0.03) == pytest.approx(-1 / 11.0)
    assert drift(rising, beyond=0.1) == 0  # too small to matter
    mixed = [10.0, 12.0, 10.0, 12.0, 10.0, 12.0, 10.0, 12.0, 12.0, 10.0]
    assert drift(mixed, beyond=0.03) == 0  # the medians differ by a fifth, the ranks by chance


def share(judge: Callable[[list[float]], bool | None], draw: Callable[[np.random.Generator], Any]) -> float:
    """How many of 100 drawn series are judged True, as a share."""
    series = (draw(np.random.default_rng(seed)).astype(float).tolist() for seed in range(100))
    return sum(judge(times_ms) is True for times_ms in series) / 100


def outliers(draw: np.random.Generator, count: int, sd: float, portion: float) -> Any:
    """Normal noise in which a portion of the samples takes three times as long."""
    return 10 * draw.normal(1, sd, count) * np.where(draw.random(count) < portion, 3, 1)


@pytest.mark.parametrize("count", [20, 1000])
@pytest.mark.parametrize(("sd", "portion"), [(0.0, 0.0), (0.005, 0.0), (0.01, 0.0), (0.02, 0.0), (0.01, 0.03)])
def test_quiet_noise_is_stable(count: int, sd: float, portion: float) -> None:
    assert share(stable, lambda draw: outliers(draw, count, sd, portion)) >= 0.97


@pytest.mark.parametrize("count", [20, 1000])
@pytest.mark.parametrize(
    "noise",
    [
        lambda draw, count: np.where(draw.random(count) < 0.5, 10, 12),
        lambda draw, count: np.where(draw.random(count) < 0.6, 10, 13) * draw.normal(1, 0.01, count),
        lambda draw, count: 10 * draw.normal(1, 0.1, count),
        lambda draw, count: 10 * draw.lognormal(0, 0.3, count),
        lambda draw, count: draw.uniform(8, 12, count),
    ],
    ids=["two speeds", "two speeds, one rarer", "normal 10 %", "lognormal 30 %", "uniform 20 %"],
)
def test_jitter_is_unstable(count: int, noise: Callable[[np.random.Generator, int], Any]) -> None:
    assert share(stable, lambda draw: noise(draw, count)) <= 0.03


@pytest.mark.parametrize("count", [20, 1000])
@pytest.mark.parametrize(
    "trend",
    [
        lambda count: np.linspace(1, 1.1, count),
        lambda count: np.linspace(1.1, 1, count),
        lambda count: np.where(np.arange(count) < count // 2, 1, 1.05),
    ],
    ids=["slower", "faster", "step"],
)
def test_drift_is_unstable(count: int, trend: Callable[[int], Any]) -> None:
    assert share(stable, lambda draw: 10 * trend(count) * draw.normal(1, 0.01, count)) <= 0.03


def test_what_is_wrong_is_said() -> None:
    steps = [10.0] * 10 + [11.0] * 10
    assert unrest(steps) == "the later half is slower than the earlier one by 9.5%"  # 1 of 10.5
    assert unrest(steps[::-1]) == "the later half is faster than the earlier one by 9.5%"
    assert unrest([10.0, 12.0] * 10) == "the 95 % interval of the median is 18.2% of it wide"  # 2 of 11
    spread = "the middle two thirds of the samples spread over 20.0% of the median"
    assert unrest([10.0, 10.0, 10.0, 12.0] * 50) == spread
    assert unrest([10.0] * 17 + [30.0] * 3) == ""  # a few slow ones
    assert unrest([10.0] * 20) == ""
    assert unrest([0.0] * 20) == "half of the samples are shorter than the clock can tell"
    assert warm([0.0] * 10)


def test_few_samples_are_not_judged() -> None:
    assert stable([10.0] * 5) is None and unrest([10.0] * 5) == "5 samples are too few to tell"
    assert stable([10.0] * 6) is True
    assert stable([10.0, 10.1, 10.2, 10.3, 10.4, 10.6]) is False


@pytest.mark.parametrize("sd", [0.02, 0.03, 0.04, 0.05])
def test_five_runs_agree_within_three_percent_or_one_is_unstable(sd: float) -> None:
    """What the limits are chosen for; 9.75 of a thousand are expected at 3 %, fewer elsewhere."""
    repetitions = 10 * np.random.default_rng(0).normal(1, sd, (1000, 5, 20))
    medians = np.median(repetitions, axis=2)
    disagreeing = repetitions[medians.max(1) > 1.03 * medians.min(1)]
    assert sum(all(stable(run.tolist()) for run in five) for five in disagreeing) <= 20


def test_a_warm_up_is_over_when_its_later_half_no_longer_drifts() -> None:
    assert not warm([10.0] * 9)
    assert warm([10.0] * 10)
    assert warm([99.0] + [10.0] * 9)  # one slow first pass is an outlier
    assert not warm([20.0 - index for index in range(10)])
    falling = [20.0 - index for index in range(10)]
    assert not warm(falling + [10.0] * 5)
    assert warm(falling + [10.0] * 10)
    slow = [10 * (1 + 0.06 * index / 100) for index in range(100)]  # 3 % in the later half, 0.6 % in the last ten
    assert not warm(slow)
    assert warm(slow[-10:])


@pytest.mark.parametrize("sd", [0.01, 0.02, 0.05, 0.2])
def test_noise_alone_does_not_keep_a_warm_up_going(sd: float) -> None:
    assert share(warm, lambda draw: 10 * draw.normal(1, sd, 10)) >= 0.85


# --- the protocol ---


def test_a_quiet_region_is_warmed_and_measured_for_the_seconds_asked(hands: Clock) -> None:
    """5 ms a pass and 0.1 s: 20 passes to warm up, 20 measured; at 2 ms there must be 50 of each."""
    samples, notes = run(hands, repeat(5.0))
    assert (len(samples.warmup_ms), len(samples.measured_ms)) == (20, 20)
    assert samples.stable is True and not notes
    samples, _ = run(hands, repeat(2.0))
    assert (len(samples.warmup_ms), len(samples.measured_ms)) == (50, 50)
    samples, _ = run(hands, repeat(50.0))  # the counts decide: 10 to judge a warm-up, `min_samples`
    assert (len(samples.warmup_ms), len(samples.measured_ms)) == (10, 20)


def test_every_sample_is_kept_in_order(hands: Clock) -> None:
    script = [50.0 + index / 100 for index in range(30)]
    samples, _ = run(hands, iter(script))
    assert samples.warmup_ms + samples.measured_ms == pytest.approx(script)


def test_drift_extends_the_warm_up(hands: Clock) -> None:
    falling = [100 * (1 + math.exp(-index / 10)) for index in range(200)]
    samples, notes = run(hands, iter(falling), STEADY.model_copy(update={"max_seconds": 60.0}))
    assert len(samples.warmup_ms) > 30
    assert samples.stable is True and not notes
    assert samples.median < 103


def test_a_long_warm_up_is_judged_ever_more_seldom(hands: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """By growth of a tenth: 5 s of passes of 1 ms are judged 100 passes in, 110, 121 ... 40 times and not 4900."""
    judged: list[int] = []
    monkeypatch.setattr(timing, "warm", lambda times_ms: judged.append(len(times_ms)) or False)
    samples, notes = run(hands, repeat(1.0))
    assert len(samples.warmup_ms) == 5000 and "before it was steady" in notes[0]
    assert judged[:4] == [100, 110, 121, 133] and len(judged) < 45
    assert [to_settle([timing.Pass((1.0,), (None,))] * count) for count in (1, 9, 10, 30)] == [2, 10, 11, 33]
    assert to_settle([]) == 1


def test_jitter_is_flagged(hands: Clock) -> None:
    draw = np.random.default_rng(1)
    samples, notes = run(hands, (float(draw.choice([10.0, 14.0])) for _ in repeat(0)))
    assert samples.stable is False
    assert len(notes) == 1 and notes[0].startswith("forward unstable: the 95 % interval of the median is ")


def test_a_region_that_drifts_without_end_is_measured_in_the_second_half_and_flagged(hands: Clock) -> None:
    samples, notes = run(hands, (50 * 1.01**index for index in range(10_000)))
    assert sum(samples.warmup_ms) == pytest.approx(5000, rel=0.1)  # half of the 10 s
    assert len(samples.measured_ms) == 20
    assert samples.stable is False
    warmup = len(samples.warmup_ms)
    assert notes[0] == f"forward: half of max_seconds ended its warm-up at pass {warmup}, before it was steady"
    assert notes[1] == "forward unstable: the later half is slower than the earlier one by 10.0%"  # 1.01^10 is 1.105


def test_max_seconds_ends_it_with_three_samples_at_least(hands: Clock) -> None:
    samples, notes = run(hands, repeat(6000.0))
    assert (len(samples.warmup_ms), len(samples.measured_ms)) == (1, 3)
    assert samples.stable is None
    assert notes == [
        "forward: half of max_seconds ended its warm-up at pass 1, before it was steady",
        "forward: max_seconds ended its measurement after 3 samples",
        "forward not judged: 3 samples are too few to tell",
    ]
    samples, notes = run(hands, repeat(450.0))  # 10 to warm up take 4.5 s, 13 end behind 10 s
    assert (len(samples.warmup_ms), len(samples.measured_ms)) == (10, 13)
    assert samples.stable is True and notes == ["forward: max_seconds ended its measurement after 13 samples"]


def test_throttled_samples_are_marked(hands: Clock) -> None:
    told = chain([True] * 12, [False] * 5, [True] * 2, repeat(False))  # 10 of them in the warm-up
    samples, _ = run(hands, repeat(50.0), watch=lambda: next(told))
    assert samples.throttled == (True,) * 2 + (False,) * 5 + (True,) * 2 + (False,) * 11
    assert run(hands, repeat(50.0))[0].throttled == ()


def test_what_cannot_be_told_of_throttling_marks_nothing(hands: Clock) -> None:
    samples, notes = run(hands, repeat(50.0), watch=lambda: None)
    assert samples.throttled == () and not notes
    told = chain([False] * 14, [True, None], repeat(False))
    samples, notes = run(hands, repeat(50.0), watch=lambda: next(told))
    assert samples.throttled == ()
    assert notes == ["forward: throttled in 1 samples, not told in 1; none marked"]


def test_watching_is_not_timed(hands: Clock) -> None:
    samples, _ = run(hands, repeat(50.0), watch=lambda: hands.sleep(7.0) or False)
    assert set(samples.measured_ms) == {50.0}


def test_caffe_time_counts_and_judges_nothing(hands: Clock) -> None:
    script = [9.0, 8.0, 1.0, 7.0, 2.0, 1.0, 1.0, 1.0]  # six samples could be judged
    samples, notes = run(hands, iter(script), CAFFE.model_copy(update={"repetitions": 6}))
    assert samples == Samples(measured_ms=tuple(script[2:]), warmup_ms=(9.0, 8.0)) and not notes


# --- regions ---


class SleepingStep(torch.optim.SGD):
    hands: Clock

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.hands.sleep(3.0)
        super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.hands.sleep(1000.0)  # belongs to no region
        super().zero_grad(set_to_none)


def timed(hands: Clock, monkeypatch: pytest.MonkeyPatch, spec: ProfileSpec, **kwargs: Any) -> Times:
    """A model of 20 ms in inference; in training 40 forward, 60 backward and 3 in the step."""
    monkeypatch.setattr(SleepingStep, "hands", hands, raising=False)
    monkeypatch.setattr(torch.optim, "SGD", SleepingStep)
    model = Pointwise(lambda training: hands.sleep(40 if training else 20), lambda _: hands.sleep(60))
    return times_of(model, spec, **kwargs)


def medians(times: Times) -> list[float | None]:
    return [samples and samples.median for samples in times[:4]]


def test_each_region_is_timed_alone(hands: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = STEADY.model_copy(update={"max_seconds": 1000.0})
    times = timed(hands, monkeypatch, spec)
    assert medians(times) == [20, 40, 60, 3]
    assert all(samples and samples.stable and len(samples.measured_ms) == 20 for samples in times[:4])
    assert all(samples and set(samples.warmup_ms) == {samples.median} for samples in times[:4])
    assert times.notes == ()


def test_caffe_time_has_no_step(hands: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    times = timed(hands, monkeypatch, CAFFE)
    assert medians(times) == [20, 40, 60, None]
    assert all(samples.stable is None and len(samples.measured_ms) == 3 for samples in times[:3] if samples)
    assert times.notes == ("optimizer step not timed: the protocol caffe-time has none",)


def test_without_a_network_to_train_inference_alone_is_timed(hands: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    times = timed(hands, monkeypatch, STEADY, infer=lambda: hands.sleep(20), trained=None)
    assert medians(times) == [20, None, None, None]
    assert times.notes == ()


def test_what_is_given_is_what_is_timed(hands: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    inferred = lambda: hands.sleep(5)  # noqa: E731
    other = Pointwise(lambda training: hands.sleep(45 if training else 0), lambda _: hands.sleep(65))
    batch = drawn_batch()

    def images() -> Tensor:
        hands.sleep(1)
        return batch.images

    @contextmanager
    def around() -> Iterator[None]:
        hands.sleep(2)
        yield

    spec = STEADY.model_copy(update={"max_seconds": 1000.0})
    assert medians(timed(hands, monkeypatch, spec, infer=inferred, trained=other)) == [5, 45, 65, 3]
    assert medians(timed(hands, monkeypatch, spec, images=images, around=around)) == [23, 43, 60, 3]


def test_autocast_is_around_forward_and_loss_alone(hands: Clock) -> None:
    kinds: list[tuple[bool, bool]] = []

    def note(training: bool) -> None:
        hands.sleep(50)
        kinds.append((training, torch.is_autocast_enabled("cpu")))

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    backward: list[bool] = []
    model = Pointwise(note, lambda _: backward.append(torch.is_autocast_enabled("cpu")))
    times = times_of(model, CAFFE, around=autocast)
    assert times.backward is not None, times.notes
    assert kinds == [(True, True)] * 5 + [(False, True)] * 5
    assert backward == [False] * 5


def test_modes_and_graphs(hands: Clock) -> None:
    seen: list[tuple[bool, bool, bool]] = []

    def note(training: bool) -> None:
        hands.sleep(50)
        seen.append((training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    times = times_of(Pointwise(note).eval(), STEADY, drawn_batch(2))
    assert times.backward and times.step
    passes = len(times.backward.measured_ms) + len(times.backward.warmup_ms)
    assert seen[:passes] == [(True, True, False)] * passes
    assert set(seen[passes:]) == {(False, False, True)}


def test_steps_leave_the_weights_and_no_gradient_behind(hands: Clock) -> None:
    model = Pointwise(lambda _: hands.sleep(50))
    before = model.classify.weight.detach().clone()
    steps: list[bool] = []
    model.register_forward_pre_hook(lambda *_: steps.append(model.classify.weight.grad is None))
    times = times_of(model, STEADY)
    assert times.step is not None
    assert torch.equal(model.classify.weight, before)
    assert all(steps)  # each backward makes new gradients
    assert model.classify.weight.grad is None


def test_a_training_that_fails_is_told_and_an_inference_that_fails_raises(hands: Clock) -> None:
    def refuse(mode: bool) -> Callable[[bool], None]:
        def during(training: bool) -> None:
            hands.sleep(50)
            if training is mode:
                raise ValueError("Expected more than 1 value")

        return during

    times = times_of(Pointwise(refuse(True)), STEADY)
    assert times[1:4] == (None, None, None)
    assert times.notes == ("training at batch 1 not timed: ValueError: Expected more than 1 value",)
    with pytest.raises(ValueError, match="more than 1"):
        times_of(Pointwise(refuse(False)), STEADY)


def test_the_collector_is_off_meanwhile_and_garbage_does_not_pile_up(hands: Clock) -> None:
    alive: list[int] = []

    class Cycle:
        count = 0

        def __init__(self) -> None:
            self.itself = self
            Cycle.count += 1

        def __del__(self) -> None:
            Cycle.count -= 1

    def note(_: bool) -> None:
        hands.sleep(50)
        assert not gc.isenabled()
        Cycle()
        alive.append(Cycle.count)

    assert gc.isenabled()
    times = times_of(Pointwise(note), STEADY)
    assert times.backward is not None, times.notes
    assert gc.isenabled()
    assert max(alive) == 1


def test_a_collector_that_was_off_stays_off(hands: Clock) -> None:
    gc.disable()
    try:
        run(hands, repeat(50.0))
        assert not gc.isenabled()
    finally:
        gc.enable()


# --- clocks ---


def test_a_real_sleep_is_timed() -> None:
    spec = ProfileSpec(res=(6, 8), min_samples=3, min_seconds=0.01, max_seconds=30.0)
    model = Pointwise(lambda training: time.sleep(0.02 if training else 0.01))
    times = times_of(model, spec)
    assert times.train_forward is not None and times.backward is not None, times.notes
    assert 20 <= min(times.train_forward.measured_ms) <= times.train_forward.median < 70
    assert 10 <= min(times.forward.measured_ms) <= times.forward.median < 60
    assert 0 < times.backward.median < 10


class FakeEvent:
    """Of an accelerator on which nothing has run before the host waits for it."""

    log: list[str] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.log.append("record")

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert self is not end
        self.log.append("read")
        return 12.5


def test_cuda_is_synchronised_around_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(FakeEvent, "log", log)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(f"wait {device}"))

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        log.append(f"enter {device}")
        yield
        log.append("leave")

    monkeypatch.setattr(torch.cuda, "device", current)
    assert clock(lambda: log.append("region"), torch.device("cuda:1")) == 12.5
    wait = "wait cuda:1"
    assert log == ["enter cuda:1", wait, "record", "region", "record", wait, "read", "leave"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    device = torch.device("cuda", 0)
    batch = random_batch(1, (64, 64), CLASSES, device)
    spec = ProfileSpec(res=(64, 64), min_seconds=0.05, max_seconds=10.0)
    times = times_of(Pointwise(lambda _: None).to(device), spec, batch)
    assert all(samples and samples.median > 0 and len(samples.measured_ms) >= 20 for samples in times[:4]), times.notes
