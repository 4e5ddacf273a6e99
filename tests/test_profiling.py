"""A whole profile against what is known beforehand, and what becomes of it where something fails."""

import json
import math
import subprocess
import sys
import time
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float, UInt8
from pydantic import ValidationError
from small_nets import CLASSES, Broken, Hungry, Pointwise, Pooled
from torch import Tensor, nn

from segbench.errors import ModelError, RecordError, SettingError
from segbench.profiling import memory
from segbench.profiling import profile as profile_module
from segbench.profiling.energy import Energy
from segbench.profiling.failure import in_words
from segbench.profiling.fresh import call_fresh
from segbench.profiling.memory import Job
from segbench.profiling.profile import profile
from segbench.profiling.spec import ProfileSpec, Scope
from segbench.profiling.usage import Samples, Usage
from segbench.profiling.workload import Batch, check_logits, loss_of
from segbench.report.costs import cost_table

FAST = ProfileSpec(res=(24, 32), protocol="caffe-time", repetitions=3, memory=False, energy=False)


class Sleeping(Pointwise):
    """Sleeps 20 ms in eval mode and 40 ms in training."""

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        time.sleep(0 if images.is_meta else 0.04 if self.training else 0.02)
        return super().forward(images)


class Fed(Pointwise):
    """Its input notes of every batch its size and levels, sleeps 30 ms and touches `mib` MiB."""

    seen: ClassVar[list[tuple[int, int, int]]] = []

    def __init__(self, mib: int = 0) -> None:
        super().__init__()
        self.mib = mib

    def input(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        self.seen.append((len(images), int(images.min()), int(images.max())))
        time.sleep(0.03)
        return images.float() + torch.ones(self.mib * 2**18).sum()


class Scored(Pointwise):
    """Gives `scores` channels of zeros."""

    def __init__(self, scores: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(3, scores, 1)
        self.normalise = nn.BatchNorm2d(scores)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n scores h w"]:
        return 0 * super().forward(images)


class Shrinking(Pointwise):
    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h2 w2"]:
        return super().forward(images)[:, :, ::2, ::2]


class Watched(Pointwise):
    """Notes of every forward whether it trained, made a graph, ran in inference mode, and on how many images."""

    seen: ClassVar[list[tuple[bool, bool, bool, int]]] = []

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        logits = super().forward(images)
        if not images.is_meta:
            self.seen.append((self.training, logits.requires_grad, torch.is_inference_mode_enabled(), len(images)))
        return logits


class Remembering(Pointwise):
    """Keeps a tensor of its first forward and multiplies with it, as networks do with grids of positions."""

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        if not hasattr(self, "grid"):
            self.grid = torch.linspace(0, 1, images.shape[-1], device=images.device)
        return super().forward(images) * self.grid


def job(factory: Any, train: bool, batch: int = 1, scope: Scope = "model") -> Job:
    return Job(factory, CLASSES, (24, 32), batch, train, "cpu", threads=1, scope=scope)


# --- settings and values ---


def test_spec_defaults_are_table_six() -> None:
    spec = ProfileSpec()
    assert (spec.res, spec.time_batch, spec.repetitions, spec.warmup) == ((360, 480), 1, 10, 1)
    assert (spec.train_memory_batch, spec.infer_memory_batch, spec.protocol) == (4, 1, "steady")
    assert spec.scope == "model"


@pytest.mark.parametrize(
    "wrong",
    [
        {"res": "360"},
        {"res": (0, 480)},
        {"time_batch": 0},
        {"repetitions": 0},
        {"warmup": 0},
        {"train_memory_batch": -1},
        {"protocol": "best-of"},
        {"scope": "input"},
        {"repetition": 3},
    ],
)
def test_spec_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ProfileSpec.model_validate(wrong)


def test_samples_leave_the_warmup_out() -> None:
    samples = Samples(measured_ms=(1.0, 2.0, 3.0, 4.0, 10.0), warmup_ms=(99.0,))
    assert (samples.mean, samples.median) == (4.0, 3.0)
    assert samples.p5 == pytest.approx(1.2)  # rank 0.05 * 4 = 0.2 between 1 and 2
    assert samples.p95 == pytest.approx(8.8)  # rank 3.8 between 4 and 10
    with pytest.raises(ValueError, match="one measurement"):
        Samples(measured_ms=())


def test_the_settings_that_are_written_are_those_asked_for() -> None:
    asked = {"res": (12, 16), "protocol": "caffe-time", "scope": "model+argmax", "precision": "bf16"}
    asked |= {
        "frame": (12, 16),
        "channels_last": True,
        "time_batch": 2,
        "train_memory_batch": 3,
        "infer_memory_batch": 5,
    }
    usage = profile(Pointwise, CLASSES, FAST.model_copy(update=asked))
    assert {key: getattr(usage, key) for key in asked} == asked
    assert (usage.backend, usage.cuda_graphs) == ("eager", False)


def test_usage_goes_through_json_and_back() -> None:
    usage = profile(Pooled, CLASSES, FAST)
    assert usage.train_forward_ms is None
    again = Usage.from_dict(json.loads(json.dumps(usage.to_dict())))
    assert again == usage
    with pytest.raises(RecordError, match="watts"):
        Usage.from_dict(usage.to_dict() | {"watts": 3})


def test_spec_and_usage_import_no_torch() -> None:
    code = "import sys, segbench.profiling.spec, segbench.profiling.usage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- time ---


def test_a_known_sleep_is_timed() -> None:
    usage = profile(Sleeping, CLASSES, FAST)
    assert usage.train_forward_ms is not None
    assert usage.backward_ms is not None
    for samples, slept_ms in ((usage.forward_ms, 20), (usage.train_forward_ms, 40)):
        assert len(samples.measured_ms) == 3
        assert len(samples.warmup_ms) == 1
        assert min(samples.measured_ms) >= slept_ms
        assert samples.median < slept_ms + 100
    assert 0 < usage.backward_ms.median < 200


def test_training_makes_a_graph_and_inference_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "seen", [])
    profile(Watched, CLASSES, FAST.model_copy(update={"time_batch": 2, "warmup": 2}))
    assert Watched.seen == [(True, True, False, 2)] * 5 + [(False, False, True, 2)] * 5


def test_a_tensor_kept_by_the_model_does_not_stop_its_training() -> None:
    usage = profile(Remembering, CLASSES, FAST)
    assert usage.backward_ms is not None, usage.notes


def test_training_at_batch_one_is_timed_or_its_failure_told() -> None:
    usage = profile(Pooled, CLASSES, FAST)
    assert usage.backward_ms is None
    assert any("training at batch 1 not timed: ValueError: Expected more than 1 value" in note for note in usage.notes)
    two = profile(Pooled, CLASSES, FAST.model_copy(update={"time_batch": 2}))
    assert two.backward_ms is not None


def test_a_forward_that_raises_is_a_model_error_of_one_line() -> None:
    with pytest.raises(ModelError, match=r"^profile at 24x32 on cpu: RuntimeError: size 24 is odd to me$"):
        profile(Broken, CLASSES, FAST)


def test_logits_of_another_size_are_refused() -> None:
    with pytest.raises(ModelError, match=r"gave \[1, 4, 12, 16\]; expected logits \[1, 4, 24, 32\]"):
        profile(Shrinking, CLASSES, FAST)


@pytest.mark.parametrize("name", ["cuda:99", "abacus", "meta"])
def test_absent_devices_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match=name):
        profile(Pointwise, CLASSES, FAST, name)


def test_the_caller_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    profile(Pointwise, CLASSES, FAST)
    assert torch.equal(torch.rand(3), expected)


def test_a_score_for_void_is_accepted_behind_those_of_the_classes() -> None:
    usage = profile(partial(Scored, CLASSES + 1), CLASSES, FAST)
    assert usage.backward_ms is not None, usage.notes
    for scores in (CLASSES - 1, CLASSES + 2):
        with pytest.raises(ModelError, match=rf"gave \[1, {scores}, .*logits \[1, 4, .*one more channel for void"):
            check_logits(torch.zeros(1, scores, 2, 2), torch.zeros(1, 3, 2, 2), CLASSES)


def test_equal_scores_cost_the_logarithm_of_their_number() -> None:
    batch = Batch(torch.zeros(2, 3, 2, 2), torch.zeros(2, 2, 2, dtype=torch.long))
    for scores in (CLASSES, CLASSES + 1):
        assert loss_of(Scored(scores), batch).item() == pytest.approx(math.log(scores))


# --- variants ---


def test_a_variant_says_how_far_it_is_off_before_training_moves_any_statistic(monkeypatch: pytest.MonkeyPatch) -> None:
    def logits_changed(expected: Tensor, found: Tensor) -> dict[str, float | None]:
        return {"changed_pixels": float(((expected - found).abs() > 1e-5).float().mean())}

    monkeypatch.setattr(profile_module, "deviation", logits_changed)
    last = profile(Pointwise, CLASSES, FAST.model_copy(update={"channels_last": True}))
    assert last.deviation is not None and last.deviation["changed_pixels"] is not None
    assert last.deviation["changed_pixels"] == 0 and last.channels_last
    assert profile(Pointwise, CLASSES, FAST).deviation is None
    half = profile(Pointwise, CLASSES, FAST.model_copy(update={"precision": "bf16"}))
    assert half.precision == "bf16" and half.deviation is not None and half.deviation["changed_pixels"]


class Scoring(Pointwise):
    """Its scores begin as zeros, as FCN's do."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(CLASSES, CLASSES, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        return self.score(super().forward(images))


def test_a_variant_of_a_model_that_begins_with_zero_scores_says_how_far_it_is_off() -> None:
    half = profile(Scoring, CLASSES, FAST.model_copy(update={"precision": "bf16"}))
    assert half.deviation is not None and half.deviation["changed_pixels"] is not None
    assert half.deviation["largest_logit_error"]
    assert any(note.startswith("1 weights that begin as zeros (score.weight)") for note in half.notes)
    assert not any("begin as zeros" in note for note in profile(Pointwise, CLASSES, FAST).notes)


def test_what_a_cpu_has_not_is_a_model_error_of_one_line() -> None:
    for wrong, words in (({"precision": "tf32"}, "tf32"), ({"cuda_graphs": True}, "cuda_graphs")):
        with pytest.raises(ModelError, match=rf"^profile at 24x32 on cpu: .*{words}[^\n]*$"):
            profile(Pointwise, CLASSES, FAST.model_copy(update=wrong))


def test_steady_times_the_step_too_and_takes_energy_where_there_is_a_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def metered(region: Any, images: int, *others: Any) -> Energy:
        given.append((region().shape, images))
        return Energy(12.5, "a meter", "it is told")

    monkeypatch.setattr(profile_module, "energy_of", metered)
    spec = {"res": "24x32", "min_samples": 8, "min_seconds": 0.01, "max_seconds": 5, "memory": False, "time_batch": 2}
    usage = profile(Pointwise, CLASSES, ProfileSpec.model_validate(spec))
    for samples in (usage.forward_ms, usage.train_forward_ms, usage.backward_ms, usage.step_ms):
        assert samples is not None and len(samples.measured_ms) >= 8 and samples.stable is not None
    assert (usage.energy_mj, usage.energy_source) == (12.5, "a meter") and "it is told" in usage.notes
    assert given == [((2, CLASSES, 24, 32), 2)]
    assert set(usage.device_state) == {"before", "during", "after"}
    assert usage.file_mb is not None and usage.file_mb > usage.parameter_mb and usage.activation_mib


class Typed(Pointwise):
    """Notes in which type its input and its network compute, in training and in inference."""

    seen: ClassVar[set[tuple[str, bool, torch.dtype]]] = set()

    def input(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        moved = torch.nn.functional.conv2d(images.float(), torch.eye(3)[..., None, None])
        self.seen.add(("input", torch.is_inference_mode_enabled(), moved.dtype))
        return moved.float()

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        logits = self.classify(images)
        if not images.is_meta:
            self.seen.add(("network", torch.is_inference_mode_enabled(), logits.dtype))
        return self.normalise(logits)


def test_autocast_is_around_the_network_alone_in_training_as_in_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Typed, "seen", set())
    profile(Typed, CLASSES, FAST.model_copy(update={"precision": "bf16", "scope": "model+input"}))
    # fp32 eager, which the variant's logits are compared with, is the network's one pass in fp32.
    assert Typed.seen == {
        ("input", False, torch.float32),
        ("input", True, torch.float32),
        ("network", False, torch.float32),
        ("network", False, torch.bfloat16),
        ("network", True, torch.bfloat16),
    }


def test_training_passes_leave_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []

    def looked_at(region: Any, *others: Any) -> Energy:
        found.append(float(region().sum()))
        return Energy(None, None, None)

    monkeypatch.setattr(profile_module, "energy_of", looked_at)
    for training in (True, False):
        profile(Pointwise, CLASSES, FAST.model_copy(update={"energy": True, "training": training}))
    assert found[0] == found[1]


ALONE = FAST.model_copy(update={"isolation": "error"})


def meeting(monkeypatch: pytest.MonkeyPatch, *found: tuple[str, ...] | SettingError) -> list[str]:
    """Other processes, as they are found one time after the other; what was done in order."""
    order, coming = [], iter(found)

    def look(uuid: str | None, isolation: str) -> tuple[str, ...]:
        order.append(f"{isolation} looked")
        here = next(coming)
        if isinstance(here, SettingError):
            raise here
        return here

    run_here = profile_module.run_here
    monkeypatch.setattr(profile_module, "check_isolation", look)
    monkeypatch.setattr(profile_module, "run_here", lambda *given: order.append("measured") or run_here(*given))
    return order


def test_other_processes_are_looked_for_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    order = meeting(monkeypatch, ("early stranger",), ("late stranger",))
    notes = profile(Pointwise, CLASSES, ALONE).notes
    assert order == ["error looked", "measured", "error looked"]
    assert "early stranger" in notes and "late stranger" in notes


def test_a_device_that_is_not_ours_alone_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = meeting(monkeypatch, SettingError("isolation: others"))
    monkeypatch.setattr(profile_module, "complexity", None)
    with pytest.raises(SettingError, match=r"^isolation: others$"):
        profile(Broken, CLASSES, ALONE)
    assert order == ["error looked"]


def test_a_stranger_who_came_meanwhile_fails_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    order = meeting(monkeypatch, (), SettingError("isolation: others"))
    with pytest.raises(ModelError, match=r"^profile at 24x32 on cpu: isolation: others$"):
        profile(Pointwise, CLASSES, ALONE)
    assert order[-2:] == ["measured", "error looked"]


def test_isolation_is_no_part_of_what_is_measured() -> None:
    assert ALONE.measured() == FAST.measured()
    assert set(FAST.model_dump()) - set(FAST.measured()) == {"isolation"}
    other = FAST.model_copy(update={"time_batch": 2})
    assert other.measured() != FAST.measured()


def test_a_largest_batch_is_searched_for_both_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "search", lambda job: (job.batch * 10, (f"{job.mode} searched",)))
    usage = profile(Pointwise, CLASSES, FAST.model_copy(update={"largest_batch": True}))
    assert usage.largest_batch == {"train": 40, "infer": 10} and "train searched" in usage.notes
    assert profile(Pointwise, CLASSES, FAST).largest_batch == {}


def test_a_backend_that_only_infers_has_no_training_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "training", lambda *_: None)
    usage = profile(Pointwise, CLASSES, FAST)
    assert usage.train_forward_ms is usage.backward_ms is None
    assert "training not timed: eager only infers" in usage.notes
    assert not any("is false" in note for note in usage.notes if "training" in note)
    jumpy = {"protocol": "steady", "min_samples": 3, "min_seconds": 0.001, "max_seconds": 0.1}
    told = profile(Sleeping, CLASSES, FAST.model_copy(update=jumpy)).notes
    assert any(note.startswith("forward") for note in told), told  # too few to tell, or ended early


# --- scope ---

WITH_INPUT = FAST.model_copy(update={"scope": "model+input"})


def test_the_sleep_of_an_input_is_timed_in_its_scope_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fed, "seen", [])
    without = profile(Fed, CLASSES, FAST)
    assert not Fed.seen
    usage = profile(Fed, CLASSES, WITH_INPUT)
    assert Fed.seen == [(1, 0, 255)] * 9  # to get ready, 4 passes of the training network, 4 of inference
    assert usage.train_forward_ms is not None
    for samples in (usage.forward_ms, usage.train_forward_ms):
        assert 30 <= min(samples.measured_ms) <= samples.median < 130
    assert (usage.macs, usage.parameters) == (without.macs, without.parameters)


def test_a_model_without_an_input_has_no_such_scope() -> None:
    with pytest.raises(
        ModelError, match=r"^profile at 24x32 on cpu: .* declares its `input`, and Pointwise does not; "
    ):
        profile(Pointwise, CLASSES, WITH_INPUT)


def test_the_scope_is_told_and_read_back() -> None:
    usage = profile(Fed, CLASSES, WITH_INPUT)
    told = usage.to_dict()
    assert told["scope"] == "model+input"
    assert Usage.from_dict(told) == usage
    assert any("scope model+input: " in note for note in cost_table({"fed": usage}).notes)
    earlier = Usage.from_dict({key: value for key, value in told.items() if key != "scope"})
    assert earlier.scope == "model"
    assert not any("scope" in note for note in cost_table({"fed": earlier}).notes)


# --- memory ---


def test_training_and_inference_are_weighed_at_their_own_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(profile_module, "weigh", lambda job: jobs.append(job) or memory.unmeasured(job, "spied"))
    spec = ProfileSpec(
        res=(24, 32),
        train_memory_batch=4,
        infer_memory_batch=2,
        scope="model+input",
        precision="bf16",
        channels_last=True,
    )
    profile_module.weigh_all(Pointwise, CLASSES, spec, torch.device("cpu"))
    assert [(job.mode, job.batch, job.scope) for job in jobs] == [
        ("train", 4, "model+input"),
        ("infer", 2, "model+input"),
    ]
    assert [(job.precision, job.channels_last) for job in jobs] == [("bf16", True)] * 2


def weighed(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> tuple[list[str], profile_module.Memory]:
    """The modes that were weighed and what was found, each kind 1 MiB."""
    modes: list[str] = []

    def weigh(job: Job) -> memory.Weighed:
        modes.append(job.mode)
        return memory.Weighed({f"{job.mode}_{kind}": 1.0 for kind in job.kinds}, ())

    monkeypatch.setattr(profile_module, "weigh", weigh)
    monkeypatch.setattr(profile_module, "search", lambda job: modes.append(f"{job.mode} searched") or (7, ()))
    spec = ProfileSpec.model_validate({"res": (24, 32), **changed})
    return modes, profile_module.weigh_all(Pointwise, CLASSES, spec, torch.device("cpu"))


def test_without_training_no_training_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    modes, found = weighed(monkeypatch, training=False, largest_batch=True)
    assert modes == ["infer", "infer searched"]
    assert found.mib == {"train_peak_rss": None, "train_weights": None, "infer_peak_rss": 1.0, "infer_weights": 1.0}
    assert found.largest == {"train": None, "infer": 7}
    assert "training memory not measured: training is false in the profile" in found.notes
    assert weighed(monkeypatch)[0] == ["train", "infer"]


def test_what_of_the_scope_is_not_in_the_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    scope = "model+loader+input+resize+argmax"
    without = "memory is without +loader, +resize, +argmax of the scope"
    assert weighed(monkeypatch, scope=scope, frame=(48, 64))[1].notes == (without,)
    assert weighed(monkeypatch, scope="model+input")[1].notes == ()
    assert weighed(monkeypatch, backend="compile")[1].notes == ("memory is that of eager mode, not of compile",)
    not_asked = weighed(monkeypatch, scope=scope, frame=(48, 64), memory=False)[1].notes
    assert not any(note.startswith("memory is ") for note in not_asked)
    assert without in weighed(monkeypatch, scope=scope, frame=(48, 64), memory=False, largest_batch=True)[1].notes


def test_memory_not_asked_for_is_none_with_a_note() -> None:
    usage = profile(Pointwise, CLASSES, FAST)
    kinds = ("train_peak_rss", "train_weights", "infer_peak_rss", "infer_weights")
    assert usage.memory_mib == dict.fromkeys(kinds)
    assert any("memory is false" in note for note in usage.notes)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by the operating system (SIGKILL)"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import sys; sys.exit(0)", "ended with exit code 0"),
        ("raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: 9 bytes')", "out of memory (DefaultCPU"),
    ],
)
def test_how_a_fresh_process_ends_is_told(code: str, told: str) -> None:
    answer = call_fresh(exec, code, timeout_s=100.0)
    assert answer.value is None
    assert told in (answer.error or "")


def test_a_process_that_hangs_is_ended() -> None:
    began = time.perf_counter()
    answer = call_fresh(time.sleep, 300, timeout_s=0.5)
    assert answer == (None, "the measuring process gave no answer in 0.5 s and was ended")
    assert time.perf_counter() - began < 60


def test_a_model_of_main_is_told() -> None:
    """A script without a guard and with its model in `__main__` must neither run twice nor hang."""
    code = (
        "from segbench.profiling.fresh import call_fresh\n"
        "def own(): return 1\n"
        "print(call_fresh(own, timeout_s=100.0).error)\nprint(call_fresh(max, [1, 7], timeout_s=100.0).value)\n"
    )
    said = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=True).stdout
    assert "define it in an importable module" in said
    assert said.splitlines()[1:] == ["7"]


def test_failures_in_words() -> None:
    assert in_words(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")).startswith("out of memory (CUDA")
    assert in_words(MemoryError()) == "out of memory"
    assert in_words(ValueError("\n first\nsecond")) == "ValueError: first"
    assert in_words(AssertionError()) == "AssertionError"


# --- device ---


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    spec = ProfileSpec(res=(24, 32), protocol="caffe-time", repetitions=2)
    usage = profile(partial(Hungry, 48), CLASSES, spec, "cuda")
    assert usage.device == torch.cuda.get_device_name()
    for mode in ("train", "infer"):
        allocated, reserved = usage.memory_mib[f"{mode}_allocated"], usage.memory_mib[f"{mode}_reserved"]
        assert allocated == pytest.approx(96, abs=12)
        assert allocated is not None
        assert reserved is not None
        assert reserved >= allocated
    assert usage.forward_ms.median > 0
