"""Who computes the forward: PyTorch's eager mode, torch.compile, CUDA graphs or ONNX Runtime.

Each is given the same model with the same weights and gives the same logits up to rounding; `deviation` (variants.py)
says how far up to. What it takes to get ready (compiling, capturing, exporting) happens before anything is timed, and
a note says how long it took. Sizes are fixed: no backend is asked for code that takes any size.

What comes before and behind the network (its `input`, argmax, resizing) stays in PyTorch. ONNX Runtime gets fp32
weights and NCHW images; on a GPU its TF32 is off unless the precision is tf32, and cuDNN's heuristics pick the
algorithms as they do for PyTorch. Both are other than its own defaults.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from segbench.errors import ModelError, SegbenchError, SettingError
from segbench.models.export import export_onnx
from segbench.precision import laid_out
from segbench.profiling.failure import in_words
from segbench.profiling.spec import ProfileSpec
from segbench.spec import Precision

# PyTorch's guide to CUDA graphs: three passes let libraries allocate what they would otherwise allocate in the capture.
CAPTURE_WARMUP = 3


@dataclass(frozen=True)
class Forward:
    """A network ready to infer: images as the network is fed them, [n, 3, h, w], to logits [n, classes, h, w].

    CUDA graphs and ONNX Runtime on a GPU write every time to the same place: what was given lasts until the next call.
    """

    run: Callable[[Tensor], Tensor]
    notes: tuple[str, ...] = ()

    def __call__(self, images: Shaped[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h2 w2"]:
        with torch.inference_mode():
            return self.run(images)


def inference(model: nn.Module, images: Shaped[Tensor, "n 3 h w"], spec: ProfileSpec) -> Forward:
    """The forward that `spec` asks for, ready for images like these; the model goes to eval mode and its layout.

    To be made and called under the same `precision_of`. Raises `SettingError` for what this machine or backend has not,
    `ModelError` for a model that the backend cannot take.
    """
    model = laid_out(model.eval(), spec.channels_last)
    if spec.cuda_graphs:
        return captured(model, images)
    if spec.backend == "compile":
        return compiled(model, images)
    if spec.backend == "onnxruntime":
        return in_onnxruntime(model, images, spec)
    return Forward(model)


def training(model: nn.Module, spec: ProfileSpec) -> nn.Module | None:
    """The module that training passes use, in training mode and its layout; None where the backend only infers.

    CUDA graphs are captured of inference alone: with them, training is eager.
    """
    if spec.backend == "onnxruntime":
        return None
    model = laid_out(model.train(), spec.channels_last)
    return Compiled(model) if spec.backend == "compile" else model


@contextmanager
def failing_as(backend: str) -> Iterator[None]:
    """Whatever a backend raises becomes a `ModelError` of one line; our own errors keep their words."""
    try:
        yield
    except SegbenchError:
        raise
    except Exception as error:  # compilers and runtimes raise errors of their own, pages long
        # torch.compile's own first line names its backend and not the reason.
        raise ModelError(f"{backend}: {in_words(getattr(error, 'inner_exception', error))}") from error


# --- torch.compile ---


class Compiled(nn.Module):
    """A model through torch.compile (Inductor) at fixed sizes. Its forward raises `ModelError` where that fails.

    All that this process has compiled before is forgotten: whoever has a compiled model has it compiled again when it
    is next used.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # After eight sizes of one model in a process, the others would be eager without a word.
        torch.compiler.reset()
        self.compiled = torch.compile(model, dynamic=False)

    def forward(self, images: Shaped[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h2 w2"]:
        with failing_as("torch.compile"):
            return self.compiled(images)


def compiled(model: nn.Module, images: Tensor) -> Forward:
    """Compiled now, by a first pass."""
    run = Compiled(model)
    graphs, begin = graphs_so_far(), time.perf_counter()
    Forward(run)(images)
    took_s, made = time.perf_counter() - begin, graphs_so_far() - graphs
    parts = {0: "nothing of it: all is eager", 1: "as one graph"}.get(made, f"as {made} graphs with eager code between")
    return Forward(run, (f"torch.compile took {took_s:.1f} s and compiled inference {parts}",))


def graphs_so_far() -> int:
    """Graphs that this process has compiled: torch.compile leaves out without a word what it cannot trace."""
    from torch._dynamo.utils import counters  # here: it imports the compiler

    return counters["stats"]["unique_graphs"]


# --- CUDA graphs ---


def captured(model: nn.Module, images: Tensor) -> Forward:
    """The eager forward as one CUDA graph. Each call copies its images into the graph's own, then replays."""
    device = images.device
    if device.type != "cuda":
        raise SettingError(f"cuda_graphs: {device} has none; leave the setting out, or profile on a CUDA device")
    static, graph = images.clone(), torch.cuda.CUDAGraph()
    with (
        failing_as("CUDA graphs"),
        torch.inference_mode(),
        torch.cuda.device(device),
        # A capture that fails leaves its stream the current one; this gives the old one back.
        torch.cuda.stream(torch.cuda.current_stream(device)),
    ):
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(CAPTURE_WARMUP):
                model(static)
        torch.cuda.current_stream(device).wait_stream(side)
        with torch.cuda.graph(graph, stream=side):
            logits = model(static)

    def replay(images: Tensor) -> Tensor:
        static.copy_(images)
        graph.replay()
        return logits

    return Forward(replay, ("CUDA graphs: forward_ms includes copying the images to the graph; training is eager",))


# --- ONNX Runtime ---


def in_onnxruntime(model: nn.Module, images: Tensor, spec: ProfileSpec) -> Forward:
    """Exported, loaded and run once."""
    check_onnx(spec)
    runtime = import_onnxruntime()
    device, begin = images.device, time.perf_counter()
    provider, settings = provider_of(runtime, device, spec.precision)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    with failing_as("onnxruntime"), TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(model, (images.shape[2], images.shape[3]), file)
        session = runtime.InferenceSession(file, options, providers=[(provider, settings)])
        if provider not in session.get_providers():  # it falls back to the CPU with no more than a warning
            raise ModelError(f"onnxruntime: {provider} is installed and does not start; its libraries do not load")
        forward = Forward(on_cuda(session, images) if device.type == "cuda" else on_cpu(session))
        forward(images)
    took_s = time.perf_counter() - begin
    return Forward(forward.run, (f"onnxruntime {runtime.__version__}, {provider}: made ready in {took_s:.1f} s",))


def check_onnx(spec: ProfileSpec) -> None:
    if spec.precision in ("bf16", "fp16"):
        raise SettingError(f"precision: {spec.precision} is PyTorch's autocast, and onnxruntime has none; write fp32")
    if spec.channels_last:
        raise SettingError("channels_last: ONNX has NCHW alone; leave it out with the backend onnxruntime")


def import_onnxruntime() -> Any:
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise SettingError("backend onnxruntime: it is not installed; pip install 'segbench[onnx]'") from error


def provider_of(runtime: Any, device: torch.device, precision: Precision) -> tuple[str, dict[str, Any]]:
    """The execution provider for a device, and its settings."""
    if device.type != "cuda":
        return "CPUExecutionProvider", {}
    found = runtime.get_available_providers()
    if "CUDAExecutionProvider" not in found:
        raise SettingError(
            f"backend onnxruntime: the installed one has {', '.join(found)}, none for {device}; "
            "pip install onnxruntime-gpu in its place, or profile on the cpu"
        )
    return "CUDAExecutionProvider", {
        "device_id": device.index,
        "use_tf32": int(precision == "tf32"),
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def on_cpu(session: Any) -> Callable[[Tensor], Tensor]:
    """Images are read where they are, and logits taken where they were written."""

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


def on_cuda(session: Any, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Images and logits stay on the device. ONNX Runtime has its own stream, which does not wait for PyTorch's."""
    shape = (len(images), *session.get_outputs()[0].shape[1:])
    logits, binding = torch.empty(shape, device=images.device), session.io_binding()
    place = {"device_type": "cuda", "device_id": images.device.index, "element_type": np.float32}
    binding.bind_output("logits", **place, shape=shape, buffer_ptr=logits.data_ptr())

    def run(images: Tensor) -> Tensor:
        torch.cuda.current_stream(images.device).synchronize()
        binding.bind_input("images", **place, shape=tuple(images.shape), buffer_ptr=images.data_ptr())
        session.run_with_iobinding(binding)  # ends when the logits are there
        return logits

    return run
