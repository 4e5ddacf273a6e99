"""Models: one contract for every registered one, the papers' sizes and counts, and layers against slow loops."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.data.synthetic import Synthetic
from segbench.errors import ModelError, SettingError
from segbench.models import MODELS
from segbench.models.build import build
from segbench.models.layers import BatchNorm, bilinear_initialised, split_parameters
from segbench.models.unet import joined, mirrored

NARROW = {"width": 1 / 8}
OWN = [name for name in MODELS.entries if not name.endswith(":")]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, NARROW) for name in OWN),
    *(
        # A 7x7 fc6 needs larger images than these.
        (name, {**NARROW, **form.options, **({"fc6_kernel": "whole-map"} if name == "deconvnet" else {})})
        for name in OWN
        for form in MODELS.entry(name).forms
    ),
    ("smp:Unet", {"encoder_name": "resnet18"}),
    ("smp:FPN", {"encoder_name": "resnet18"}),
    ("torchvision:lraspp_mobilenet_v3_large", {}),
    (
        "hf:segformer",
        {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8},
    ),
]
contract = pytest.mark.parametrize(
    ("name", "options"),
    CASES,
    ids=["-".join([name, *(f"{k}={v}" for k, v in options.items() if k != "width")]) for name, options in CASES],
)


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


def test_every_family_has_a_case() -> None:
    """Networks of the table are all cases; other libraries' are by example."""
    assert {f"{name.partition(':')[0]}:" for name, _ in CASES if ":" in name} == {
        name for name in MODELS.entries if name.endswith(":")
    }


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
    assert logits.shape == (2, 4 + options.get("void_logit", False), *size)
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
        if not parameter.requires_grad:  # fixed deconvolutions
            assert parameter.grad is None, path
            continue
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.dim() < 2 or parameter.grad.count_nonzero() > 0, path


@contract
def test_parameter_groups_hold_each_trainable_parameter_once(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = build(name, 3, options)
    if not hasattr(model, "parameter_groups"):
        assert name.partition(":")[0] in {"unet", "smp", "torchvision", "hf"}
        return
    groups = model.parameter_groups()
    assert all(set(group) == {"params", "lr_multiplier", "decay_multiplier"} for group in groups)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


# Sizes and counts of the papers, without memory: everything is on the meta device


def on_meta(name: str, num_classes: int, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build(name, num_classes, options).eval()


@pytest.mark.parametrize(
    ("name", "places"),
    [
        # 45 rows are 23, 12, 6, 3 and 2 after the poolings.
        ("segnet", [(f"encoder.{n}.conv{n + 1}_3.relu", rows) for n, rows in ((2, 6), (3, 3), (4, 2))]),
        ("deconvnet", [(f"encoder.{n}.conv{n + 1}_3.relu", rows) for n, rows in ((2, 6), (3, 3), (4, 2))]),
        ("segnet-basic", []),
        (
            "bayesian-segnet-basic",
            [
                ("encoder.2.conv3.relu", 6),
                ("encoder.3.conv4.relu", 3),
                ("decoder.0.conv_decode4.bn", 6),
                ("decoder.1.conv_decode3.bn", 12),
            ],
        ),
        ("fcn-basic", []),
        ("fcn8s", [("fc.fc6.relu", 2), ("fc.fc7.relu", 2)]),
        ("deeplab-largefov", [("fc.fc6.relu", 6), ("fc.fc7.relu", 6)]),
        ("unet", [("down.3.1.relu", 22), ("down.4.1.relu", 7)]),
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
            if module.p == 0:
                continue
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


def test_fcn_basic_trains_its_deconvolutions_slower() -> None:
    deconvolutions = 4 * 11 * 11 * 8 * 8
    assert multipliers(on_meta("fcn-basic", 11)) == {(1, 1): 645_824 - deconvolutions, (0.1, 1): deconvolutions}


@pytest.mark.parametrize("seed", range(4))
def test_fcn_basic_learns_by_its_own_recipe(seed: int) -> None:
    """At the full rate the deconvolutions explode within these 15 steps."""
    assert not max(losses_of(seed, {"deconvolution_rate": 1.0})[-3:]) < 100
    losses = losses_of(seed, {})
    assert np.isfinite(losses).all()
    assert max(losses[-3:]) < losses[0]


def losses_of(seed: int, options: dict[str, Any]) -> list[float]:
    frames = Synthetic("train", size=(30, 40), train=60)
    torch.manual_seed(seed)
    model = build("fcn-basic", 11, {"width": 0.5, **options}).train()
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
    return losses


# Layers against slow loops and other routes


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
        ("fcn8s", {"deconvolution": "learned"}, ["deconvolution", "'learnt', 'fixed' or"]),
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
