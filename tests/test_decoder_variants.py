"""The eight rows of the SegNet paper's Table 1 and Bayesian SegNet: what each adds, and where."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.models import MODELS
from segbench.models.bilinear_interpolation import BilinearInterpolation
from segbench.models.build import build
from segbench.models.fcn_basic import FCNBasic
from segbench.models.segnet import SegNet
from segbench.models.segnet_basic import SegNetBasic

NARROW = {"width": 1 / 8}
# Millions of parameters that the paper prints; it sums rounded parts, so within 2.5 percent.
TABLE_1 = {
    "bilinear-interpolation": 0.625,
    "segnet-basic": 1.425,
    "segnet-basic-encoder-addition": 1.425,
    "segnet-basic-single-channel-decoder": 0.625,
    "fcn-basic": 0.65,
    "fcn-basic-no-addition": 0.65,
    "fcn-basic-no-dim-reduction": 1.625,
    "fcn-basic-no-addition-no-dim-reduction": 1.625,
}
IMAGES = torch.rand(2, 3, 45, 60, generator=torch.Generator().manual_seed(0)) * 255


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("name", "millions"), TABLE_1.items())
def test_table_1_is_whole_and_of_the_printed_size(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = build(name, 11)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.025)
    assert model.input.local_normalisation == "lrn"
    assert MODELS.entry(name).source.endswith("section 3.1")


@pytest.mark.parametrize("name", TABLE_1)
def test_the_eight_share_one_encoder(name: str) -> None:
    """The same layers: one's encoder can be put into the other, and then puts out the same."""
    reference, model = build("segnet-basic", 3, NARROW).eval(), build(name, 3, NARROW).eval()
    model.encoder.load_state_dict(reference.encoder.state_dict())
    (expected,), (found,) = (outputs_of(m, ["encoder.3"]) for m in (reference, model))
    assert torch.equal(expected, found)


def outputs_of(model: nn.Module, paths: list[str], images: Tensor = IMAGES) -> list[Tensor]:
    """What submodules put out, in the order of `paths`."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, output, path=path: found.update({path: output.clone()})
        )
        for path in paths
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return [found[path] for path in paths]


ENCODERS, DECODERS = [f"encoder.{n}" for n in range(4)], [f"decoder.{n}" for n in range(4)]


@pytest.mark.parametrize("addition", ["none", "pooled", "convolved"])
def test_encoder_addition_adds_the_map_of_the_same_size(addition: str) -> None:
    """The sum is rebuilt from hooks: every decoder's output, plus its encoder's map, is what the next unpooling got."""
    model = SegNetBasic(3, width=1 / 8, addition=addition).eval()  # type: ignore[arg-type]
    seen: list[Tensor] = []
    for layer in (*list(model.decoder)[1:], model.classifier):
        layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    found = outputs_of(model, ENCODERS + DECODERS)
    convolved, decoded = found[:4], found[4:]
    pooled = [F.max_pool2d(value, 2, ceil_mode=True) for value in convolved]
    added = {
        "none": [torch.zeros_like(value) for value in decoded],
        "convolved": convolved[::-1],
        "pooled": [*pooled[2::-1], torch.zeros_like(decoded[3])],
    }[addition]
    for number, (decoder, extra, unpooled) in enumerate(zip(decoded, added, seen, strict=True)):
        total = decoder + extra
        if number < 3:  # what is unpooled is still there, each value once, and zeros beside it
            torch.testing.assert_close(unpooled.sum(), total.sum(), rtol=1e-4, atol=1e-3)
            assert int((unpooled != 0).sum()) == int((total != 0).sum())
        else:
            torch.testing.assert_close(unpooled, total)


def test_a_single_channel_decoder_keeps_maps_apart() -> None:
    model = SegNetBasic(3, width=1 / 8, single_channel=True).eval()
    before = outputs_of(model, DECODERS)[-1]
    with torch.no_grad():  # the second filter of each decoder
        for decoder in model.decoder:
            next(iter(decoder.children())).conv.weight[1].mul_(-3)
    after = outputs_of(model, DECODERS)[-1]
    changed = [not torch.equal(before[:, channel], after[:, channel]) for channel in range(8)]
    assert changed == [False, True] + [False] * 6


def test_bilinear_interpolation_is_four_doublings_of_the_scores() -> None:
    model = BilinearInterpolation(3, width=1 / 8).eval()
    (coarse,) = outputs_of(model, ["classifier"])
    assert coarse.shape[-2:] == (3, 4)
    expected = coarse
    for rows, columns in ((6, 8), (12, 15), (23, 30), (45, 60)):
        expected = F.interpolate(expected, scale_factor=2, mode="bilinear")[..., :rows, :columns]
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), expected)


def test_bilinear_interpolation_of_features_is_the_same_where_it_must_be() -> None:
    """A 1x1 convolution without bias and an interpolation are both linear, so that they may change places."""
    of_classes = BilinearInterpolation(3, width=1 / 8).eval()
    of_features = BilinearInterpolation(3, width=1 / 8, upsampled="features").eval()
    of_features.load_state_dict(of_classes.state_dict())
    assert outputs_of(of_features, ["classifier"])[0].shape[-2:] == (45, 60)
    with torch.no_grad():
        torch.testing.assert_close(of_features(IMAGES), of_classes(IMAGES), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reduction", [True, False])
def test_fcn_basic_without_addition_sees_pool4_alone(reduction: bool) -> None:
    """A change that pool4 does not see: none of the output changes without addition, and some of it with."""
    for addition in (False, True):
        model = FCNBasic(3, width=1 / 8, addition=addition, reduction=reduction).eval()
        with torch.no_grad():
            before = model(IMAGES)
            model.encoder[3].register_forward_hook(lambda _module, _inputs, output: torch.ones_like(output))
            constant = model(IMAGES), model(255 - IMAGES)
        assert torch.equal(*constant) == (not addition)
        assert not torch.equal(before, constant[0])


def test_fcn_basic_without_addition_has_no_layer_that_nothing_uses() -> None:
    model = FCNBasic(3, width=1 / 8, addition=False)
    assert [sum(p.numel() for p in reduction.parameters()) for reduction in model.reductions] == [0, 0, 0, 8 * 3]


def test_no_dim_reduction_classifies_at_the_size_of_the_image() -> None:
    model = FCNBasic(3, width=1 / 8, reduction=False).eval()
    (deconvolved, scores) = outputs_of(model, ["deconvolutions.0", "classifier"])
    assert deconvolved.shape == (2, 8, 46, 60)
    assert scores.shape == (2, 3, 45, 60)


def test_no_dim_reduction_adds_pooled_maps_as_they_are() -> None:
    model = FCNBasic(3, width=1 / 8, reduction=False).eval()
    seen: list[Tensor] = []
    for level in (2, 1, 0):
        model.deconvolutions[level].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    found = outputs_of(model, ENCODERS + [f"deconvolutions.{level}" for level in (3, 2, 1)])
    pooled = [F.max_pool2d(value, 2, ceil_mode=True) for value in found[:3]]
    for got, above, beside in zip(seen, found[4:], pooled[::-1], strict=True):
        torch.testing.assert_close(got, above[..., : beside.shape[2], : beside.shape[3]] + beside)


@pytest.mark.parametrize(("gain", "factor"), [("one", 1.0), ("fcn", 4.0)])
def test_gain_of_the_deconvolutions(gain: str, factor: float) -> None:
    model = FCNBasic(3, width=1 / 8, gain=gain)  # type: ignore[arg-type]
    for deconvolution in model.deconvolutions:
        found = deconvolution(torch.ones(1, 3, 8, 8))[..., 4:-4, 4:-4]
        torch.testing.assert_close(found, factor * torch.ones_like(found))


@pytest.mark.parametrize(("reduction", "normalised"), [(True, [1, 2, 3]), (False, [0, 1, 2, 3])])
def test_a_decoder_may_be_normalised_but_not_its_logits(reduction: bool, normalised: list[int]) -> None:
    model = FCNBasic(3, width=1 / 8, reduction=reduction, decoder_batch_norm=True)
    found = [level for level, norm in enumerate(model.norms) if isinstance(norm, nn.BatchNorm2d)]
    assert found == normalised
    assert not any(isinstance(norm, nn.BatchNorm2d) for norm in FCNBasic(3, width=1 / 8).norms)


# Bayesian SegNet


def dropped_after(model: nn.Module) -> list[tuple[str, int]]:
    """Each dropout by the layer that ran before it and the rows that it sees, which tell pooling."""
    ran, seen = [""], []
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda _module, inputs, _output: seen.append((ran[-1], inputs[0].shape[2])))
        elif not list(module.children()):
            name = path.split(".")[-2:][0]
            module.register_forward_hook(lambda _module, _inputs, _output, name=name: ran.append(name))
    model(torch.rand(2, 3, 64, 64))
    return seen


def test_bayesian_segnet_drops_at_six_places() -> None:
    assert dropped_after(build("bayesian-segnet", 2, NARROW)) == [
        ("conv3_3", 8),
        ("conv4_3", 4),
        ("conv5_3", 2),
        ("conv5_1_D", 4),
        ("conv4_1_D", 8),
        ("conv3_1_D", 16),
    ]


def test_the_pascal_file_drops_at_ten_places() -> None:
    assert dropped_after(SegNet(2, width=1 / 8, places_of_dropout="pascal")) == [
        ("conv1_2", 64),
        ("conv2_2", 32),
        ("conv3_3", 16),
        ("conv4_3", 8),
        ("conv5_3", 4),
        ("conv5_3", 2),
        ("conv5_1_D", 4),
        ("conv4_1_D", 8),
        ("conv3_1_D", 16),
        ("conv2_1_D", 32),
    ]


def test_names_that_differ_in_inference_alone_are_one_network() -> None:
    for first, second in (("segnet", "bayesian-segnet"), ("deeplab-largefov", "deeplab-largefov-densecrf")):
        assert MODELS.identity(first, {}) == MODELS.identity(second, {})
        assert MODELS.entry(first).inference is None
    as_shipped = {"dropout": 0.5, "bias": True}
    assert MODELS.identity("bayesian-segnet-basic", {}) == MODELS.identity("segnet-basic", as_shipped)
    assert MODELS.identity("fcn-basic", {}) != MODELS.identity("fcn-basic-no-addition", {})
    assert MODELS.identity("smp:Unet", {}) == ("smp:Unet", {})


@pytest.mark.parametrize("decayed", [True, False])
@pytest.mark.parametrize("name", ["segnet", *TABLE_1])
def test_decay_of_the_shifts_is_an_option(name: str, decayed: bool) -> None:
    with torch.device("meta"):
        model = build(name, 2, {**NARROW, "shift_decay": decayed})
    shifts = {id(m.bias) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    groups = [group for group in model.parameter_groups() if shifts & {id(p) for p in group["params"]}]
    assert {group["decay_multiplier"] for group in groups} == {float(decayed)}


def test_a_logit_for_void() -> None:
    model = SegNet(5, width=1 / 8, void_logit=True)
    assert model(torch.rand(2, 3, 45, 60)).shape == (2, 6, 45, 60)
