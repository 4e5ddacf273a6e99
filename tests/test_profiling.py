"""Costs against what is known beforehand: a sleep, an allocation, a convolution counted by hand, a fake NVML."""

import json
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float, UInt8
from pydantic import ValidationError
from torch import Tensor, nn

from segbench.errors import ModelError, RecordError, SettingError
from segbench.profiling import device as device_module
from segbench.profiling import memory
from segbench.profiling import profile as profile_module
from segbench.profiling.complexity import complexity
from segbench.profiling.device import cpu_name, device_state, nvml_memory
from segbench.profiling.failure import in_words
from segbench.profiling.fresh import call_fresh
from segbench.profiling.memory import Job, measure_cuda, weigh
from segbench.profiling.profile import profile
from segbench.profiling.spec import ProfileSpec, Scope
from segbench.profiling.usage import Samples, Usage
from segbench.profiling.workload import Batch, check_logits, exact_fp32, loss_of
from segbench.report.costs import table6

CLASSES = 4
UUID = "GPU-1234"
FAST = ProfileSpec.model_validate({"res": "24x32", "repetitions": 3, "memory": False})


class Pointwise(nn.Module):
    """One 1x1 convolution and its normalisation: a whole model, nearly free."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Conv2d(3, CLASSES, 1)
        self.normalise = nn.BatchNorm2d(CLASSES)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        return self.normalise(self.classify(images))


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


class Hungry(Pointwise):
    """Holds `mib` MiB of weights that take no gradient and touches another `mib` in the forward; prints as C would."""

    def __init__(self, mib: int) -> None:
        super().__init__()
        self.mib = mib
        self.ballast = nn.Parameter(torch.ones(mib * 2**18), requires_grad=False)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        os.write(1, b"noise of a library {}\n")
        print("noise of Python")  # noqa: T201
        logits = super().forward(images)
        return logits + torch.ones(self.mib * 2**18, device=images.device)[0] * 0


class Broken(Pointwise):
    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        raise RuntimeError(f"size {images.shape[2]} is odd to me\nand a second line")


class Pooled(Pointwise):
    """Normalises 1x1 maps, which training on one image cannot do (as DeepLabV3's pooled branch)."""

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        logits = self.classify(images)
        return logits + self.normalise(logits.mean((2, 3), keepdim=True))


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


class Auxiliary(Pointwise):
    """A second head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(3, CLASSES, 3, padding=1)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        logits = super().forward(images)
        return logits + self.second(images) if self.training else logits


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(8, CLASSES, 2, stride=2)
        self.up.bias.requires_grad_(False)  # type: ignore[union-attr]

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        return self.up(self.down(images).relu())


class NoMeta(Counted):
    """A forward that looks at values, which the meta device has none of."""

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        assert images.sum().item() < 1e9
        return super().forward(images)


def job(factory: Any, train: bool, batch: int = 1, scope: Scope = "model") -> Job:
    return Job(factory, CLASSES, (24, 32), batch, train, "cpu", threads=1, scope=scope)


# --- settings and values ---


def test_spec_defaults_are_table_six() -> None:
    spec = ProfileSpec()
    assert (spec.res, spec.time_batch, spec.repetitions, spec.warmup) == ((360, 480), 1, 10, 1)
    assert (spec.train_memory_batch, spec.infer_memory_batch, spec.protocol) == (4, 1, "caffe-time")
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


def test_exact_fp32_gives_the_flags_back() -> None:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with exact_fp32():
            assert matmul.fp32_precision == conv.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


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


# --- scope ---

WITH_INPUT = FAST.model_copy(update={"scope": "model+input"})


def test_the_sleep_of_an_input_is_timed_in_its_scope_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fed, "seen", [])
    without = profile(Fed, CLASSES, FAST)
    assert not Fed.seen
    usage = profile(Fed, CLASSES, WITH_INPUT)
    assert Fed.seen == [(1, 0, 255)] * 8  # 4 passes of the training network, 4 of inference, from one 8-bit image
    assert usage.train_forward_ms is not None
    for samples in (usage.forward_ms, usage.train_forward_ms):
        assert 30 <= min(samples.measured_ms) <= samples.median < 130
    assert (usage.macs, usage.parameters) == (without.macs, without.parameters)


@pytest.mark.parametrize("train", [True, False])
def test_the_input_is_weighed_in_its_scope(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fed, "seen", [])
    memory.work(job(Fed, train, batch=3), torch.device("cpu"))
    assert not Fed.seen
    memory.work(job(Fed, train, batch=3, scope="model+input"), torch.device("cpu"))
    assert Fed.seen == [(3, 0, 255)] * (2 if train else 1)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are exact where /proc has them")
def test_what_an_input_allocates_is_in_the_fresh_processs_peak() -> None:
    mib, notes = weigh(job(partial(Fed, 48), train=False, scope="model+input"))
    assert mib == pytest.approx({"infer_peak_rss": 48}, abs=12), notes


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
    assert any("scope model+input: " in note for note in table6({"fed": usage}).notes)
    earlier = Usage.from_dict({key: value for key, value in told.items() if key != "scope"})
    assert earlier.scope == "model"
    assert not any("scope" in note for note in table6({"fed": earlier}).notes)


# --- memory ---


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are exact where /proc has them")
def test_known_allocations_are_weighed_and_noise_is_ignored() -> None:
    """48 MiB of weights and 48 of activations; the convolution's maps and gradients are far below 1 MiB."""
    usage = profile(partial(Hungry, 48), CLASSES, ProfileSpec(res=(24, 32), repetitions=1))
    assert usage.memory_mib == pytest.approx({"train_peak_rss": 96, "infer_peak_rss": 96}, abs=12), usage.notes
    assert any("VmHWM" in note for note in usage.notes)


def test_what_is_weighed_in_training_is_the_second_step_with_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The momentum is made at the end of the first step: only a second holds it together with the activations."""
    momenta: list[bool] = []

    class Spied(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            momenta.append(any("momentum_buffer" in state for state in self.state.values()))
            super().zero_grad(set_to_none)

    monkeypatch.setattr(torch.optim, "SGD", Spied)
    monkeypatch.setattr(Watched, "seen", [])
    memory.work(job(Watched, train=True, batch=3), torch.device("cpu"))
    assert momenta == [False, True]
    assert Watched.seen == [(True, True, False, 3)] * 2


def test_what_is_weighed_in_inference_is_one_forward_without_gradients_and_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Watched, "seen", [])
    monkeypatch.setattr(memory, "random_batch", None)  # what draws labels
    memory.work(job(Watched, train=False, batch=3), torch.device("cpu"))
    assert Watched.seen == [(False, False, True, 3)]


def test_training_and_inference_are_weighed_at_their_own_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(profile_module, "weigh", lambda job: jobs.append(job) or memory.unmeasured(job, "spied"))
    spec = ProfileSpec(res=(24, 32), train_memory_batch=4, infer_memory_batch=2, scope="model+input")
    profile_module.weigh_both(Pointwise, CLASSES, spec, torch.device("cpu"))
    assert [(job.mode, job.batch, job.scope) for job in jobs] == [
        ("train", 4, "model+input"),
        ("infer", 2, "model+input"),
    ]


def test_a_failure_in_the_fresh_process_is_none_with_a_note() -> None:
    mib, notes = weigh(job(Broken, train=False))
    assert mib == {"infer_peak_rss": None}
    assert notes == ("infer memory at batch 1 not measured: RuntimeError: size 24 is odd to me",)


def test_without_proc_the_peak_is_that_of_getrusage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "absent")
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path)  # a folder: writing to it fails
    present, peak, source = memory.resident_mib()
    assert source == "ru_maxrss of getrusage"
    assert present == peak > 50  # torch alone is more
    assert not memory.reset_peak()


def test_memory_not_asked_for_is_none_with_a_note() -> None:
    usage = profile(Pointwise, CLASSES, FAST)
    assert usage.memory_mib == {"train_peak_rss": None, "infer_peak_rss": None}
    assert any("memory is false" in note for note in usage.notes)


def test_a_factory_that_cannot_travel_is_told() -> None:
    mib, notes = weigh(job(lambda: Pointwise(), train=False))
    assert mib == {"infer_peak_rss": None}
    assert "cannot be sent to a fresh process" in notes[0]


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
    answer = call_fresh(exec, code)
    assert answer.value is None
    assert told in (answer.error or "")


def test_a_model_of_main_is_told() -> None:
    """A script without a guard and with its model in `__main__` must neither run twice nor hang."""
    code = (
        "from segbench.profiling.fresh import call_fresh\n"
        "def own(): return 1\n"
        "print(call_fresh(own).error)\nprint(call_fresh(max, [1, 7]).value)\n"
    )
    said = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=True).stdout
    assert "define it in an importable module" in said
    assert said.splitlines()[1:] == ["7"]


def test_failures_in_words() -> None:
    assert in_words(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")).startswith("out of memory (CUDA")
    assert in_words(MemoryError()) == "out of memory"
    assert in_words(ValueError("\n first\nsecond")) == "ValueError: first"
    assert in_words(AssertionError()) == "AssertionError"


# --- size and work ---


def test_a_convolution_and_a_deconvolution_counted_by_hand() -> None:
    """On 10x12: 5*6 places * 3*8*3*3 weights, then 5*6 places * 8*4*2*2 weights."""
    counted = complexity(Counted, (10, 12))
    assert counted.macs == 30 * 216 + 30 * 128
    assert counted.parameters == 216 + 128 + CLASSES
    assert counted.trainable_parameters == 216 + 128
    assert counted.parameter_mb == pytest.approx(348 * 4e-6)
    assert counted.uncounted == ("relu",)


def test_what_only_training_runs_is_not_counted() -> None:
    counted = complexity(Auxiliary, (10, 12))
    assert counted.macs == 10 * 12 * 3 * CLASSES
    assert counted.parameters == 3 * CLASSES + CLASSES + 2 * CLASSES + 27 * CLASSES + CLASSES


def test_models_that_the_meta_device_cannot_run_are_counted_on_the_cpu() -> None:
    meta, real = complexity(Counted, (10, 12)), complexity(NoMeta, (10, 12))
    assert (real.macs, real.parameters) == (meta.macs, meta.parameters)


def test_macs_that_cannot_be_counted_are_none_with_a_note() -> None:
    counted = complexity(Broken, (10, 12))
    assert counted.macs is None
    assert counted.notes == ("macs not counted: RuntimeError: size 10 is odd to me",)
    assert counted.parameters == 3 * CLASSES + CLASSES + 2 * CLASSES


# --- device ---


class FakeNvml(SimpleNamespace):
    """What pynvml gives for one device: 4 GiB in use, 3 GiB of it by process 77, another process's withheld."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlSystemGetDriverVersion": b"570.1",
            "nvmlDeviceGetEnforcedPowerLimit": 350_000,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=4 * 2**30),
            "nvmlDeviceGetComputeRunningProcesses": [
                SimpleNamespace(pid=77, usedGpuMemory=3 * 2**30),
                SimpleNamespace(pid=78, usedGpuMemory=None),
            ],
        }
        return lambda *arguments: answers[name]

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        if kind == self.NVML_CLOCK_MEM:
            raise RuntimeError("Not Supported")
        return 1410


class NoNvml:
    @staticmethod
    def nvmlInit() -> None:
        raise OSError("NVML Shared Library Not Found")


def test_nvml_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    state, notes = device_state(UUID)
    assert state == {"driver": "570.1", "power_limit_w": 350.0, "sm_clock_mhz": 1410.0, "memory_clock_mhz": None}
    assert notes == ("memory_clock_mhz not read: RuntimeError: Not Supported",)
    assert nvml_memory(UUID, 77) == (3072.0, 4096.0, None)
    for hidden in (78, 1):  # withheld, and not listed
        reading = nvml_memory(UUID, hidden)
        assert reading[:2] == (None, 4096.0)
        assert "hides" in (reading.note or "")


@pytest.mark.parametrize("absent", [NoNvml, None])
def test_nvml_absent(monkeypatch: pytest.MonkeyPatch, absent: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", absent)  # None: the import itself fails
    state, notes = device_state(UUID)
    assert set(state.values()) == {None}
    assert notes[0].startswith("NVML not available: ")
    assert nvml_memory(UUID, 1)[:2] == (None, None)
    assert device_state(None) == ({}, ())


def test_cpu_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nmodel name\t: Abacus 9\nmodel name\t: Abacus 9\n")
    assert cpu_name(listing) == "Abacus 9"
    monkeypatch.setattr(device_module.platform, "processor", lambda: "x86")
    assert cpu_name(tmp_path / "absent") == "x86"


def test_cuda_memory_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic of the CUDA path on a machine without one: rises, and a stranger with our process id."""
    readings = iter([device_module.NvmlMemory(None, 500.0, "hidden"), device_module.NvmlMemory(100.0, 1700.0, None)])
    monkeypatch.setattr(memory, "nvml_memory", lambda uuid, pid: next(readings))
    monkeypatch.setattr(memory, "prime", lambda device, train: None)
    monkeypatch.setattr(memory, "work", lambda job, device: None)
    for name in ("set_device", "empty_cache", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 600 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 800 * 2**20)
    mib, notes = measure_cuda(job(Pointwise, train=False), torch.device("cuda:0"))
    assert mib == {"allocated": 600.0, "reserved": 800.0, "nvml_process": None, "nvml_device": 1200.0}
    assert any("below PyTorch's own" in note for note in notes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    usage = profile(partial(Hungry, 48), CLASSES, ProfileSpec(res=(24, 32), repetitions=2), "cuda")
    assert usage.device == torch.cuda.get_device_name()
    for mode in ("train", "infer"):
        allocated, reserved = usage.memory_mib[f"{mode}_allocated"], usage.memory_mib[f"{mode}_reserved"]
        assert allocated == pytest.approx(96, abs=12)
        assert allocated is not None
        assert reserved is not None
        assert reserved >= allocated
    assert usage.forward_ms.median > 0
