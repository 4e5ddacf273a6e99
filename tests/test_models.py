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

from segbench.errors import ModelError, SettingError
from segbench.models import MODELS
from segbench.models.build import build, load_weights
from segbench.models.input import IMAGENET, Input
from segbench.models.layers import BatchNorm, bilinear_initialised, pool, pool_with_places, split_parameters, unpool
from segbench.models.unet import mirrored

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
        ("segnet", 6),
        ("segnet-basic", 0),
        ("fcn-basic", 0),
        ("fcn8s", 2),
        ("deeplab-largefov", 2),
        ("deconvnet", 6),
        ("unet", 2),
    ],
)
def test_dropout_stands_where_the_docstrings_say(name: str, places: int) -> None:
    model = build(name, 2, NARROW, input_size=(45, 60))
    seen: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, _inputs, _output: seen.append(module.p))
    model(torch.rand(2, 3, 45, 60))
    assert seen == [0.5] * places


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
        ("segnet", {"dropout": 1.5}, ["cannot be built", "1.5"]),
        ("segnet", {"width": 0}, ["cannot be built", "width is 0"]),
        ("fcn8s", {"deconvolution": "learned"}, ["deconvolution", "'learnt' or 'fixed'"]),
        ("deconvnet", {"input_size": "360"}, ["input_size", "HEIGHTxWIDTH"]),
        ("smp:Unett", {}, ['"Unett"', 'did you mean "Unet"', "known:"]),
        ("smp:Unet", {"encoder_nam": "resnet18"}, ["encoder_nam", 'did you mean "encoder_name"']),
        ("smp:Unet", {"encoder_name": "resnet19"}, ['"resnet19"', 'did you mean "resnet']),
        ("smp:Unet", {"classes": 2}, ["classes is not an option"]),
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


@pytest.mark.parametrize("file", ["no.pt", "no.safetensors", "text.pt", "text.safetensors", "code.pth", "wrapped.pt"])
def test_files_that_are_no_weights(file: str, tmp_path: Path) -> None:
    for suffix in ("pt", "safetensors"):
        (tmp_path / f"text.{suffix}").write_text("not weights")
    torch.save({"a": Surprise()}, tmp_path / "code.pth")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "wrapped.pt")
    with pytest.raises(ModelError, match=file) as caught:
        load_weights(build("fcn-basic", 2, NARROW), tmp_path / file)
    assert "\n" not in str(caught.value)
