"""Deterministic and fast mode: what is switched and comes back, what is refused, and weights equal to the bit."""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from segbench.data.batches import Batch
from segbench.engine import determinism
from segbench.engine.determinism import WORKSPACES, computing
from segbench.engine.recipe import Recipe
from segbench.engine.update import Update
from segbench.errors import SegbenchWarning, SettingError
from segbench.models.build import build

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
CLASSES = 4


def recipe(**changes: Any) -> Recipe:
    given = {"optimizer": {"name": "sgd", "lr": 0.01}, "batch_size": 2, "iterations": 3}
    return Recipe.model_validate(given | changes)


def settings() -> dict[str, Any]:
    """Everything that a mode or a precision may switch."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn": torch.backends.cudnn.deterministic,
        "tries": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cudnn.conv.fp32_precision,
        "matmul": torch.get_float32_matmul_precision(),
    }


@pytest.fixture
def unusual() -> Iterator[dict[str, Any]]:
    """Settings that no mode would choose."""
    before = settings()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, True
    yield settings()
    torch.use_deterministic_algorithms(before["deterministic"], warn_only=before["only warns"])
    torch.utils.deterministic.fill_uninitialized_memory = before["fills"]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before["cudnn"], before["tries"]


@pytest.mark.parametrize("mode", ["deterministic", "fast"])
def test_settings_are_put_and_return(unusual: dict[str, Any], mode: str) -> None:
    with computing(recipe(mode=mode), CPU):
        inside = settings()
    exact = mode == "deterministic"
    expected = {"deterministic": exact, "only warns": False, "fills": False, "cudnn": exact, "tries": not exact}
    assert inside == expected | {"tf32": "ieee", "matmul": "highest"}
    assert settings() == unusual
    with pytest.raises(KeyError), computing(recipe(mode=mode), CPU):
        raise KeyError
    assert settings() == unusual


def test_a_precision_that_the_device_lacks_is_refused() -> None:
    before = settings()
    with (
        pytest.raises(SettingError, match=r"tf32 is a format"),
        computing(recipe(precision="tf32"), CPU),
    ):
        pass
    assert settings() == before


def test_an_operator_that_refuses_is_named() -> None:
    # PyTorch's own refusals on a CPU: of max_unpool2d, which our networks do not use.
    pooled, places = torch.nn.functional.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)
    words = r"^mode: deterministic: the training needs max_unpooling2d_forward_out, .*; write mode: fast$"
    with pytest.raises(SettingError, match=words), computing(recipe(), CPU):
        torch.nn.functional.max_unpool2d(pooled, places, 2)
    with computing(recipe(mode="fast"), CPU):
        torch.nn.functional.max_unpool2d(pooled, places, 2)
    with pytest.raises(RuntimeError, match=r"^something else"), computing(recipe(), CPU):
        raise RuntimeError("something else")


def test_cublas_is_given_workspaces_before_cuda_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    started = False
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setenv(WORKSPACES, "")  # so that monkeypatch takes away what is set below
    for repeatable in (True, False):
        monkeypatch.delenv(WORKSPACES)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            determinism.reserve_workspaces(repeatable)
        assert os.environ[WORKSPACES] == ":4096:8"
    started = True
    monkeypatch.delenv(WORKSPACES)
    with pytest.warns(SegbenchWarning, match=f"CUDA was started without {WORKSPACES}"):
        determinism.reserve_workspaces(True)
    monkeypatch.setenv(WORKSPACES, ":16:8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        determinism.reserve_workspaces(True)
    assert os.environ[WORKSPACES] == ":16:8"


def trained(name: str, options: dict[str, Any], given: Recipe, device: torch.device) -> nn.Module:
    """After three updates of random frames, in the given mode."""
    with computing(given, device):
        torch.manual_seed(0)
        model = build(name, CLASSES, options, input_size=(64, 96)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(logits, labels.long(), reduction="none").mean()

        update = Update(model, optimizer, given, device, loss_of)
        frames = torch.Generator().manual_seed(0)
        for _ in range(3):
            images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=frames)
            labels = torch.randint(0, CLASSES, (2, 64, 96), dtype=torch.uint8, generator=frames)
            update([Batch(images.to(device), labels.to(device))])
    return model


SMALL: list[tuple[str, dict[str, Any]]] = [
    ("segnet", {"width": 1 / 8}),
    ("segnet-basic", {"width": 1 / 8, "dropout": 0.5}),
    ("bilinear-interpolation", {"width": 1 / 8}),
    ("deeplab-largefov", {"width": 1 / 16}),
    ("unet", {"width": 1 / 16, "padding": "same"}),
    ("smp:FPN", {"encoder_name": "resnet18"}),
]
each = pytest.mark.parametrize(("name", "options"), SMALL, ids=[name for name, _ in SMALL])


def assert_same_twice(name: str, options: dict[str, Any], given: Recipe, device: torch.device) -> None:
    first, second = (trained(name, options, given, device).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@each
def test_weights_are_equal_to_the_bit(name: str, options: dict[str, Any]) -> None:
    assert_same_twice(name, options, recipe(), CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "channels_last": True}], ids=["fp32", "bf16"])
@each
def test_weights_are_equal_to_the_bit_on_a_gpu(name: str, options: dict[str, Any], changes: dict[str, Any]) -> None:
    assert_same_twice(name, options, recipe(**changes), CUDA)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pooling_to_several_places_is_refused_on_a_gpu() -> None:
    images = torch.rand(1, 3, 12, 12, device=CUDA, requires_grad=True)
    with pytest.raises(SettingError, match=r"adaptive_avg_pool2d_backward"), computing(recipe(), CUDA):
        nn.functional.adaptive_avg_pool2d(images, 3).sum().backward()
