"""FCN-32s, 16s and 8s: every layer at the reference's sizes, the totals, where scores lie, and what is trained."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layer_tables import assert_layers_are, caffe_pooled, layers_run
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segbench.models.fcn import FCN, FCN8s, FCN16s, FCN32s

TRUNK = """
conv1_1 558x678 1,792 0.654
conv1_2 558x678 36,928 13.947
pool1 279x339
conv2_1 279x339 73,856 6.973
conv2_2 279x339 147,584 13.947
pool2 140x170
conv3_1 140x170 295,168 7.019
conv3_2 140x170 590,080 14.038
conv3_3 140x170 590,080 14.038
pool3 70x85
conv4_1 70x85 1,180,160 7.019
conv4_2 70x85 2,359,808 14.038
conv4_3 70x85 2,359,808 14.038
pool4 35x43
conv5_1 35x43 2,359,808 3.551
conv5_2 35x43 2,359,808 3.551
conv5_3 35x43 2,359,808 3.551
pool5 18x22
fc6 12x16 102,764,544 19.730
fc7 12x16 16,781,312 3.221
score_fr 12x16 45,067 0.009
"""
TAILS = {
    # 64 * 64 * 11 * 11 weights, each used at 12 * 16 places; then 32 * 32 * 11 * 11 at 26 * 34.
    FCN32s: """
upscore 416x544 495,616 0.095
crop 360x480
""",
    FCN16s: """
upscore2 26x34 1,936 0.000
score_pool4 35x43 5,643 0.008
upscore16 432x560 123,904 0.110
crop 360x480
""",
    FCN8s: """
upscore2 26x34 1,936 0.000
score_pool4 35x43 5,643 0.008
upscore_pool4 54x70 1,936 0.002
score_pool3 70x85 2,827 0.017
upscore8 440x568 30,976 0.117
crop 360x480
""",
}
NETWORKS = [FCN32s, FCN16s, FCN8s]
# Scale and shift of 13 convolutions with 4,224 channels together, and of fc6 and fc7 with 8,192.
NORMALISATION = 2 * (4_224 + 8_192)


def on_meta(network: type[FCN], num_classes: int, **options: Any) -> FCN:
    with torch.device("meta"):
        return network(num_classes, **options).eval()


def empty(height: int, width: int) -> Tensor:
    return torch.empty(1, 3, height, width, device="meta")


def stored_and_trained(model: nn.Module) -> tuple[int, int]:
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def trained(model: nn.Module) -> set[str]:
    """The deconvolutions' parameters that are trained."""
    return {name for name, p in model.named_parameters() if name.startswith("upscore") and p.requires_grad}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_layer(network: type[FCN]) -> None:
    model = on_meta(network, 11, batch_norm=False)
    assert_layers_are(TRUNK.strip() + TAILS[network], model, empty(360, 480))


@pytest.mark.parametrize(
    ("network", "num_classes", "stored", "trained_if_fixed", "gmac"),
    [
        (FCN32s, 11, 134_801_227, 134_305_611, 139.416),
        (FCN16s, 11, 134_437_094, 134_311_254, 139.440),
        (FCN8s, 11, 134_348_929, 134_314_081, 139.466),
        (FCN32s, 37, 140_019_557, 134_412_133, 140.418),
        (FCN16s, 37, 135_854_874, 134_431_114, 140.614),
        (FCN8s, 37, 134_834_895, 134_440_623, 140.775),
        (FCN8s, 21, 134_489_759, 134_362_751, 139.812),
    ],
)
def test_totals(network: type[FCN], num_classes: int, stored: int, trained_if_fixed: int, gmac: float) -> None:
    for batch_norm, more in ((False, 0), (True, NORMALISATION)):
        learnt = on_meta(network, num_classes, batch_norm=batch_norm)
        fixed = on_meta(network, num_classes, batch_norm=batch_norm, deconvolution="fixed")
        assert stored_and_trained(learnt) == (stored + more, stored + more)
        assert stored_and_trained(fixed) == (stored + more, trained_if_fixed + more)
        assert learnt.state_dict().keys() == fixed.state_dict().keys()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        learnt(empty(360, 480))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.0006)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(45, 60), (97, 131), (224, 224), (361, 481)])
def test_sizes_follow_caffes_rule_and_end_at_the_images(network: type[FCN], size: tuple[int, int]) -> None:
    layers, output = layers_run(on_meta(network, 11), empty(*size))
    fed = {layer.path: layer.fed for layer in layers}
    expected = (size[0] + 198, size[1] + 198)
    for stage in range(1, 5):
        expected = tuple(caffe_pooled(side, 2, 2, 0) for side in expected)
        assert fed[f"encoder.{stage}.conv{stage + 1}_1.conv"] == expected
    assert fed["fc.fc6.conv"] == tuple(caffe_pooled(side, 2, 2, 0) for side in expected)
    assert output == size


class Ramp(nn.Module):
    """In place of a score layer: two maps that hold the row and the column of each cell in the image."""

    def __init__(self, step: float, start: float) -> None:
        super().__init__()
        self.step, self.start = step, start

    def forward(self, features: Tensor) -> Tensor:
        rows, columns = (self.start + self.step * torch.arange(size) for size in features.shape[-2:])
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


@pytest.mark.parametrize(
    ("network", "score", "step", "start"),
    # conv1_1 pads by 100 and takes 1, so its row 0 is the image's -99. A cell of pool3 is 8 rows and lies in their
    # middle, at -99 + 3.5; one of fc6 is 32 rows, and 3 cells further in.
    [
        (FCN32s, "score_fr", 32, -83.5 + 3 * 32),
        (FCN16s, "score_fr", 32, -83.5 + 3 * 32),
        (FCN16s, "score_pool4", 16, -91.5),
        (FCN8s, "score_fr", 32, -83.5 + 3 * 32),
        (FCN8s, "score_pool4", 16, -91.5),
        (FCN8s, "score_pool3", 8, -95.5),
    ],
)
def test_scores_stand_where_their_cells_are(network: type[FCN], score: str, step: int, start: float) -> None:
    model = network(2, width=1 / 64).eval()
    setattr(model, score, Ramp(step, start))  # the other scores start from zero
    with torch.no_grad():
        logits = model(torch.rand(1, 3, 97, 131))
    inner = slice(32, -32)  # beyond, the deconvolutions of fc7's scores see the border
    rows, columns = torch.meshgrid(torch.arange(97.0), torch.arange(131.0), indexing="ij")
    torch.testing.assert_close(logits[0, 0, inner, inner], rows[inner, inner])
    torch.testing.assert_close(logits[0, 1, inner, inner], columns[inner, inner])


def test_the_release_of_2015_trains_all_but_the_last_and_the_first_with_a_bias() -> None:
    model = on_meta(FCN8s, 21, batch_norm=False, deconvolution="released-2015")
    assert trained(model) == {"upscore2.weight", "upscore2.bias", "upscore_pool4.weight"}
    assert stored_and_trained(model) == (134_489_759 + 21, 134_489_759 + 21 - 16 * 16 * 21 * 21)
    assert trained(on_meta(FCN16s, 2, deconvolution="released-2015")) == {"upscore2.weight", "upscore2.bias"}
    assert trained(on_meta(FCN32s, 2, deconvolution="released-2015")) == set()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("deconvolution", ["learnt", "fixed", "released-2015"])
def test_scores_start_at_zero_and_deconvolutions_bilinear(network: type[FCN], deconvolution: Any) -> None:
    names = set()
    for name, module in network(3, width=1 / 64, deconvolution=deconvolution).named_children():
        if name.startswith("score"):
            assert not module.weight.any() and not module.bias.any()
        if name.startswith("upscore"):
            names.add(name)
            stride = module.stride[0]
            line = torch.tensor([min(place + 0.5, 2 * stride - place - 0.5) / stride for place in range(2 * stride)])
            expected = torch.einsum("ab,h,w->abhw", torch.eye(3), line, line)
            torch.testing.assert_close(module.weight.detach(), expected)
            assert module.bias is None or not module.bias.any()
    assert names == {row.split()[0] for row in TAILS[network].split("\n") if row.startswith("upscore")}


def test_8s_at_once_scales_poolings_before_they_are_scored() -> None:
    torch.manual_seed(0)
    plain, at_once = FCN8s(2, width=1 / 64).eval(), FCN8s(2, width=1 / 64, at_once=True).eval()
    for name in ("score_pool4", "score_pool3", "score_fr"):
        nn.init.normal_(getattr(plain, name).weight)
        nn.init.normal_(getattr(plain, name).bias)
    at_once.load_state_dict(plain.state_dict())
    with torch.no_grad():
        plain.score_pool4.weight.mul_(0.01)
        plain.score_pool3.weight.mul_(0.0001)
        images = torch.rand(1, 3, 40, 33)
        torch.testing.assert_close(at_once(images), plain(images))
        plain.score_pool3.weight.mul_(100)
        assert not torch.allclose(at_once(images), plain(images))


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (FCN32s, {}),
        (FCN16s, {}),
        (FCN8s, {}),
        (FCN8s, {"batch_norm": False}),
        (FCN8s, {"at_once": True}),
        (FCN8s, {"deconvolution": "fixed"}),
        (FCN16s, {"deconvolution": "released-2015"}),
    ],
)
def test_what_is_trained_gets_a_gradient(network: type[FCN], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = network(3, width=1 / 16, **options).train()
    with torch.no_grad():  # away from score layers of zero, which pass nothing down in the first step
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    F.cross_entropy(model(torch.rand(2, 3, 33, 40)), torch.randint(0, 3, (2, 33, 40))).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.dim() < 2 or parameter.grad.count_nonzero() > 0, name


def multipliers(model: FCN) -> dict[tuple[float, float], int]:
    """(learning rate, decay) -> how many numbers are trained so."""
    return {
        (group["lr_multiplier"], group["decay_multiplier"]): sum(p.numel() for p in group["params"])
        for group in model.parameter_groups()
    }


@pytest.mark.parametrize(("network", "biases"), [(FCN32s, 12_427), (FCN16s, 12_438), (FCN8s, 12_449)])
def test_multipliers(network: type[FCN], biases: int) -> None:
    shifts = NORMALISATION // 2
    total = sum(parameter.numel() for parameter in on_meta(network, 11).parameters())
    assert multipliers(on_meta(network, 11)) == {(1, 1): total - biases - shifts, (2, 0): biases, (1, 0): shifts}
    assert multipliers(on_meta(network, 11, shift_decay=True)) == {(1, 1): total - biases, (2, 0): biases}


def test_the_bias_of_2015s_first_deconvolution_is_one_of_the_biases() -> None:
    assert multipliers(on_meta(FCN8s, 11, deconvolution="released-2015"))[2, 0] == 12_449 + 11
