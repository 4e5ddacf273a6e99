"""DeepLab-LargeFOV in both geometries: every layer, the totals, and where a logit lies in the image."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layer_tables import assert_layers_are, caffe_pooled, layers_run
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segbench.models.deeplab_largefov import DeepLabLargeFOV

RELEASED = """
conv1_1 360x480 1,792 0.299
conv1_2 360x480 36,928 6.370
pool1 181x241
conv2_1 181x241 73,856 3.216
conv2_2 181x241 147,584 6.432
pool2 91x121
conv3_1 91x121 295,168 3.247
conv3_2 91x121 590,080 6.495
conv3_3 91x121 590,080 6.495
pool3 46x61
conv4_1 46x61 1,180,160 3.310
conv4_2 46x61 2,359,808 6.620
conv4_3 46x61 2,359,808 6.620
pool4 46x61
conv5_1 46x61 2,359,808 6.620
conv5_2 46x61 2,359,808 6.620
conv5_3 46x61 2,359,808 6.620
pool5 46x61
pool5a 46x61
fc6 46x61 4,719,616 13.240
fc7 46x61 1,049,600 2.942
fc8 46x61 11,275 0.032
crop 360x480
"""
# Scale and shift of 13 convolutions with 4,224 channels together, and of fc6 and fc7 with 2,048.
NORMALISATION = 2 * (4_224 + 2_048)
# Kernel, stride and padding of the first three poolings.
POOLINGS = {"benchmark": (2, 2, 0), "released": (3, 2, 1)}


def on_meta(num_classes: int, **options: Any) -> DeepLabLargeFOV:
    with torch.device("meta"):
        return DeepLabLargeFOV(num_classes, **options).eval()


def empty(height: int, width: int) -> Tensor:
    return torch.empty(1, 3, height, width, device="meta")


def test_every_layer_of_the_release() -> None:
    model = on_meta(11, geometry="released", batch_norm=False)
    assert_layers_are(RELEASED, model, empty(360, 480))


@pytest.mark.parametrize(
    ("num_classes", "size", "geometry", "parameters", "gmac"),
    [
        (11, (360, 480), "benchmark", 20_495_179, 82.786),
        (11, (360, 480), "released", 20_495_179, 85.179),
        (37, (360, 480), "benchmark", 20_521_829, 82.858),
        (37, (360, 480), "released", 20_521_829, 85.253),
        # 321 is 161, 81 and 41 with either pooling.
        (21, (321, 321), "benchmark", 20_505_429, 50.928),
        (21, (321, 321), "released", 20_505_429, 50.928),
    ],
)
def test_totals(num_classes: int, size: tuple[int, int], geometry: Any, parameters: int, gmac: float) -> None:
    for batch_norm, more in ((False, 0), (True, NORMALISATION)):
        model = on_meta(num_classes, geometry=geometry, batch_norm=batch_norm)
        assert sum(p.numel() for p in model.parameters()) == parameters + more
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(empty(*size))
        assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.0006)


@pytest.mark.parametrize("geometry", ["benchmark", "released"])
@pytest.mark.parametrize("size", [(45, 60), (97, 131), (224, 224), (361, 481), (1, 9)])
def test_sizes_follow_caffes_rule_and_end_at_the_images(geometry: Any, size: tuple[int, int]) -> None:
    layers, output = layers_run(on_meta(11, geometry=geometry), empty(*size))
    fed = {layer.path: layer.fed for layer in layers}
    expected = size
    for stage in range(1, 4):
        expected = tuple(caffe_pooled(side, *POOLINGS[geometry]) for side in expected)
        assert fed[f"encoder.{stage}.conv{stage + 1}_1.conv"] == expected
    assert fed["encoder.4.conv5_1.conv"] == fed["fc.fc6.conv"] == fed["fc8"] == expected
    assert output == size


@pytest.mark.parametrize(("geometry", "first"), [("benchmark", 3.5), ("released", 0.0)])
def test_cells_lie_at_every_eighth_pixel(geometry: Any, first: float) -> None:
    """A pooling of a ramp gives its window's end, of the falling ramp its start: their mean is the cell's middle."""
    model = DeepLabLargeFOV(2, width=1 / 64, geometry=geometry)
    model.encoder = nn.ModuleList(nn.Identity() for _ in range(5))
    ramp = torch.arange(161.0).view(-1, 1).expand(1, 3, 161, 161)
    middles = (model.features(ramp) - model.features(-ramp))[0, 0] / 2
    inner = slice(4, -5)  # beyond, the windows of pool4 to pool5a end at the border
    torch.testing.assert_close(middles[inner, 5], (first + 8 * torch.arange(len(middles)))[inner])
    assert len(middles[inner]) > 5


class Ramp(nn.Module):
    """In place of fc8: two maps that hold the row and the column of each cell in the image."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.first = first

    def forward(self, features: Tensor) -> Tensor:
        rows, columns = (self.first + 8 * torch.arange(size) for size in features.shape[-2:])
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


@pytest.mark.parametrize(("geometry", "first"), [("benchmark", 3.5), ("released", 0.0)])
@pytest.mark.parametrize("size", [(45, 60), (41, 57)])
def test_logits_stand_where_their_cells_are(geometry: Any, first: float, size: tuple[int, int]) -> None:
    model = DeepLabLargeFOV(2, width=1 / 64, geometry=geometry).eval()
    model.fc8 = Ramp(first)
    with torch.no_grad():
        logits = model(torch.rand(1, 3, *size))
    for axis, side in enumerate(size):
        cells = side
        for _ in range(3):
            cells = caffe_pooled(cells, *POOLINGS[geometry])
        # Before the first cell and beyond the last, the nearest one's logits are repeated.
        places = torch.arange(float(side)).clamp(first, first + 8 * (cells - 1))
        torch.testing.assert_close(logits[0, axis].amax(1 - axis), places)
        torch.testing.assert_close(logits[0, axis].amin(1 - axis), places)


@pytest.mark.parametrize("geometry", ["benchmark", "released"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_weight_learns(geometry: Any, batch_norm: bool) -> None:
    torch.manual_seed(0)
    model = DeepLabLargeFOV(3, width=1 / 8, geometry=geometry, batch_norm=batch_norm).train()
    F.cross_entropy(model(torch.rand(2, 3, 45, 60)), torch.randint(0, 3, (2, 45, 60))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.dim() < 2 or parameter.grad.count_nonzero() > 0, name


def test_fc8_starts_narrow_and_the_rest_from_hes_deviation() -> None:
    torch.manual_seed(0)
    for path, module in DeepLabLargeFOV(11, width=1 / 4, geometry="released").named_modules():
        if isinstance(module, nn.Conv2d):
            expected = 0.01 if path == "fc8" else (2 / module.weight[0].numel()) ** 0.5
            error = expected / (2 * module.weight.numel()) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, abs=5 * error), path
            assert module.bias is not None and not module.bias.any()


def multipliers(model: DeepLabLargeFOV) -> dict[tuple[float, float], int]:
    """(learning rate, decay) -> how many numbers are trained so."""
    return {
        (group["lr_multiplier"], group["decay_multiplier"]): sum(p.numel() for p in group["params"])
        for group in model.parameter_groups()
    }


def test_multipliers() -> None:
    shifts, biases, fc8 = NORMALISATION // 2, 6_283, 1024 * 11
    weights = 20_507_723 - shifts - biases
    assert multipliers(on_meta(11)) == {(1, 1): weights, (2, 0): biases, (1, 0): shifts}
    assert multipliers(on_meta(11, shift_decay=True)) == {(1, 1): weights + shifts, (2, 0): biases}
    assert multipliers(on_meta(11, geometry="released", batch_norm=False, fc8_rate=10.0)) == {
        (1, 1): weights - shifts - fc8,
        (2, 0): biases - 11,
        (10, 1): fc8,
        (20, 0): 11,
    }
