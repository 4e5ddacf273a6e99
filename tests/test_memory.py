"""Memory against known allocations on a CPU, the arithmetic of a GPU's kinds, and the search for the largest batch."""

import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float, UInt8
from small_nets import CLASSES, Hungry, Pointwise
from torch import Tensor, nn

from segbench.profiling import largest, memory, resident
from segbench.profiling.fresh import Answer
from segbench.profiling.largest import largest_batch, search
from segbench.profiling.memory import CUDA_KINDS, Job, measure_cuda, size_mib, weigh, weights_of
from segbench.profiling.nvml import NvmlMemory
from segbench.profiling.spec import Scope
from segbench.spec import Precision

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks are exact where /proc has them")


class Fed(Pointwise):
    """Its input notes of every batch its size and levels."""

    seen: ClassVar[list[tuple[int, int, int]]] = []

    def input(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        self.seen.append((len(images), int(images.min()), int(images.max())))
        return images.float()


class Watched(Pointwise):
    """Notes of every forward whether it trained, made a graph, ran in inference mode, how many images, which dtype."""

    seen: ClassVar[list[tuple[bool, bool, bool, int, torch.dtype]]] = []

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        scores = self.classify(images)
        logits = self.normalise(scores)
        self.seen.append(
            (self.training, logits.requires_grad, torch.is_inference_mode_enabled(), len(images), scores.dtype)
        )
        return logits


class Strided(Pointwise):
    """Notes of every batch whether it came channels last."""

    seen: ClassVar[list[bool]] = []

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        self.seen.append(images.is_contiguous(memory_format=torch.channels_last))
        return super().forward(images)


def job(factory: Any, train: bool, batch: int = 1, scope: Scope = "model", precision: Precision = "fp32") -> Job:
    return Job(factory, CLASSES, (24, 32), batch, train, "cpu", threads=1, scope=scope, precision=precision)


# --- CPU ---


@linux
@pytest.mark.parametrize(("train", "scope", "peak"), [(True, "model", 96), (False, "model+input", 192)])
def test_known_allocations_are_weighed_and_noise_is_ignored(train: bool, scope: str, peak: int) -> None:
    """48 MiB of weights, and 48 of activations or 144 in the input; the convolution's maps are far below 1 MiB."""
    mib, notes = weigh(job(partial(Hungry, 48), train, scope=scope))
    mode = "train" if train else "infer"
    assert mib == {f"{mode}_peak_rss": pytest.approx(peak, abs=12), f"{mode}_weights": pytest.approx(48, abs=1)}, notes
    assert any("VmHWM" in note for note in notes)


@pytest.mark.parametrize("train", [True, False])
def test_the_input_is_weighed_in_its_scope(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fed, "seen", [])
    memory.work(job(Fed, train, batch=3), CPU)
    assert not Fed.seen
    memory.work(job(Fed, train, batch=3, scope="model+input+argmax"), CPU)
    assert Fed.seen == [(3, 0, 255)] * (2 if train else 1)


def test_what_is_weighed_in_training_is_the_second_step_with_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The momentum is made at the end of the first step: only a second holds it together with the activations."""
    momenta: list[bool] = []

    class Spied(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            momenta.append(any("momentum_buffer" in state for state in self.state.values()))
            super().zero_grad(set_to_none)

    monkeypatch.setattr(torch.optim, "SGD", Spied)
    monkeypatch.setattr(Watched, "seen", [])
    memory.work(job(Watched, train=True, batch=3), CPU)
    assert momenta == [False, True]
    assert Watched.seen == [(True, True, False, 3, torch.float32)] * 2


def test_what_is_weighed_in_inference_is_one_forward_without_gradients_and_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Watched, "seen", [])
    monkeypatch.setattr(memory, "random_batch", None)  # what draws labels
    memory.work(job(Watched, train=False, batch=3), CPU)
    assert Watched.seen == [(False, False, True, 3, torch.float32)]


@pytest.mark.parametrize("train", [True, False])
def test_the_precision_is_that_of_the_job(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "seen", [])
    memory.work(job(Watched, train, precision="bf16"), CPU)
    assert {seen[-1] for seen in Watched.seen} == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")


def test_channels_last_is_asked_for_as_in_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(memory, "laid_out", lambda model, channels_last: asked.append(channels_last) or model)
    for channels_last in (False, True):
        memory.work(job(Pointwise, train=False)._replace(channels_last=channels_last), CPU)
    assert asked == [False, True]


@pytest.mark.parametrize("train", [True, False])
def test_images_are_laid_out_as_the_model_is(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first convolution would copy them, and the copy would be weighed."""
    monkeypatch.setattr(Strided, "seen", [])
    memory.work(job(Strided, train)._replace(channels_last=True), CPU)
    memory.work(job(Strided, train), CPU)
    assert Strided.seen == [True] * (2 if train else 1) + [False] * (2 if train else 1)


def test_a_hung_process_is_given_time_by_its_pixels() -> None:
    """Ten minutes, and ten for each million pixels."""
    assert job(Pointwise, train=True)._replace(res=(1000, 1000), batch=4).patience_s == 600 + 4 * 600


def test_a_fresh_process_is_waited_for_that_long(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def call(function: Any, job: Job, timeout_s: float) -> Answer:
        waited.append(timeout_s)
        return Answer([dict.fromkeys(job.kinds, 1.0), []], None)

    monkeypatch.setattr(memory, "call_fresh", call)
    weigh(job(Pointwise, train=False))
    assert waited == [job(Pointwise, train=False).patience_s]


def test_what_is_held_is_summed_over_tensors() -> None:
    """3 * 4 + 4 of the convolution; of the normalisation 4 + 4, running 4 + 4, and a count of 8 bytes."""
    trained = memory.work(job(Pointwise, train=True, batch=2), CPU)
    images, labels = 2 * 3 * 24 * 32 * 4, 2 * 24 * 32 * 8
    weights, learnt = (16 + 8 + 8) * 4 + 8, (16 + 8) * 4
    assert {kind: mib * 2**20 for kind, mib in trained.items()} == pytest.approx(
        {"weights": weights, "batch": images + labels, "gradients": learnt, "optimizer": learnt}
    )
    inferred = memory.work(job(Pointwise, train=False, batch=2), CPU)
    assert {kind: mib * 2**20 for kind, mib in inferred.items()} == pytest.approx({"weights": weights, "batch": images})


def test_a_storage_is_counted_once() -> None:
    whole = torch.zeros(2**18)
    assert size_mib([whole, whole[:3], whole.view(2, -1)]) == 1.0
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    assert size_mib(weights_of(model)) * 2**20 == 8 * 8 * 4


def test_a_failure_in_the_fresh_process_is_none_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Answer(None, "RuntimeError: size 24 is odd to me")
    monkeypatch.setattr(memory, "call_fresh", lambda *call, timeout_s: odd)
    mib, notes = weigh(job(Pointwise, train=False))
    assert mib == {"infer_peak_rss": None, "infer_weights": None}
    assert notes == ("infer memory at batch 1 not measured: RuntimeError: size 24 is odd to me",)


def test_a_factory_that_cannot_travel_is_told() -> None:
    mib, notes = weigh(job(lambda: Pointwise(), train=False))
    assert set(mib.values()) == {None}
    assert "cannot be sent to a fresh process" in notes[0]


def test_without_proc_the_peak_is_that_of_getrusage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resident, "STATUS", tmp_path / "absent")
    monkeypatch.setattr(resident, "CLEAR_REFS", tmp_path)  # a folder: writing to it fails
    present, peak, source = resident.resident_mib()
    assert source == "ru_maxrss of getrusage"
    assert present == peak > 50  # torch alone is more
    assert not resident.reset_peak()


def test_a_model_that_stays_below_an_earlier_peak_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident_mib", lambda: (900.0, 900.0, "ru_maxrss of getrusage"))
    monkeypatch.setattr(memory, "reset_peak", lambda: False)
    mib, notes = memory.measure_cpu(job(Pointwise, train=False), CPU)
    assert mib["peak_rss"] is None
    assert "infer_peak_rss not measured: the process had peaked before the model" in notes
    assert any("not reset" in note for note in notes)


# --- GPU ---

BEFORE, PRIMED, AFTER = 500.0, 900.0, 1700.0
INCLUDED = "train_activations include the workspaces of cuDNN and cuBLAS at the peak"


class FakeAllocator:
    """PyTorch's, in MiB: what it holds, and its peaks since they were last reset; it notes what is asked in order.

    Priming takes 10 MiB of 2000 that were reserved and 1500 allocated for a while; the work allocates 600, reserves
    800 and gives `returned` of them back, as an allocator does that runs out of memory.
    """

    def __init__(self, returned: float) -> None:
        self.returned = returned
        self.reserved = self.peak_reserved = self.peak_allocated = 0.0
        self.order: list[str] = []

    def prime(self) -> None:
        self.order.append("prime")
        self.reserved, self.peak_reserved, self.peak_allocated = 50.0, 2000.0, 1500.0

    def empty_cache(self) -> None:
        self.order.append("empty")
        self.reserved = 10.0

    def reset(self, device: torch.device) -> None:
        self.order.append("reset")
        self.peak_reserved, self.peak_allocated = self.reserved, 5.0

    def work(self) -> None:
        self.order.append("work")
        self.reserved = 800.0 - self.returned
        self.peak_reserved, self.peak_allocated = max(self.peak_reserved, 800.0), max(self.peak_allocated, 600.0)


def cuda_mib(
    monkeypatch: pytest.MonkeyPatch, train: bool, *seen: NvmlMemory, returned: float = 0.0
) -> tuple[dict[str, Any], list[str], list[str]]:
    """`measure_cuda` on a machine without CUDA, with these readings of NVML before, primed and at the end; the order
    in which everything was asked."""
    given, fake = iter(seen), FakeAllocator(returned)
    held = {"weights": 100.0, "batch": 20.0} | ({"gradients": 90.0, "optimizer": 80.0} if train else {})
    note = fake.order.append
    monkeypatch.setattr(memory, "nvml_memory", lambda uuid, pid: note("nvml") or next(given))
    monkeypatch.setattr(memory, "prime", lambda job, device: fake.prime())
    monkeypatch.setattr(memory, "work", lambda job, device: fake.work() or held)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: note("context"))
    monkeypatch.setattr(torch.cuda, "empty_cache", fake.empty_cache)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: note("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", fake.reset)
    for name, kind in (
        ("memory_reserved", "reserved"),
        ("max_memory_allocated", "peak_allocated"),
        ("max_memory_reserved", "peak_reserved"),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda device, kind=kind: getattr(fake, kind) * 2**20)
    mib, notes = measure_cuda(job(Pointwise, train)._replace(device="cuda:0"), torch.device("cuda:0"))
    return mib, notes, fake.order


def test_kinds_on_cuda_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    mib, notes, order = cuda_mib(
        monkeypatch,
        True,
        NvmlMemory(None, BEFORE, "hidden"),
        NvmlMemory(410.0, PRIMED, None),
        NvmlMemory(1210.0, AFTER, None),
    )
    assert mib == {
        "allocated": 600.0,
        "reserved": 800.0,
        "nvml_process": 1210.0,
        "nvml_device": 1200.0,
        "context": 400.0,
        "weights": 100.0,
        "batch": 20.0,
        "gradients": 90.0,
        "optimizer": 80.0,
        "activations": 310.0,
        "cached": 200.0,
    }
    parts = ("weights", "batch", "gradients", "optimizer", "activations", "cached")
    assert sum(mib[kind] for kind in parts) == mib["reserved"]
    assert set(mib) == set(CUDA_KINDS)
    assert INCLUDED in notes
    # NVML first, while there is no context; and last, while the allocator still holds what it took.
    assert order == ["nvml", "context", "prime", "empty", "wait", "nvml", "reset", "work", "wait", "nvml"]


def test_inference_has_neither_gradients_nor_an_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    mib, _, _ = cuda_mib(monkeypatch, False, *[NvmlMemory(None, None, "NVML not available")] * 3)
    on_cuda = job(Pointwise, train=False)._replace(device="cuda:0")
    assert set(mib) == set(on_cuda.kinds) == set(CUDA_KINDS) - {"gradients", "optimizer"}
    assert mib["activations"] == 600 - 120
    assert set(memory.unmeasured(on_cuda, "why").mib) == {f"infer_{kind}" for kind in on_cuda.kinds}


def test_a_hidden_process_is_the_rise_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    mib, notes, _ = cuda_mib(
        monkeypatch, True, *(NvmlMemory(None, reading, "hidden") for reading in (BEFORE, PRIMED, AFTER))
    )
    assert (mib["nvml_process"], mib["nvml_device"], mib["context"]) == (None, 1200.0, 390.0)
    assert "hidden" in notes and "context is the rise of the device's use too" in notes


def test_a_stranger_with_our_process_id_is_not_us(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = [NvmlMemory(100.0, reading, None) for reading in (BEFORE, PRIMED, AFTER)]
    mib, notes, _ = cuda_mib(monkeypatch, True, *readings)
    assert (mib["nvml_process"], mib["nvml_device"], mib["context"]) == (None, 1200.0, 390.0)
    assert any("below PyTorch's own" in note for note in notes)


def test_what_the_allocator_gave_back_makes_no_stranger_of_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short of memory it gave 500 of 800 MiB back: then NVML sees 300, and 400 of the context."""
    readings = [NvmlMemory(mib, reading, None) for mib, reading in ((None, BEFORE), (410.0, PRIMED), (700.0, 1200.0))]
    mib, notes, _ = cuda_mib(monkeypatch, True, *readings, returned=500.0)
    assert (mib["reserved"], mib["nvml_process"], mib["context"]) == (800.0, 700.0, 400.0)
    given_back = (
        "PyTorch gave 500 MiB back before NVML was read: nvml_process and nvml_device are as much below their peaks"
    )
    assert given_back in notes and not any("another process's" in note for note in notes)


def test_without_nvml_the_allocators_kinds_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    mib, notes, _ = cuda_mib(monkeypatch, True, *[NvmlMemory(None, None, "NVML not available: gone")] * 3)
    assert (mib["nvml_process"], mib["nvml_device"], mib["context"]) == (None, None, None)
    assert (mib["allocated"], mib["cached"]) == (600.0, 200.0)
    assert notes == ["NVML not available: gone", INCLUDED]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    mib, notes = weigh(job(partial(Hungry, 48), train=True)._replace(device="cuda:0"))
    assert mib["train_allocated"] == pytest.approx(96, abs=12), notes
    assert mib["train_weights"] == pytest.approx(48, abs=1)
    assert mib["train_activations"] == pytest.approx(48, abs=12)
    assert mib["train_cached"] is not None and mib["train_cached"] >= 0


# --- the largest batch ---


@pytest.mark.parametrize("start", [1, 4, 7, 64])
def test_every_capacity_is_found_with_few_questions(start: int) -> None:
    for capacity in range(71):
        asked: list[int] = []

        def fits(batch: int, capacity: int = capacity, asked: list[int] = asked) -> bool:
            assert 1 <= batch <= 64
            asked.append(batch)
            return batch <= capacity

        assert largest_batch(fits, limit=64, start=start) == (min(capacity, 64) or None)
        assert len(set(asked)) == len(asked) <= 13


def test_a_question_without_an_answer_ends_the_search() -> None:
    asked: list[int] = []
    assert largest_batch(lambda batch: asked.append(batch) or (None if batch == 8 else True)) is None
    assert asked == [1, 2, 4, 8]


def answering(monkeypatch: pytest.MonkeyPatch, capacity: int, error: str) -> list[int]:
    """Fresh processes that are refused above this batch."""
    asked: list[int] = []

    def call(function: Any, job: Job, timeout_s: float) -> Answer:
        assert function is memory.measure and timeout_s == job.patience_s
        asked.append(job.batch)
        return Answer(None, error) if job.batch > capacity else Answer([{}, []], None)

    monkeypatch.setattr(largest, "call_fresh", call)
    return asked


ON_CUDA = job(Pointwise, train=True, batch=4)._replace(device="cuda:0")


def test_the_search_begins_at_the_jobs_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, 11, "out of memory (CUDA out of memory. Tried to allocate 2 GiB)")
    assert search(ON_CUDA) == (11, ())
    assert asked == [4, 8, 16, 12, 10, 11]


def test_another_failure_ends_the_search_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in ("RuntimeError: size is odd", "out of memory (DefaultCPUAllocator: can't allocate memory)"):
        answering(monkeypatch, 8, error)
        assert search(ON_CUDA) == (None, (f"train largest batch not found: {error} at batch 16; 8 fitted",))


def test_a_search_at_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, 0, "out of memory")
    assert search(ON_CUDA) == (None, ("train largest batch: not even one image fits",))
    answering(monkeypatch, 99, "out of memory")
    assert search(ON_CUDA, limit=16) == (16, ("train largest batch: no larger one than 16 was tried",))


def test_a_cpu_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largest, "call_fresh", None)
    found, notes = search(job(Pointwise, train=True))
    assert found is None
    assert "swap" in notes[0]
