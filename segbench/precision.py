"""The same network in other numbers and another memory layout.

`fp32` is what others are compared with: every product in IEEE single precision, neither TF32 nor the CPU's bfloat16
products. `tf32` lets matrix products and convolutions on a GPU read 10 bits of mantissa, as PyTorch's convolutions do
unless told otherwise. `bf16` and `fp16` are PyTorch's autocast, not a network of short weights: weights stay fp32 and
are cast at every use, and autocast's own lists say which operators stay in fp32. Its cache of cast weights is off: over
many passes it would hide the casts from all but the first, train on old weights, and cannot be captured in a CUDA
graph.

In all of them cuDNN picks algorithms by its heuristics: autotuning picks others from run to run.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from segbench.errors import SettingError
from segbench.spec import Precision

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
TF32_CAPABILITY = (8, 0)


@contextmanager
def precision_of(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in `precision` on `device` while it lasts, whatever surrounds it; the settings before it return after it.

    Raises `SettingError` for TF32 where there is none. A device that lacks another type says so when it is used.
    """
    with products_of(precision, device), autocast_of(precision, device):
        yield


def products_of(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """How fp32 numbers are multiplied: the part of `precision_of` that a whole measurement may lie in."""
    if precision == "tf32":
        check_tf32(device)
    if precision == "bf16" and device.type == "cuda":
        check_bf16(device)
    return fp32_products("tf32" if precision == "tf32" else "ieee")


def autocast_of(precision: Precision, device: torch.device) -> torch.autocast:
    """Which operators get short numbers: the part of `precision_of` that ends before a backward pass."""
    short = AUTOCAST.get(precision)
    return torch.autocast(device.type, short, enabled=short is not None, cache_enabled=False)


def check_tf32(device: torch.device) -> None:
    """Elsewhere the setting is ignored, and fp32 would be reported as TF32."""
    if device.type != "cuda":
        raise SettingError(f"precision: tf32 is a format of NVIDIA's GPUs, and {device} has none; write fp32 or bf16")
    found = torch.cuda.get_device_capability(device)
    if found < TF32_CAPABILITY:
        has, needs = (".".join(map(str, version)) for version in (found, TF32_CAPABILITY))
        raise SettingError(f"precision: tf32 needs compute capability {needs}, and {device} has {has}; write fp32")


def check_bf16(device: torch.device) -> None:
    """Older GPUs emulate it, and are slower than in fp32."""
    with torch.cuda.device(device):
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise SettingError(f"precision: bf16 is emulated on {device}, not computed; write fp32 or fp16")


@contextmanager
def fp32_products(on_cuda: Literal["ieee", "tf32"]) -> Iterator[None]:
    """How fp32 numbers are multiplied while it lasts; on a CPU always in full.

    PyTorch has an old and a new setting for this, and parts of it (torch.export is one) refuse to run while they
    contradict each other, so both are set: the old one first, for it changes the new one.
    """
    cuda, cudnn, mkldnn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
    tf32, matmul, convolutions, autotune = on_cuda == "tf32", matmul_before(), convolutions_before(), cudnn.benchmark
    operators: tuple[Any, ...] = (cuda, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)  # type: ignore[attr-defined]
    before = [operator.fp32_precision for operator in operators]

    def put(matmul: str, convolutions: bool, precisions: Sequence[str], autotune: bool) -> None:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32 = convolutions
        for operator, precision in zip(operators, precisions, strict=True):
            operator.fp32_precision = precision
        cudnn.benchmark = autotune

    try:
        put("high" if tf32 else "highest", tf32, [on_cuda] * 3 + ["ieee"] * 2, False)
        yield
    finally:
        put(matmul, convolutions, before, autotune)


def matmul_before() -> str:
    """The old setting of matrix products. It cannot be read while it contradicts the new one, but is then known."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "high"


def convolutions_before() -> bool:
    """The old setting of cuDNN, likewise."""
    cudnn: Any = torch.backends.cudnn
    try:
        return cudnn.allow_tf32
    except RuntimeError:
        return cudnn.conv.fp32_precision != "tf32"


def laid_out(model: nn.Module, channels_last: bool) -> nn.Module:
    """The model itself, its convolutions' weights in channels-last order if so asked, else as they are."""
    return model.to(memory_format=torch.channels_last) if channels_last else model


def arranged(images: Shaped[Tensor, "n 3 h w"], channels_last: bool) -> Shaped[Tensor, "n 3 h w"]:
    """The same images in the layout of the model that `laid_out` gave."""
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images
