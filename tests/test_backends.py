"""Backends: the model's own logits from each, what is ready before anything is timed, refusals in one line."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_nets import random_images, tiny
from torch import Tensor, nn

from segbench.errors import ModelError, SettingError
from segbench.precision import precision_of
from segbench.profiling import backends
from segbench.profiling.backends import Compiled, Forward, failing_as, inference, training
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.variants import deviation, exact_logits
from segbench.spec import Precision

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def test_eager_is_the_model_itself() -> None:
    model = tiny().train()
    forward = inference(model, random_images(), ProfileSpec())
    assert forward == Forward(model) and not model.training
    assert forward(random_images()).is_inference()


# --- what training runs ---


def test_training_is_eager_unless_compiled_and_absent_where_a_backend_only_infers() -> None:
    model = tiny()
    assert training(model, ProfileSpec(cuda_graphs=True)) is model
    assert training(model, ProfileSpec(backend="onnxruntime")) is None
    laid = training(model, ProfileSpec(channels_last=True))
    assert laid is model and model.training
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index, union-attr, call-overload]
    assert isinstance(training(model, ProfileSpec(backend="compile")), Compiled)


# --- torch.compile ---

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
COMPILED = ProfileSpec(backend="compile")


def check_compiled(model: nn.Module, images: Tensor) -> None:
    expected = exact_logits(model, images)
    with precision_of("fp32", CPU):
        forward = inference(model, images, COMPILED)
        torch.testing.assert_close(forward(images), expected)
        assert "took" in forward.notes[0] and forward.notes[0].endswith(" s and compiled inference as one graph")
        module = training(model, COMPILED)
        assert module is not None and model.training
        module(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_inductors_logits_and_gradients_are_the_models() -> None:
    check_compiled(tiny(), random_images())


@pytest.fixture
def traced_sizes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.compile with the tracer alone, which needs no compiler; the sizes of the images of each graph."""
    compile_model, sizes = torch.compile, []

    def trace(graph: Any, given: list[Any]) -> Any:
        sizes.extend(str(list(value.shape)) for value in given if isinstance(value, Tensor) and value.ndim == 4)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_model(model, backend=trace, **options))
    return sizes


def test_traced_logits_and_gradients_are_the_models(traced_sizes: list[str]) -> None:
    check_compiled(tiny(), random_images())


def test_every_size_is_compiled_for_itself(traced_sizes: list[str]) -> None:
    forward = inference(tiny(), torch.zeros(1, 3, 12, 16), COMPILED)
    for width in (20, 24):  # a second size would make code for any size, which serves the third
        forward(torch.zeros(1, 3, 12, width))
    assert [size for size in traced_sizes if ", 3, 12, " in size] == [f"[1, 3, 12, {width}]" for width in (16, 20, 24)]


def test_a_long_sweep_is_compiled_to_its_end(traced_sizes: list[str]) -> None:
    """torch.compile gives up without a word after eight sizes of one model."""
    for width in range(8, 18):
        forward = inference(tiny(), torch.zeros(1, 3, 12, width), COMPILED)
        assert forward.notes[0].endswith("as one graph")


class Evasive(nn.Module):
    @torch.compiler.disable
    def forward(self, images: Tensor) -> Tensor:
        return 2 * images


def test_what_the_compiler_left_alone_is_told() -> None:
    forward = inference(Evasive(), random_images(), COMPILED)
    assert forward.notes[0].endswith(" s and compiled inference nothing of it: all is eager")


def test_what_a_backend_raises_is_one_line_with_its_reason() -> None:
    class Failed(RuntimeError):
        inner_exception = OSError("no compiler\nlook here")

    with pytest.raises(ModelError, match=r"^torch\.compile: OSError: no compiler$"), failing_as("torch.compile"):
        raise Failed("backend='inductor' raised:\nOSError: no compiler")
    with pytest.raises(ModelError, match=r"^onnxruntime: RuntimeError: opset$"), failing_as("onnxruntime"):
        raise RuntimeError("opset\nand a page more")
    with pytest.raises(SettingError, match="ours"), failing_as("onnxruntime"):
        raise SettingError("ours")


class Shy(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise ValueError(f"size {images.shape[2]} is odd to me")


def test_a_forward_that_fails_while_it_is_compiled_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"^torch\.compile: [^\n]+$"):
        inference(Shy(), random_images(), COMPILED)


# --- CUDA graphs ---


def test_cuda_graphs_are_refused_on_a_cpu() -> None:
    with pytest.raises(SettingError, match=r"^cuda_graphs: cpu has none; [^\n]+$"):
        inference(tiny(), random_images(), ProfileSpec(cuda_graphs=True))


class FakeCuda:
    """Streams that note their order; a graph that, replayed, computes again what was captured."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.place = "current"

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: self.order.append("current waits"))

    def Stream(self, device: torch.device) -> SimpleNamespace:
        self.side = SimpleNamespace(wait_stream=lambda other: self.order.append("side waits"))
        return self.side

    def CUDAGraph(self) -> SimpleNamespace:
        return SimpleNamespace(replay=lambda: self.order.append("replay"))

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.place = "side"
        yield
        self.place = "current"

    @contextmanager
    def graph(self, graph: object, stream: object = None) -> Iterator[None]:
        self.place = "captured beside" if stream is self.side else "captured"
        yield
        self.place = "current"


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA


def test_a_graph_is_captured_after_warming_up_beside_it_and_fed_by_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, fed = FakeCuda(), []
    for name in ("current_stream", "Stream", "CUDAGraph", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())

    class Noting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert torch.is_inference_mode_enabled()
            fake.order.append(fake.place)
            fed.append(images)
            return images

    images = random_images()
    forward = backends.captured(Noting(), images.as_subclass(OnCuda))
    assert fake.order == ["side waits", "side", "side", "side", "current waits", "captured beside"]
    others = images + 1
    logits = forward(others)
    assert fake.order[-1] == "replay" and len(fed) == 4
    assert logits is fed[0] and torch.equal(logits.as_subclass(torch.Tensor), others)
    assert "copying" in forward.notes[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "changed",
    [{"cuda_graphs": True}, {"cuda_graphs": True, "precision": "bf16"}, {"backend": "compile"}, {"precision": "tf32"}],
)
def test_variants_on_cuda(changed: dict[str, Any]) -> None:
    spec = ProfileSpec.model_validate(changed)
    model, images = tiny().to(CUDA), random_images().to(CUDA)
    expected = exact_logits(model, images)
    with precision_of(spec.precision, CUDA):
        forward = inference(model, torch.zeros_like(images), spec)
        error = deviation(expected, forward(images))["largest_logit_error"]
    assert error is not None and error < (0.05 if "precision" in changed else 1e-5)


# --- ONNX Runtime ---

ONNX = ProfileSpec(backend="onnxruntime")


def test_onnxruntime_computes_what_the_model_computes() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, images = tiny(), random_images()
    with precision_of("fp32", CPU):
        forward = inference(model, images, ONNX)
    torch.testing.assert_close(forward(images), exact_logits(model, images))
    torch.testing.assert_close(forward(images[:1] + 1), exact_logits(model, images[:1] + 1))
    assert "CPUExecutionProvider" in forward.notes[0]


def test_onnxruntime_absent_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingError, match=r"^backend onnxruntime: .* pip install 'segbench\[onnx\]'$"):
        inference(tiny(), random_images(), ONNX)


@pytest.mark.parametrize("changed", [{"precision": "bf16"}, {"precision": "fp16"}, {"channels_last": True}])
def test_onnxruntime_refuses_what_it_would_ignore(changed: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"^{next(iter(changed))}: .*onnxruntime"):
        inference(tiny(), random_images(), ONNX.model_copy(update=changed))


class FakeBinding(SimpleNamespace):
    def bind_input(self, name: str, **place: Any) -> None:
        self.input = (name, place)

    def bind_output(self, name: str, **place: Any) -> None:
        self.output = (name, place)


class FakeRuntime:
    """onnxruntime, for CUDA or without it: notes the settings of its one session, whose logits are zeros."""

    __version__ = "9"

    def __init__(self, provides: list[str], starts: bool = True) -> None:
        self.provides, self.starts = provides, starts
        self.binding = FakeBinding()
        self.runs = 0

    def get_available_providers(self) -> list[str]:
        return self.provides

    def SessionOptions(self) -> SimpleNamespace:
        return SimpleNamespace()

    def InferenceSession(self, file: Any, options: Any, providers: list[Any]) -> "FakeRuntime":
        self.options, self.asked = options, providers
        return self

    def get_providers(self) -> list[str]:
        return [self.asked[0][0], "CPUExecutionProvider"] if self.starts else ["CPUExecutionProvider"]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(shape=["s0", 4, 12, 16])]

    def io_binding(self) -> FakeBinding:
        return self.binding

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        self.runs += 1

    def run(self, names: list[str], given: dict[str, Any]) -> list[Any]:
        return [given["images"][:, :1].repeat(4, axis=1)]


CUDA_AND_CPU = ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime(CUDA_AND_CPU)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(backends, "export_onnx", lambda model, size, path: None)
    return fake


def test_onnxruntime_uses_as_many_threads_as_torch(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    inference(tiny(), random_images(), ONNX)
    assert runtime.options.intra_op_num_threads == 3
    assert runtime.asked == [("CPUExecutionProvider", {})]


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_onnxruntime_on_cuda_has_no_tf32_unless_asked(runtime: FakeRuntime, precision: Precision) -> None:
    name, told = backends.provider_of(runtime, CUDA, precision)
    assert name == "CUDAExecutionProvider"
    assert told == {"device_id": 0, "use_tf32": int(precision == "tf32"), "cudnn_conv_algo_search": "HEURISTIC"}


def test_onnxruntime_on_cuda_reads_and_writes_in_place(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: waited.append(device))
    )
    images = random_images()
    run = backends.on_cuda(runtime, images)
    logits = run(images)
    assert (list(logits.shape), runtime.runs, waited) == ([2, 4, 12, 16], 1, [images.device])
    name, place = runtime.binding.input
    assert (name, place["buffer_ptr"], place["shape"]) == ("images", images.data_ptr(), (2, 3, 12, 16))
    name, place = runtime.binding.output
    assert (name, place["buffer_ptr"], place["shape"]) == ("logits", logits.data_ptr(), (2, 4, 12, 16))


def test_an_onnxruntime_without_cuda_is_told(runtime: FakeRuntime) -> None:
    with pytest.raises(SettingError, match=r"has CPUExecutionProvider, none for cuda:0; pip install onnxruntime-gpu"):
        backends.provider_of(FakeRuntime(["CPUExecutionProvider"]), CUDA, "fp32")
    runtime.starts, runtime.provides = False, CUDA_AND_CPU
    with pytest.raises(ModelError, match="CUDAExecutionProvider is installed and does not start"):
        backends.in_onnxruntime(tiny(), random_images().as_subclass(OnCuda), ONNX)
