"""Variants against fp32 eager: settings that return, layouts that arrive, deviations by hand."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_nets import random_images, tiny
from torch import Tensor, nn

from segbench.errors import SettingError
from segbench.precision import arranged, laid_out, precision_of
from segbench.profiling.backends import inference, training
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.variants import NOISE, deviation, exact_logits, is_reference, without_zeros
from segbench.spec import Precision

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def settings() -> dict[str, Any]:
    """All that a precision changes, as it is now; the old settings cannot be read while they contradict the new."""
    b: Any = torch.backends
    operators = (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv)
    found: dict[str, Any] = {"operators": [operator.fp32_precision for operator in operators]}
    found["autotune"] = b.cudnn.benchmark
    found["autocast"] = (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled())
    for name, read in (("matmul", torch.get_float32_matmul_precision), ("cudnn", lambda: b.cudnn.allow_tf32)):
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "contradicts"
    return found


@pytest.fixture
def _settings_return() -> Iterator[None]:
    """What a test sets by PyTorch's own means is PyTorch's default again after it."""
    b: Any = torch.backends
    before = settings()
    yield
    torch.set_float32_matmul_precision("highest")
    b.cudnn.allow_tf32, b.cudnn.benchmark = True, False
    for operator in (b.cuda.matmul, b.mkldnn.matmul, b.mkldnn.conv):
        operator.fp32_precision = "none"
    assert settings() == before


@pytest.fixture
def _capable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


# --- precision ---

B: Any = torch.backends
SET = {
    "nothing": lambda: None,
    "old": lambda: torch.set_float32_matmul_precision("medium"),
    "old and new": lambda: (
        torch.set_float32_matmul_precision("high"),
        setattr(B.cuda.matmul, "fp32_precision", "ieee"),
    ),
    "new": lambda: setattr(B.cuda.matmul, "fp32_precision", "tf32"),
    "new of one": lambda: setattr(B.cudnn.conv, "fp32_precision", "ieee"),
    "new of two": lambda: [setattr(operator, "fp32_precision", "ieee") for operator in (B.cudnn.conv, B.cudnn.rnn)],
    "old cudnn": lambda: setattr(B.cudnn, "allow_tf32", False),
    "autotune": lambda: setattr(B.cudnn, "benchmark", True),
}


@pytest.mark.usefixtures("_settings_return", "_capable")
@pytest.mark.parametrize("by_user", SET)
@pytest.mark.parametrize(("precision", "device"), [("fp32", CPU), ("bf16", CPU), ("fp16", CPU), ("tf32", CUDA)])
def test_settings_return_even_after_an_exception(precision: Precision, device: torch.device, by_user: str) -> None:
    SET[by_user]()
    before = settings()
    with precision_of(precision, device):
        during = settings()
    assert settings() == before
    with pytest.raises(ZeroDivisionError), precision_of(precision, device):
        raise ZeroDivisionError
    assert settings() == before
    tf32 = precision == "tf32"
    assert during == {
        "operators": ["tf32" if tf32 else "ieee"] * 3 + ["ieee"] * 2,
        "autotune": False,
        "autocast": (precision in ("bf16", "fp16"), False),
        "matmul": "high" if tf32 else "highest",  # readable: nothing contradicts
        "cudnn": tf32,
    }


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_short_products_of_fp32_weights(precision: Precision, dtype: torch.dtype) -> None:
    model, images = tiny(), random_images()
    expected = exact_logits(model, images)
    with precision_of(precision, CPU):
        found = inference(model, images, ProfileSpec(precision=precision))(images)
        assert deviation(expected, exact_logits(model, images))["largest_logit_error"] == 0
    assert found.dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    error = deviation(expected, found)["largest_logit_error"]
    assert error is not None and 0 < error < 0.05


def test_fp32_deviates_by_nothing() -> None:
    model, images = tiny(), random_images()
    with precision_of("fp32", CPU):
        found = inference(model, images, ProfileSpec())(images)
    assert found.dtype == torch.float32
    assert deviation(exact_logits(model, images), found) == {
        "changed_pixels": 0.0,
        "largest_logit_error": 0.0,
        "largest_logit": pytest.approx(float(found.abs().max())),
    }


def test_weights_are_cast_at_every_use() -> None:
    """A step between two passes must be seen by the second."""
    model, images = tiny(), random_images()
    with precision_of("bf16", CPU):
        first = model(images)
        with torch.no_grad():
            model[2].weight.mul_(2)  # type: ignore[index, union-attr, operator]
        assert not torch.equal(model(images), first)


def test_tf32_is_refused_where_it_would_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match=r"^precision: tf32 .* cpu has none; write fp32 or bf16$"), tf32(CPU):
        pass
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(SettingError, match=r"^precision: tf32 needs .* 8\.0, and cuda:0 has 7\.5; "), tf32(CUDA):
        pass


def tf32(device: torch.device) -> Any:
    return precision_of("tf32", device)


# --- layout ---


def test_channels_last_reaches_the_convolutions_and_changes_no_logits() -> None:
    model, images = tiny(), random_images()
    expected, seen = exact_logits(model, images), []

    def note(layer: nn.Module, given: tuple[Tensor]) -> None:
        layouts = (given[0], layer.weight)
        seen.append([tensor.is_contiguous(memory_format=torch.channels_last) for tensor in layouts])  # type: ignore[call-overload, union-attr]

    for layer in (model[0], model[2]):  # type: ignore[index]
        layer.register_forward_pre_hook(note)
    spec = ProfileSpec(channels_last=True)
    given = arranged(images, True)
    with precision_of("fp32", CPU):
        found = inference(model, given, spec)(given)
    assert seen == [[True, True]] * 2
    torch.testing.assert_close(found, expected)
    # What is compared with is not itself laid out so.
    seen.clear()
    torch.testing.assert_close(exact_logits(model, given), expected, rtol=0, atol=0)
    assert seen == [[False, False]] * 2


def test_without_channels_last_nothing_is_moved() -> None:
    model, images = tiny(), random_images()
    places = [parameter.data_ptr() for parameter in model.parameters()]
    assert arranged(images, False) is images
    assert [parameter.data_ptr() for parameter in laid_out(model, False).parameters()] == places


# --- deviation ---


def test_deviation_by_hand() -> None:
    """Two classes on 2x2: the classes are 0, 1, 0 and, of equals, 0."""
    expected = torch.tensor([[[[1.0, 0.0], [5.0, 2.0]], [[0.0, 3.0], [4.0, 2.0]]]])
    assert deviation(expected, expected) == {"changed_pixels": 0, "largest_logit_error": 0, "largest_logit": 5}
    found = expected.clone()
    found[0, 1, 0, 1] = -1.0  # class 0, by an error of 4
    found[0, 0, 1, 0] = 4.5  # still class 0
    assert deviation(expected, found) == {"changed_pixels": 0.25, "largest_logit_error": 4, "largest_logit": 5}
    found[0, 0, 1, 1] = float("inf")  # still class 0
    told = deviation(expected, found)
    assert told == {"changed_pixels": 0.25, "largest_logit_error": None, "largest_logit": 5}
    found[0, 0, 0, 0] = float("nan")  # argmax takes it for the largest: class 0, as before
    told = deviation(expected, found)
    assert told == {"changed_pixels": 0.5, "largest_logit_error": None, "largest_logit": 5}
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert deviation(found, expected)["largest_logit"] is None


def scored_by_zeros() -> nn.Sequential:
    """Its score layer begins as FCN's do; so does the scale of a normalisation, as at the end of residual branches."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    for weight in (model[0].bias, model[1].weight, model[2].weight, model[2].bias):
        nn.init.zeros_(weight)  # type: ignore[arg-type]
    return model


def test_weights_of_zeros_are_replaced_and_others_left() -> None:
    model = scored_by_zeros()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (note,) = without_zeros(model)
    assert note.startswith("2 weights that begin as zeros (1.weight, 2.weight) got small random values")
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.weight", "2.weight"}
    assert 0.5 * NOISE < float(model[2].weight.detach().std()) < 2 * NOISE
    assert all(parameter.requires_grad for parameter in model.parameters())
    again = scored_by_zeros()
    torch.manual_seed(99)
    without_zeros(again)
    assert torch.equal(again[2].weight, model[2].weight)
    assert without_zeros(model) == ()


def test_a_network_that_begins_with_zero_scores_shows_a_wrong_variant() -> None:
    """A forward that forgets half of its features: with scores of zeros, nothing of it is seen."""
    model, images = scored_by_zeros(), random_images()

    def forgetful(images: Tensor) -> Tensor:
        features = model[1](model[0](images))
        return model[2](features * (torch.arange(8) < 4)[:, None, None])

    with torch.no_grad():
        assert deviation(exact_logits(model, images), forgetful(images))["changed_pixels"] is None
        without_zeros(model)
        told = deviation(exact_logits(model, images), forgetful(images))
    assert told["changed_pixels"] and told["largest_logit_error"]


def test_equal_scores_decide_nothing() -> None:
    """As of a network that ends in zeros whatever it multiplies."""
    told = deviation(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2))
    assert told == {"changed_pixels": None, "largest_logit_error": 0, "largest_logit": 0}


def test_short_logits_are_compared_in_fp32() -> None:
    """In bfloat16 257 is 256, and the difference of 1 would be lost."""
    expected = torch.tensor([257.0, 0.0]).view(1, 2, 1, 1)
    assert deviation(expected, expected.bfloat16())["largest_logit_error"] == 1


@pytest.mark.parametrize(
    "changed", [{"precision": "bf16"}, {"backend": "compile"}, {"channels_last": True}, {"cuda_graphs": True}]
)
def test_the_reference_is_fp32_eager_alone(changed: dict[str, Any]) -> None:
    assert is_reference(ProfileSpec())
    assert not is_reference(ProfileSpec.model_validate(changed))


def test_the_reference_can_be_followed_by_training() -> None:
    """As in models that keep a grid of their first forward."""

    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.grid = tiny(), None

        def forward(self, images: Tensor) -> Tensor:
            self.grid = torch.ones(16) if self.grid is None else self.grid
            return self.inner(images) * self.grid

    model, images = Remembering(), random_images()
    assert not exact_logits(model, images).requires_grad
    assert not model.training
    module = training(model, ProfileSpec())
    assert module is model and model.training
    module(images).sum().backward()
