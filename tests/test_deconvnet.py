"""DeconvNet in its forms: every layer, the totals, the sizes it takes, and what is trained how."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layer_tables import assert_layers_are, caffe_pooled, layers_run
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segbench.errors import ModelError
from segbench.models.deconvnet import DeconvNet

RELEASED = """
conv1_1 224x224 1,792 0.087
conv1_2 224x224 36,928 1.850
pool1 112x112
conv2_1 112x112 73,856 0.925
conv2_2 112x112 147,584 1.850
pool2 56x56
conv3_1 56x56 295,168 0.925
conv3_2 56x56 590,080 1.850
conv3_3 56x56 590,080 1.850
pool3 28x28
conv4_1 28x28 1,180,160 0.925
conv4_2 28x28 2,359,808 1.850
conv4_3 28x28 2,359,808 1.850
pool4 14x14
conv5_1 14x14 2,359,808 0.462
conv5_2 14x14 2,359,808 0.462
conv5_3 14x14 2,359,808 0.462
pool5 7x7
fc6 1x1 102,764,544 0.103
fc7 1x1 16,781,312 0.017
fc6-deconv 7x7 102,760,960 0.103
unpool5 14x14
deconv5_1 14x14 2,359,808 0.462
deconv5_2 14x14 2,359,808 0.462
deconv5_3 14x14 2,359,808 0.462
unpool4 28x28
deconv4_1 28x28 2,359,808 1.850
deconv4_2 28x28 2,359,808 1.850
deconv4_3 28x28 1,179,904 0.925
unpool3 56x56
deconv3_1 56x56 590,080 1.850
deconv3_2 56x56 590,080 1.850
deconv3_3 56x56 295,040 0.925
unpool2 112x112
deconv2_1 112x112 147,584 1.850
deconv2_2 112x112 73,792 0.925
unpool1 224x224
deconv1_1 224x224 36,928 1.850
deconv1_2 224x224 36,928 1.850
seg-score 224x224 1,365 0.067
"""
SMALL = {"width": 1 / 16, "input_size": (45, 60)}


def on_meta(num_classes: int, **options: Any) -> DeconvNet:
    with torch.device("meta"):
        return DeconvNet(num_classes, **options).eval()


def empty(height: int, width: int) -> Tensor:
    return torch.empty(1, 3, height, width, device="meta")


def gmac(model: nn.Module, size: tuple[int, int]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(empty(*size))
    return counter.get_total_flops() / 2e9


def test_every_layer_of_the_release() -> None:
    assert_layers_are(RELEASED, on_meta(21, form="released"), empty(224, 224))


@pytest.mark.parametrize(
    ("form", "num_classes", "size", "parameters", "expected_gmac"),
    [
        ("benchmark", 11, (360, 480), 219_280_715, 112.299),
        ("benchmark", 37, (360, 480), 219_282_405, 112.587),
        ("released", 11, (224, 224), 251_805_003, 32.714),
        ("released", 21, (224, 224), 251_805_653, 32.746),
        ("released", 37, (224, 224), 251_806_693, 32.797),
    ],
)
def test_totals_at_the_size_of_each_form(
    form: Any, num_classes: int, size: tuple[int, int], parameters: int, expected_gmac: float
) -> None:
    model = on_meta(num_classes, form=form)
    assert model.input_size == size
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert gmac(model, size) == pytest.approx(expected_gmac, abs=0.0006)


def test_fully_connected_layers_of_the_benchmark() -> None:
    """512 * 1024 * 12 * 15 weights and as many work, forth and back; 877 MB with all the rest."""
    layers, _ = layers_run(on_meta(11), empty(360, 480))
    fc6, fc7, fc6_deconv = layers[13:16]
    assert (fc6.fed, fc6.size, fc6.parameters) == ((12, 15), (1, 1), 512 * 1024 * 180 + 1024)
    assert (fc7.size, fc7.parameters) == ((1, 1), 1024 * 1024 + 1024)
    assert (fc6_deconv.size, fc6_deconv.parameters) == ((12, 15), 512 * 1024 * 180 + 512)
    assert fc6.gmac == fc6_deconv.gmac == 512 * 1024 * 180 / 1e9
    assert [layer.fed for layer in layers if layer.path.endswith("_1.conv") and "deconv" in layer.path] == [
        (23, 30),
        (45, 60),
        (90, 120),
        (180, 240),
        (360, 480),
    ]


@pytest.mark.parametrize("size", [(45, 60), (97, 131), (224, 224), (361, 481)])
def test_the_way_back_has_the_sizes_of_the_way_down(size: tuple[int, int]) -> None:
    layers, output = layers_run(on_meta(11, input_size=size), empty(*size))
    fed = {layer.path: layer.fed for layer in layers}
    expected = size
    for stage in range(5):
        assert fed[f"encoder.{stage}.conv{stage + 1}_1.conv"] == expected
        assert fed[f"decoder.{4 - stage}.deconv{stage + 1}_1.conv"] == expected
        expected = tuple(caffe_pooled(side, 2, 2, 0) for side in expected)
    assert (fed["fc.fc6.conv"], fed["fc.fc7.conv"], output) == (expected, (1, 1), size)


def test_the_released_form_keeps_its_kernels_at_other_sizes_unless_told_otherwise() -> None:
    model = on_meta(11, form="released", input_size=(360, 480))
    assert model.fc.fc6.conv.weight.shape == (4096, 512, 7, 7)
    assert model(empty(360, 480)).shape == (1, 11, 360, 480)
    model = on_meta(11, form="released", input_size=(360, 480), fc6_kernel="whole-map")
    assert model.fc.fc6.conv.weight.shape == (4096, 512, 12, 15)
    assert model(empty(360, 480)).shape == (1, 11, 360, 480)


def test_a_sliding_fc6_takes_any_size_from_193() -> None:
    """The other reading of the benchmark: 1024 channels and 7x7 kernels are 327.7 MB."""
    model = on_meta(11, fc6_kernel="7x7")
    assert sum(p.numel() for p in model.parameters()) == 219_280_715 - 2 * 512 * 1024 * (180 - 49)
    assert 4 * sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(327.7, abs=0.1)
    # 12x15 is 6x9 after 7x7, 54 places, and 12x15 again after its reverse.
    more = 2 * 512 * 1024 * (49 * 54 - 180) + 1024 * 1024 * 53
    assert gmac(model, (360, 480)) == pytest.approx(112.299 + more / 1e9, abs=0.0006)
    for size in ((193, 193), (224, 224), (360, 480), (361, 481)):
        assert model(empty(*size)).shape == (1, 11, *size)


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({}, (224, 224), ["built for images of 360x480", "fed 224x224", "input_size"]),
        (
            {"form": "released", "fc6_kernel": "whole-map"},
            (360, 480),
            ["built for images of 224x224", "fed 360x480", "input_size"],
        ),
        ({"input_size": (45, 60)}, (60, 45), ["built for images of 45x60", "fed 60x45"]),
        ({"fc6_kernel": "7x7"}, (192, 480), ["193x193 or more", "fed 192x480", "whole-map"]),
        ({"fc6_kernel": "7x7"}, (480, 192), ["193x193 or more", "fed 480x192"]),
    ],
)
def test_other_sizes_are_refused_on_one_line(options: dict[str, Any], size: tuple[int, int], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        on_meta(2, **options)(empty(*size))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("options", "probability"),
    [({}, 0.5), ({"form": "released"}, 0.0), ({"dropout": 0.25}, 0.25), ({"form": "released", "dropout": 0.5}, 0.5)],
)
def test_only_the_benchmark_drops(options: dict[str, Any], probability: float) -> None:
    model = DeconvNet(2, **SMALL, **options)
    found = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert found == [probability] * 4  # one for the poolings, and blocks 5, 4 and 3


@pytest.mark.parametrize(
    "options",
    [{}, {"form": "released", "fc6_kernel": "whole-map"}, {"fc6_kernel": "7x7", "input_size": (193, 200)}],
)
def test_every_weight_learns(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = DeconvNet(3, **{**SMALL, **options}).train()
    size = tuple(model.input_size)
    with torch.no_grad():  # the deconvolutions start so small that gradients below are
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    F.cross_entropy(model(torch.rand(3, 3, *size)), torch.randint(0, 3, (3, *size))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.dim() < 2 or parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("form", ["benchmark", "released"])
def test_deviations_at_the_start(form: Any) -> None:
    torch.manual_seed(0)
    for path, module in DeconvNet(11, form=form, **SMALL).named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            narrow = path == "seg_score" or "deconv" in path
            expected = 0.01 if narrow else (2 / module.weight[0].numel()) ** 0.5
            error = expected / (2 * module.weight.numel()) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, abs=5 * error), path
            assert module.bias is not None and not module.bias.any()


def multipliers(model: DeconvNet) -> dict[tuple[float, float], int]:
    """(learning rate, decay) -> how many numbers are trained so."""
    return {
        (group["lr_multiplier"], group["decay_multiplier"]): sum(p.numel() for p in group["params"])
        for group in model.parameter_groups()
    }


def test_multipliers() -> None:
    """Batch normalisation has 10,560 scales and as many shifts in the benchmark's form, 16,704 in the release."""
    assert multipliers(on_meta(11)) == {(1, 1): 219_280_715 - 10_571, (2, 0): 10_571}
    assert multipliers(on_meta(11, form="released")) == {(1, 1): 251_805_003 - 16_715, (2, 0): 16_715}
    assert multipliers(on_meta(11, shift_decay=False)) == {
        (1, 1): 219_280_715 - 10_571 - 10_560,
        (2, 0): 10_571,
        (1, 0): 10_560,
    }
