"""Size, work and kept activations against arithmetic by hand and files on disk."""

from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from small_nets import CLASSES, Broken, Pointwise, Pooled
from torch import Tensor, nn

from segbench.models.build import build
from segbench.profiling.complexity import Complexity, complexity, file_bytes

RES = (10, 12)
MAP = CLASSES * 10 * 12 * 4
"""Bytes of one map of all channels."""


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


class NotOnMeta(Counted):
    """A factory that looks at values."""

    def __init__(self) -> None:
        super().__init__()
        assert self.down.weight.sum().item() < 1e9


class Shared(nn.Module):
    """Two names for one weight, buffers of three types, one of them not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(CLASSES, CLASSES, 1, bias=False) for _ in range(2))
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.ones(5, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("unsaved", torch.ones(1000), persistent=False)


# --- multiply-accumulates ---


def test_a_convolution_and_a_deconvolution_counted_by_hand() -> None:
    """On 10x12: 5*6 places * 3*8*3*3 weights, then 5*6 places * 8*4*2*2 weights."""
    counted = complexity(Counted, RES)
    assert counted.macs == 30 * 216 + 30 * 128
    assert counted.flops == 2 * counted.macs
    assert counted.parameters == 216 + 128 + CLASSES
    assert counted.trainable_parameters == 216 + 128
    assert counted.parameter_mb == pytest.approx(348 * 4e-6)
    assert counted.uncounted == ("relu",)
    assert counted.notes == ("macs leave out relu",)


def test_what_only_training_runs_is_not_counted() -> None:
    counted = complexity(Auxiliary, RES)
    assert counted.macs == 10 * 12 * 3 * CLASSES
    assert counted.parameters == 3 * CLASSES + CLASSES + 2 * CLASSES + 27 * CLASSES + CLASSES


@pytest.mark.parametrize("model", [NoMeta, NotOnMeta])
def test_models_that_the_meta_device_cannot_build_or_run_are_counted_on_the_cpu(model: type[nn.Module]) -> None:
    assert sizes(complexity(model, RES)) == sizes(complexity(Counted, RES))


def sizes(counted: Complexity) -> list[float | None]:
    return [counted.macs, counted.activation_mib, counted.parameters, counted.file_mb]


def test_what_cannot_be_counted_is_none_with_a_note() -> None:
    counted = complexity(Broken, RES)
    assert (counted.macs, counted.flops, counted.activation_mib) == (None, None, None)
    assert counted.notes == (
        "macs not counted: RuntimeError: size 10 is odd to me",
        "activations not counted: RuntimeError: size 10 is odd to me",
    )
    assert counted.parameters == 3 * CLASSES + CLASSES + 2 * CLASSES


def test_what_a_factory_raises_is_raised() -> None:
    def factory() -> nn.Module:
        raise ValueError("no such encoder")

    with pytest.raises(ValueError, match="no such encoder"):
        complexity(factory, RES)


# --- the saved file ---


@pytest.mark.parametrize("name", ["segnet-basic", "fcn-basic", "unet"])
def test_the_file_is_as_large_as_one_on_disk(name: str, tmp_path: Path) -> None:
    model = build(name, CLASSES, {"width": 1 / 8}, (32, 32))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert file_bytes(model) == (tmp_path / "weights.safetensors").stat().st_size
    assert file_bytes(model.to("meta")) == file_bytes(model)


def test_a_shared_tensor_is_in_the_file_once_and_an_unsaved_buffer_not(tmp_path: Path) -> None:
    model = Shared()
    saved = {name: tensor for name, tensor in model.state_dict().items() if name != "second.weight"}
    assert set(saved) == {"first.weight", "mask", "steps"}
    save_file(saved, tmp_path / "weights.safetensors")
    assert file_bytes(model) == (tmp_path / "weights.safetensors").stat().st_size


# --- kept activations ---


def convolution() -> nn.Module:
    return nn.Conv2d(3, CLASSES, 3, padding=1)


def kept(*layers: nn.Module) -> float:
    """Bytes kept by the layers behind a convolution, whose own input is the image."""
    counted = complexity(lambda: nn.Sequential(convolution(), *layers), RES)
    assert counted.activation_mib is not None, counted.notes
    return counted.activation_mib * 2**20


class Twice(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        kept_by_both = features.sigmoid()
        return kept_by_both.square() + kept_by_both[:, :1]


def test_activations_by_hand() -> None:
    assert kept() == 0  # the image is left out
    assert kept(nn.ReLU()) == MAP  # its result
    assert kept(nn.ReLU(inplace=True)) == MAP
    # The convolution's result, the mean and deviation of each channel, and the activation.
    assert kept(nn.BatchNorm2d(CLASSES), nn.ReLU()) == 2 * MAP + 2 * CLASSES * 4
    assert kept(nn.MaxPool2d(2)) == MAP + CLASSES * 5 * 6 * 8  # what it pools, and places of 64 bits
    assert kept(nn.Conv2d(CLASSES, 2, 1)) == MAP


def test_each_storage_is_counted_once() -> None:
    """A result that its own node, the next node and a view of it keep."""
    assert kept(Twice()) == MAP


def test_activations_are_those_of_training() -> None:
    assert kept(nn.Dropout(0.5)) == MAP  # the mask, in floats; in eval mode there is none


def test_what_no_gradient_needs_is_not_kept() -> None:
    def frozen() -> nn.Module:
        return nn.Sequential(convolution(), nn.ReLU()).requires_grad_(False)

    assert complexity(frozen, RES).activation_mib == 0


def test_activations_that_one_image_does_not_give_are_none_with_a_note() -> None:
    counted = complexity(Pooled, RES)
    assert counted.macs == 10 * 12 * 3 * CLASSES
    assert counted.activation_mib is None
    assert any(note.startswith("activations not counted: ValueError: Expected more than 1") for note in counted.notes)
