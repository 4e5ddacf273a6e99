"""Models: one contract for every registered one, the papers' sizes and counts, and layers against slow loops."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segbench.data.synthetic import Synthetic
from segbench.errors import ModelError, SettingError
from segbench.models import MODELS
from segbench.models.build import build, load_weights
from segbench.models.input import IMAGENET, Input
from segbench.models.layers import BatchNorm, bilinear_initialised, pool, pool_with_places, split_parameters, unpool
from segbench.models.unet import joined, mirrored

NARROW = {"width": 1 / 8}
CASES = [
    ("segnet", NARROW),
    ("segnet-basic", NARROW),
    ("fcn-basic", NARROW),
    ("fcn8s", NARROW),
    ("deeplab-largefov", NARROW),
    ("deconvnet", NARROW),
    ("unet", NARROW),
    ("unet", {**NARROW, "padding": "valid"}),
    ("smp:Unet", {"encoder_name": "resnet18"}),
    ("smp:FPN", {"encoder_name": "resnet18"}),
    ("torchvision:lraspp_mobilenet_v3_large", {}),
]
contract = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{o.get('padding', '')}" for n, o in CASES])


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def photographs(count: int, size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)


# The contract of every registered model


def test_every_registered_model_has_a_case() -> None:
    assert {name.partition(":")[0] for name, _ in CASES} == {name.partition(":")[0] for name in MODELS.entries}


@contract
@pytest.mark.parametrize("size", [(45, 60), (97, 131)])
def test_logits_have_the_size_of_the_images_and_do_not_depend_on_the_batch(
    name: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    model = build(name, 4, options, input_size=size).eval()
    images = model.input(photographs(2, size))
    assert images.dtype == torch.float32
    with torch.no_grad():
        logits = model(images)
        alone = model(images[1:])
    assert logits.shape == (2, 4, *size)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[1:], alone, rtol=1e-4, atol=1e-4 * float(logits.abs().max()) + 1e-6)


@contract
def test_every_weight_learns(name: str, options: dict[str, Any]) -> None:
    model = build(name, 3, options, input_size=(45, 60)).train()
    with torch.no_grad():  # away from score layers of zero, which pass nothing down in the first step
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    images = model.input(photographs(3, (45, 60)))
    F.cross_entropy(model(images), torch.randint(0, 3, (3, 45, 60))).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.dim() < 2 or parameter.grad.count_nonzero() > 0, path


@contract
def test_parameter_groups_hold_each_trainable_parameter_once(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = build(name, 3, options)
    if not hasattr(model, "parameter_groups"):
        assert name.partition(":")[0] in {"unet", "smp", "torchvision"}
        return
    groups = model.parameter_groups()
    assert all(set(group) == {"params", "lr_multiplier", "decay_multiplier"} for group in groups)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


# Sizes and counts of the papers, without memory: everything is on the meta device


def on_meta(name: str, num_classes: int, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build(name, num_classes, options).eval()


def count(model: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize(
    ("name", "options", "of_11", "of_37"),
    [
        ("segnet", {}, 29_449_355, 29_464_357),
        ("segnet-basic", {}, 1_416_064, 1_417_728),
        ("segnet-basic", {"bias": True}, 1_416_587, 1_418_277),
        ("fcn-basic", {}, 645_824, 971_968),
        ("fcn8s", {}, 134_373_761, 134_859_727),
        ("fcn8s", {"batch_norm": False}, 134_348_929, 134_834_895),
        ("fcn8s", {"deconvolution": "fixed"}, 134_373_761, 134_859_727),
        ("deeplab-largefov", {}, 20_507_723, 20_534_373),
        ("deeplab-largefov", {"batch_norm": False}, 20_495_179, 20_521_829),
        ("deconvnet", {}, 219_280_715, 219_282_405),
        ("unet", {}, 31_032_395, 31_034_085),
        ("unet", {"padding": "valid"}, 31_032_395, 31_034_085),
    ],
)
def test_parameters_are_those_of_the_papers(name: str, options: dict[str, Any], of_11: int, of_37: int) -> None:
    assert count(on_meta(name, 11, **options)) == of_11
    assert count(on_meta(name, 37, **options)) == of_37


def test_fixed_deconvolutions_are_stored_and_not_trained() -> None:
    model = on_meta("fcn8s", 11, deconvolution="fixed")
    assert count(model, trainable=True) == 134_314_081 + 24_832
    assert {"upscore2.weight", "upscore_pool4.weight", "upscore8.weight"} < set(model.state_dict())


@pytest.mark.parametrize(
    ("name", "options", "size", "gmacs"),
    [
        ("segnet", {}, (360, 480), 106.712),
        ("segnet-basic", {}, (360, 480), 59.189),
        ("fcn-basic", {}, (360, 480), 13.490),
        ("fcn8s", {}, (360, 480), 139.466),
        ("deeplab-largefov", {}, (360, 480), 82.786),
        ("deconvnet", {}, (360, 480), 112.299),
        ("unet", {}, (368, 480), 129.939),
        ("unet", {"padding": "valid"}, (360, 480), 176.137),
    ],
)
def test_multiply_accumulates(name: str, options: dict[str, Any], size: tuple[int, int], gmacs: float) -> None:
    model = on_meta(name, 11, **options)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert model(torch.empty(1, 3, *size, device="meta")).shape == (1, 11, *size)
    # The counter counts a multiply-accumulate as two operations.
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.0006)


def sizes_of(model: nn.Module, paths: list[str]) -> list[tuple[int, ...]]:
    """Height and width that each submodule puts out for a 360x480 image."""
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        model.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, output, path=path: found.update({path: tuple(output.shape[-2:])})
        )
    model(torch.empty(1, 3, 360, 480, device="meta"))
    return [found[path] for path in paths]


STAGES = [f"encoder.{stage}" for stage in range(5)]
HALVINGS = [(360, 480), (180, 240), (90, 120), (45, 60), (23, 30)]


@pytest.mark.parametrize(
    ("name", "paths", "sizes"),
    [
        ("segnet", STAGES + [f"decoder.{stage}" for stage in range(5)], HALVINGS + HALVINGS[::-1]),
        ("segnet-basic", [*STAGES[:4], "decoder.0", "decoder.3"], [*HALVINGS[:4], (45, 60), (360, 480)]),
        ("fcn-basic", ["reductions.3", "deconvolutions.3", "reductions.2"], [(23, 30), (46, 60), (45, 60)]),
        ("fcn8s", STAGES, [(558, 678), (279, 339), (140, 170), (70, 85), (35, 43)]),
        ("fcn8s", ["fc", "upscore2", "upscore_pool4", "upscore8"], [(12, 16), (26, 34), (54, 70), (440, 568)]),
        ("deeplab-largefov", [*STAGES, "fc8"], [*HALVINGS[:3], (45, 60), (45, 60), (45, 60)]),
        (
            "deconvnet",
            ["fc.fc6", "fc.fc7", "fc", "decoder.0", "decoder.1"],
            [(1, 1)] * 2 + [(12, 15), (23, 30), (45, 60)],
        ),
    ],
)
def test_sizes_on_the_way(name: str, paths: list[str], sizes: list[tuple[int, int]]) -> None:
    assert sizes_of(on_meta(name, 11), paths) == sizes


@pytest.mark.parametrize(
    ("name", "places"),
    [
        # 45 rows are 23, 12, 6, 3 and 2 after the poolings.
        ("segnet", [(f"encoder.{n}.conv{n + 1}_3.relu", rows) for n, rows in ((2, 6), (3, 3), (4, 2))]),
        ("deconvnet", [(f"encoder.{n}.conv{n + 1}_3.relu", rows) for n, rows in ((2, 6), (3, 3), (4, 2))]),
        ("segnet-basic", []),
        ("fcn-basic", []),
        ("fcn8s", [("fc.fc6.relu", 2), ("fc.fc7.relu", 2)]),
        ("deeplab-largefov", [("fc.fc6.relu", 6), ("fc.fc7.relu", 6)]),
        ("unet", [("down.3.1.relu", 6), ("down.4.1.relu", 3)]),
    ],
)
def test_dropout_stands_where_the_docstrings_say(name: str, places: list[tuple[str, int]]) -> None:
    """Each dropout by the layer that ran before it and the rows that it sees (which tell pooling)."""
    if name == "segnet":
        places = [*places, *((f"decoder.{n}.conv{5 - n}_1_D.relu", rows) for n, rows in enumerate((3, 6, 12)))]
    if name == "deconvnet":
        places = [*places, *((f"decoder.{n}.deconv{5 - n}_3.relu", rows) for n, rows in enumerate((3, 6, 12)))]
    model = build(name, 2, NARROW, input_size=(45, 60))
    ran, seen = [""], []
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.5
            module.register_forward_hook(lambda _module, inputs, _output: seen.append((ran[-1], inputs[0].shape[2])))
        elif not list(module.children()):
            module.register_forward_hook(lambda _module, _inputs, _output, path=path: ran.append(path))
    model(torch.rand(2, 3, 45, 60))
    assert seen == places


class Zero(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return torch.zeros_like(features)


def test_unets_skip_of_512_channels_is_dropped_too() -> None:
    model = build("unet", 2, NARROW)
    model.dropout = Zero()
    seen: list[bool] = []
    model.up[3].register_forward_hook(lambda _module, inputs, _output: seen.append(bool(inputs[0].any())))
    model.up[2].register_forward_hook(lambda _module, inputs, _output: seen.append(bool(inputs[0].any())))
    model(torch.rand(1, 3, 45, 60))
    assert seen == [False, True]


# Where layers look


class Ramp(nn.Module):
    """In place of a score layer: two maps that hold the row and the column of each cell in the image."""

    def __init__(self, step: float, start: float) -> None:
        super().__init__()
        self.step, self.start = step, start

    def forward(self, features: Tensor) -> Tensor:
        rows, columns = (self.start + self.step * torch.arange(size) for size in features.shape[-2:])
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


@pytest.mark.parametrize(
    ("score", "step", "start"),
    # conv1_1 pads by 100 and takes 1, so its row 0 is the image's -99. A cell of pool3 is 8 rows and lies in their
    # middle, at -99 + 3.5; one of fc6 is 32 rows, and 3 cells further in.
    [("score_pool3", 8, -95.5), ("score_pool4", 16, -91.5), ("score_fr", 32, -83.5 + 3 * 32)],
)
def test_fcns_scores_stand_where_their_cells_are(score: str, step: int, start: float) -> None:
    model = build("fcn8s", 2, {"width": 1 / 64}).eval()
    setattr(model, score, Ramp(step, start))  # the other scores start from zero
    with torch.no_grad():
        logits = model(torch.rand(1, 3, 97, 131))
    inner = slice(32, -32)  # beyond, the deconvolutions of fc7's scores see the border
    rows, columns = torch.meshgrid(torch.arange(97.0), torch.arange(131.0), indexing="ij")
    torch.testing.assert_close(logits[0, 0, inner, inner], rows[inner, inner])
    torch.testing.assert_close(logits[0, 1, inner, inner], columns[inner, inner])


def test_deeplabs_logits_stand_for_the_middle_of_8x8_pixels() -> None:
    model = build("deeplab-largefov", 2, {"width": 1 / 64}).eval()
    model.fc8 = Ramp(8, 3.5)
    with torch.no_grad():
        logits = model(torch.rand(1, 3, 45, 60))
    torch.testing.assert_close(logits[0, 0, 4:44, 0], torch.arange(4.0, 44.0))
    torch.testing.assert_close(logits[0, 1, 0, 4:60], torch.arange(4.0, 60.0))


def test_deeplab_looks_through_holes() -> None:
    model = on_meta("deeplab-largefov", 2)
    convolutions = [m for stage in model.encoder for m in stage.modules() if isinstance(m, nn.Conv2d)]
    assert [m.dilation for m in convolutions] == [(1, 1)] * 10 + [(2, 2)] * 3
    fc6, fc7 = model.fc.fc6.conv, model.fc.fc7.conv
    assert (fc6.kernel_size, fc6.dilation, fc6.padding, fc7.kernel_size) == ((3, 3), (12, 12), (12, 12), (1, 1))


def test_deeplabs_average_pooling_counts_the_zeros_of_its_padding() -> None:
    model = build("deeplab-largefov", 2, {"width": 1 / 64}).eval()
    stage5: list[Tensor] = []
    model.encoder[4].register_forward_hook(lambda _module, _inputs, output: stage5.append(output.clone()))
    with torch.no_grad():
        features = model.features(torch.rand(1, 3, 45, 60))
    pooled = F.max_pool2d(stage5[0], 3, stride=1, padding=1)
    expected = sum(F.pad(pooled, (1, 1, 1, 1))[..., y : y + 6, x : x + 8] for y in range(3) for x in range(3)) / 9
    torch.testing.assert_close(features, expected)


def test_segnet_basics_decoder_has_no_relu() -> None:
    model = build("segnet-basic", 2, NARROW)
    signs: list[bool] = []
    for part in (*model.encoder, *model.decoder):
        part.register_forward_hook(lambda _module, _inputs, output: signs.append(bool((output < 0).any())))
    model(torch.rand(2, 3, 45, 60))
    assert signs == [False] * 4 + [True] * 4


def test_unet_joins_the_upsampled_map_first_and_the_middle_of_the_skip() -> None:
    above, skip = torch.zeros(1, 1, 5, 4), torch.arange(1.0, 57.0).view(1, 1, 7, 8)
    found = joined(above, skip)
    assert torch.equal(found[:, :1], above)
    assert torch.equal(found[:, 1:], skip[..., 1:6, 2:6])
    above = torch.arange(12.0).view(1, 1, 3, 4)
    assert torch.equal(joined(above, torch.ones(1, 1, 2, 3))[:, :1], above[..., :2, :3])


# Initialisation

ZERO = {"score_fr", "score_pool4", "score_pool3"}
BILINEAR = {"upscore2", "upscore_pool4", "upscore8", *(f"deconvolutions.{level}" for level in range(4))}


@pytest.mark.parametrize(
    "name", ["segnet", "segnet-basic", "fcn-basic", "fcn8s", "deeplab-largefov", "deconvnet", "unet"]
)
def test_initial_deviations(name: str) -> None:
    """He's everywhere but where the docstrings say otherwise, and no bias; 5 standard errors."""
    for path, module in build(name, 11, NARROW, input_size=(45, 60)).named_modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or path in BILINEAR:
            continue
        expected = (2 / module.weight[0].numel()) ** 0.5
        if path in ZERO:
            expected = 0.0
        elif path == "fc8" or (name == "deconvnet" and (path == "seg_score" or "deconv" in path)):
            expected = 0.01
        error = expected / (2 * module.weight.numel()) ** 0.5
        assert float(module.weight.detach().std()) == pytest.approx(expected, abs=5 * error), path
        assert module.bias is None or not module.bias.any(), path


# Multipliers of learning rate and weight decay


def multipliers(model: nn.Module) -> dict[tuple[float, float], int]:
    """(learning rate, decay) -> how many numbers are trained so."""
    return {
        (group["lr_multiplier"], group["decay_multiplier"]): sum(p.numel() for p in group["params"])
        for group in model.parameter_groups()
    }


def test_segnet_doubles_biases_and_does_not_decay_shifts() -> None:
    weights = 29_449_355 - 7_947 - 7_936
    assert multipliers(on_meta("segnet", 11)) == {(1, 1): weights, (2, 0): 7_947, (1, 0): 7_936}
    # The multipliers of layer parameters follow from the layers, so SyncBatchNorm in their place changes nothing.
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(on_meta("segnet", 11))
    groups = split_parameters(synchronised, shift_decay=0.0)
    assert [sum(p.numel() for p in group["params"]) for group in groups] == [weights, 7_947, 7_936]


def test_segnet_basic_decays_shifts() -> None:
    assert multipliers(on_meta("segnet-basic", 11)) == {(1, 1): 1_416_064}
    assert multipliers(on_meta("segnet-basic", 11, bias=True)) == {(1, 1): 1_416_064, (2, 0): 523}


def test_deconvnet_decays_shifts_and_fcn8s_does_not() -> None:
    assert set(multipliers(on_meta("deconvnet", 11))) == {(1, 1), (2, 0)}
    assert set(multipliers(on_meta("fcn8s", 11))) == {(1, 1), (2, 0), (1, 0)}


def test_fcn_basic_trains_its_deconvolutions_slower() -> None:
    deconvolutions = 4 * 11 * 11 * 8 * 8
    assert multipliers(on_meta("fcn-basic", 11)) == {(1, 1): 645_824 - deconvolutions, (0.1, 1): deconvolutions}


@pytest.mark.parametrize("seed", range(4))
def test_fcn_basic_learns_by_its_own_recipe(seed: int) -> None:
    """At the full rate the deconvolutions explode within these 15 steps, for each of the seeds."""
    frames = Synthetic("train", size=(30, 40), train=60)
    torch.manual_seed(seed)
    model = build("fcn-basic", 11, {"width": 0.5}).train()
    groups = [{"params": g["params"], "lr": 0.1 * g["lr_multiplier"]} for g in model.parameter_groups()]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    losses = []
    for first in range(0, 60, 4):
        samples = [frames[index] for index in range(first, first + 4)]
        images = torch.stack([torch.from_numpy(sample.image.copy()).permute(2, 0, 1) for sample in samples])
        truth = torch.stack([torch.from_numpy(sample.labels.astype(np.int64)) for sample in samples])
        loss = F.cross_entropy(model(model.input(images)), truth, ignore_index=11)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert max(losses[-3:]) < losses[0]


def test_deeplab_trains_fc8_faster_only_when_asked() -> None:
    assert set(multipliers(on_meta("deeplab-largefov", 11))) == {(1, 1), (2, 0), (1, 0)}
    released = multipliers(on_meta("deeplab-largefov", 11, fc8_rate=10))
    assert (released[10, 1], released[20, 0]) == (1024 * 11, 11)


# Input, worked by hand

PIXEL = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("feed", "expected"),
    [
        (Input(), [10, 20, 30]),
        (Input(order="bgr"), [30, 20, 10]),
        (Input(order="bgr", mean=(1.0, 2.0, 3.0)), [29, 18, 7]),
        (Input(scale=0.1, mean=(1.0, 1.0, 1.0), std=(2.0, 1.0, 0.5)), [0, 1, 4]),
    ],
)
def test_input_by_hand(feed: Input, expected: list[float]) -> None:
    torch.testing.assert_close(feed(PIXEL).flatten(), torch.tensor(expected, dtype=torch.float32))


def test_white_after_local_response_normalisation() -> None:
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    # 1 + 1e-4 / 5 * 3 * 255^2 = 4.9015, to the power 0.75: 3.2942; 255 / 3.2942 = 77.41
    torch.testing.assert_close(Input(lrn=True)(white), torch.full((1, 3, 2, 2), 77.41), atol=0.01, rtol=0)


def test_local_response_normalisation_is_pytorchs_on_three_channels() -> None:
    images = photographs(2, (5, 7))
    expected = F.local_response_norm(images.flip(1).float(), size=5, alpha=1e-4, beta=0.75, k=1.0)
    torch.testing.assert_close(Input(order="bgr", lrn=True)(images), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("segnet", [30, 20, 10]),
        ("fcn8s", [30 - 104.00699, 20 - 116.66877, 10 - 122.67892]),
        ("deeplab-largefov", [30 - 104.008, 20 - 116.669, 10 - 122.675]),
        ("deconvnet", [30 - 104.008, 20 - 116.669, 10 - 122.675]),
        ("unet", [10 / 255, 20 / 255, 30 / 255]),
        (
            "torchvision:fcn_resnet50",
            [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225],
        ),
    ],
)
def test_each_model_is_fed_as_its_paper_says(name: str, expected: list[float]) -> None:
    fed = on_meta(name, 2).input(PIXEL).flatten()
    torch.testing.assert_close(fed, torch.tensor(expected, dtype=torch.float32))


def test_input_of_imagenets_mean_colour_is_zero() -> None:
    mean = torch.tensor([[[[123.675]], [[116.28]], [[103.53]]]]).round().to(torch.uint8)
    assert IMAGENET(mean).abs().max() < 0.01


# Layers against slow loops and other routes


def caffe_pool(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2x2 windows, partial ones kept; the first maximum in row order wins a tie."""
    height, width = plane.shape
    pooled = np.zeros((-(-height // 2), -(-width // 2)), dtype=plane.dtype)
    places = np.zeros(pooled.shape, dtype=np.int64)
    for top, left in np.ndindex(*pooled.shape):
        best = -np.inf
        for row in range(2 * top, min(2 * top + 2, height)):
            for column in range(2 * left, min(2 * left + 2, width)):
                if plane[row, column] > best:
                    best = plane[row, column]
                    pooled[top, left], places[top, left] = best, row * width + column
    return pooled, places


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1), (9, 4)])
def test_pooling_and_unpooling_follow_caffes_rule(size: tuple[int, int], layout: torch.memory_format) -> None:
    # Few values, so that ties are many.
    features = torch.randint(-2, 3, (2, 9, *size)).float().to(memory_format=layout)
    pooled, places = pool_with_places(features)
    restored = unpool(pooled, places, features.shape[-2:])
    assert torch.equal(pool(features), pooled)
    for image, channel in np.ndindex(2, 9):
        expected, where = caffe_pool(features[image, channel].numpy())
        back = np.zeros(size[0] * size[1], dtype=np.float32)
        back[where] = expected
        assert np.array_equal(pooled[image, channel].numpy(), expected)
        assert np.array_equal(places[image, channel].numpy(), where)
        assert np.array_equal(restored[image, channel].numpy(), back.reshape(size))


def test_unpooling_hands_each_gradient_back_to_its_value() -> None:
    pooled, places = pool_with_places(torch.randn(1, 2, 5, 6))
    pooled.requires_grad_()
    weight = torch.randn(1, 2, 5, 6)
    (unpool(pooled, places, (5, 6)) * weight).sum().backward()
    expected = weight.flatten(2).gather(2, places.flatten(2)).view_as(pooled)
    assert pooled.grad is not None
    assert torch.equal(pooled.grad, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_unpooling_in_deterministic_mode_on_a_gpu_is_the_cpus() -> None:
    features = torch.randn(2, 8, 45, 60)
    torch.use_deterministic_algorithms(True)
    try:
        pooled, places = pool_with_places(features.cuda())
        pooled.requires_grad_()
        restored = unpool(pooled, places, (45, 60))
        restored.square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    expected, expected_places = pool_with_places(features)
    assert torch.equal(restored.detach().cpu(), unpool(expected, expected_places, (45, 60)))
    assert pooled.grad is not None
    assert torch.equal(pooled.grad.cpu(), 2 * expected)


def test_batch_normalisation_of_one_value_is_the_shift() -> None:
    layer = BatchNorm(3).train()
    nn.init.normal_(layer.bias)
    value = torch.randn(1, 3, 1, 1, requires_grad=True)
    output = layer(value)
    assert torch.equal(output.flatten(), layer.bias)
    output.sum().backward()
    assert value.grad is not None
    assert layer.weight.grad is not None
    assert value.grad.count_nonzero() == layer.weight.grad.count_nonzero() == 0
    assert torch.equal(layer.bias.grad, torch.ones(3))
    assert layer.num_batches_tracked == 0


def test_batch_normalisation_of_more_values_is_pytorchs() -> None:
    ours, theirs, features = BatchNorm(3), nn.BatchNorm2d(3), torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(ours(features), theirs(features) + 0.001)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_deconvnet_trains_on_one_image() -> None:
    model = build("deconvnet", 2, NARROW, input_size=(33, 40)).train()
    F.cross_entropy(model(torch.rand(1, 3, 33, 40)), torch.ones(1, 33, 40, dtype=torch.int64)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # fc7 is normalised to its shift, so that is how far the gradient goes down.
    assert model.fc.fc7.bn.bias.grad.count_nonzero() > 0
    assert model.fc.fc6.conv.weight.grad.count_nonzero() == 0


@pytest.mark.parametrize("stride", [2, 8])
def test_bilinear_deconvolution_interpolates(stride: int) -> None:
    deconvolution = nn.ConvTranspose2d(3, 3, 2 * stride, stride=stride, padding=stride // 2, bias=False)
    bilinear_initialised(deconvolution)
    scores = torch.randn(1, 3, 6, 7)
    expected = F.interpolate(scores, scale_factor=stride, mode="bilinear", align_corners=False)
    inner = slice(stride, -stride)  # at the border the deconvolution sees zeros
    torch.testing.assert_close(deconvolution(scores)[..., inner, inner], expected[..., inner, inner])


def test_the_wide_kernel_of_fcn_basic_keeps_constants() -> None:
    model = build("fcn-basic", 2, NARROW)
    output = model.deconvolutions[0](torch.ones(1, 2, 8, 8))
    torch.testing.assert_close(output[..., 4:-4, 4:-4], torch.ones(1, 2, 8, 8))


@pytest.mark.parametrize(("size", "extended"), [(388, 572), (360, 556), (480, 668), (45, 236), (1, 188), (2, 188)])
def test_mirroring_is_numpys_reflection(size: int, extended: int) -> None:
    images = torch.rand(1, 1, size, 3)
    found = mirrored(images)
    assert found.shape[-2] == extended
    expected = np.pad(images[0, 0, :, 0].numpy(), (92, extended - size - 92), mode="reflect")
    assert np.array_equal(found[0, 0, :, 92].numpy(), expected)


def test_valid_unet_predicts_a_pixel_from_its_own_surroundings() -> None:
    model = build("unet", 2, {**NARROW, "padding": "valid"}).eval()
    images = torch.rand(1, 3, 230, 60)
    changed = images.clone()
    # 92 rows at the pixel's side of the coarsest map's cell, which is 16 rows high.
    reach = 92 + 16
    changed[..., 200:, :] = 0
    with torch.no_grad():
        before, after = model(images), model(changed)
    assert torch.equal(before[..., : 200 - reach, :], after[..., : 200 - reach, :])
    assert not torch.equal(before[..., 200 - reach // 2 : 200, :], after[..., 200 - reach // 2 : 200, :])


def test_external_networks_that_want_multiples_see_zeros_beside_the_image() -> None:
    assert build("smp:PSPNet", 2, {"encoder_name": "resnet18"}).multiple == 8
    model = build("smp:FPN", 2, {"encoder_name": "resnet18"}).eval()
    images = torch.rand(1, 3, 45, 60)
    with torch.no_grad():
        expected = model.network(F.pad(images, (0, 4, 0, 19)))[..., :45, :60]
        assert torch.equal(model(images), expected)


# build and its errors


def test_the_table_of_models_costs_no_torch() -> None:
    code = "import sys, segbench.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_options_are_read_as_their_types() -> None:
    model = build("deconvnet", 2, {"input_size": "33x40", **NARROW}, input_size=(360, 480))
    assert model.input_size == (33, 40)


def test_equal_seeds_build_equal_models() -> None:
    first, second = [], []
    for states in (first, second):
        torch.manual_seed(3)
        states.append(build("segnet", 2, NARROW).state_dict())
    assert all(torch.equal(first[0][key], second[0][key]) for key in first[0])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("segnet", {"droput": 0.1}, ['model "segnet"', "droput", 'did you mean "dropout"', "width, dropout"]),
        ("segnet", {"num_classes": 3}, ["num_classes is not an option"]),
        ("segnet", {"dropout": "much"}, ["option dropout is 'much'", "number"]),
        ("segnet", {"dropout": 1.5}, ["option dropout is 1.5", "less than or equal to 1"]),
        ("unet", {"dropout": -0.1}, ["option dropout is -0.1", "greater than or equal to 0"]),
        ("fcn8s", {"dropout": float("nan")}, ["option dropout is nan"]),
        ("segnet", {"width": 0}, ["option width is 0", "greater than 0"]),
        ("deconvnet", {"width": float("inf")}, ["option width is inf", "finite"]),
        ("segnet-basic", {"width": float("nan")}, ["option width is nan", "finite"]),
        ("deeplab-largefov", {"fc8_rate": -1}, ["option fc8_rate is -1", "greater than 0"]),
        ("fcn8s", {"deconvolution": "learned"}, ["deconvolution", "'learnt' or 'fixed'"]),
        ("deconvnet", {"input_size": "360"}, ["input_size", "HEIGHTxWIDTH"]),
        ("smp:Unett", {}, ['"Unett"', 'did you mean "Unet"', "known:"]),
        ("smp:Unet", {"encoder_nam": "resnet18"}, ["encoder_nam", 'did you mean "encoder_name"']),
        ("smp:Unet", {"encoder_name": "resnet19"}, ['"resnet19"', 'did you mean "resnet']),
        ("smp:Unet", {"encoder_name": 5}, ["encoder_name is 5", "name of an encoder"]),
        ("smp:Unet", {"encoder_name": ["resnet18"]}, ["encoder_name is ['resnet18']", "name of an encoder"]),
        ("smp:Unet", {"encoder_name": "tu-nonsense"}, ["cannot be built", "RuntimeError", "nonsense"]),
        ("smp:Unet", {"encoder_name": "resnet18", "encoder_depth": 99}, ["cannot be built", "depth"]),
        ("smp:Unet", {"classes": 2}, ["classes is not an option"]),
        ("smp:Unet", {"num_classes": 2}, ["num_classes is not an option"]),
        ("torchvision:fcn_resnet50", {"num_classes": 2}, ["num_classes is not an option", "weights_backbone"]),
        ("torchvision:fcn_resnet50", {"weights": "mine"}, ["cannot be built", "KeyError: 'mine'"]),
        ("torchvision:deeplabv3_resnet5", {}, ['did you mean "deeplabv3_resnet50"']),
        ("torchvision:fcn_resnet50", {"aux_loss": True}, ["aux_loss is not an option"]),
    ],
)
def test_wrong_options_are_one_line(name: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        build(name, 2, options)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


class Sulking(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        raise ZeroDivisionError("I will not\nand a second line")


def test_whatever_a_constructor_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(MODELS), "resolve", lambda _registry, _name: Sulking)
    with pytest.raises(ModelError, match=r'^model "sulking" cannot be built: ZeroDivisionError: I will not$'):
        build("sulking", 2)


def test_unknown_models_and_no_classes() -> None:
    with pytest.raises(SettingError, match='did you mean "segnet"'):
        build("segnt", 2)
    with pytest.raises(ModelError, match="num_classes is 0"):
        build("segnet", 0)


def test_deconvnet_refuses_another_size_on_one_line() -> None:
    with pytest.raises(ModelError, match=r"built for images of 360x480 and was fed 45x60.*input_size") as caught:
        on_meta("deconvnet", 2)(torch.empty(1, 3, 45, 60, device="meta"))
    assert "\n" not in str(caught.value)


# Weights from files


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt"])
def test_weights_come_back_from_a_file(file: str, tmp_path: Path) -> None:
    saved, model = build("fcn-basic", 2, NARROW), build("fcn-basic", 2, NARROW)
    path = tmp_path / file
    if path.suffix == ".safetensors":
        save_file(saved.state_dict(), path)
    else:
        torch.save(saved.state_dict(), path)
    assert not torch.equal(saved.reductions[0].weight, model.reductions[0].weight)
    load_weights(model, path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in saved.state_dict().items())


def test_weights_that_do_not_fit_are_named_and_leave_the_model_alone(tmp_path: Path) -> None:
    model = build("fcn-basic", 2, NARROW)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: torch.zeros_like(value) for key, value in before.items()}
    for level in range(4):
        del state[f"reductions.{level}.weight"]
    state["head.weight"] = torch.zeros(1)
    state["deconvolutions.0.weight"] = torch.zeros(2, 2, 4, 4)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ModelError) as caught:
        load_weights(model, tmp_path / "other.safetensors")
    message = str(caught.value)
    shown = "reductions.0.weight, reductions.1.weight, reductions.2.weight, ..."
    assert f"4 missing ({shown}); 1 unexpected (head.weight); 1 of another shape" in message
    assert "deconvolutions.0.weight (2, 2, 4, 4) for (2, 2, 8, 8)" in message
    assert "\n" not in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Surprise:
    """Pickled by reference to this module, which a file of weights may not name."""


@pytest.mark.parametrize("file", ["no.pt", "no.safetensors", "text.safetensors", "wrapped.pt"])
def test_files_that_are_no_weights(file: str, tmp_path: Path) -> None:
    for suffix in ("pt", "safetensors"):
        (tmp_path / f"text.{suffix}").write_text("not weights")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "wrapped.pt")
    with pytest.raises(ModelError, match=file) as caught:
        load_weights(build("fcn-basic", 2, NARROW), tmp_path / file)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_read_say_why(tmp_path: Path) -> None:
    torch.save({"a": Surprise()}, tmp_path / "code.pt")
    for name, data in (
        ("text", b"not weights"),
        ("bytes", bytes(range(256))),
        ("empty", b""),
        ("zip", b"PK\x03\x04..."),
    ):
        (tmp_path / f"{name}.pt").write_bytes(data)
    reasons = {
        "code": r"it holds a \S*test_models\.Surprise, which is no tensor",
        "text": "it is no pickle of tensors, or a broken one",
        "bytes": "it is no pickle of tensors, or a broken one",
        "empty": "it is empty or cut short",
        "zip": "RuntimeError: [^.]*zip archive[^.]*",
    }
    for name, reason in reasons.items():
        with pytest.raises(ModelError, match=rf"{name}\.pt is not a file of weights \(.*\): {reason}$"):
            load_weights(build("fcn-basic", 2, NARROW), tmp_path / f"{name}.pt")
