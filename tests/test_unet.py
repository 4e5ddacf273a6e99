"""U-Net in its forms: every layer of the paper's tile, the totals, the released widths and ReLUs, and the sizes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layer_tables import assert_layers_are, layers_run
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segbench.models.unet import UNet

PAPER = """
conv_d0a-b 570x570 640 0.187
conv_d0b-c 568x568 36,928 11.893
pool_d0c-1a 284x284
conv_d1a-b 282x282 73,856 5.863
conv_d1b-c 280x280 147,584 11.561
pool_d1c-2a 140x140
conv_d2a-b 138x138 295,168 5.616
conv_d2b-c 136x136 590,080 10.909
pool_d2c-3a 68x68
conv_d3a-b 66x66 1,180,160 5.139
conv_d3b-c 64x64 2,359,808 9.664
pool_d3c-4a 32x32
conv_d4a-b 30x30 4,719,616 4.247
conv_d4b-c 28x28 9,438,208 7.399
upconv_u3 56x56 2,097,664 1.644
concat_u3 56x56
conv_u3b-c 54x54 4,719,104 13.759
conv_u3c-d 52x52 2,359,808 6.380
upconv_u2 104x104 524,544 1.418
concat_u2 104x104
conv_u2b-c 102x102 1,179,904 12.273
conv_u2c-d 100x100 590,080 5.898
upconv_u1 200x200 131,200 1.311
concat_u1 200x200
conv_u1b-c 198x198 295,040 11.562
conv_u1c-d 196x196 147,584 5.665
upconv_u0 392x392 32,832 1.259
concat_u0 392x392
conv_u0b-c 390x390 73,792 11.214
conv_u0c-d 388x388 36,928 5.550
conv_u0d-score 388x388 130 0.019
"""
FORMS = [{}, {"form": "released"}, {"padding": "same"}, {"form": "released", "padding": "same"}]


def on_meta(num_classes: int, **options: Any) -> UNet:
    with torch.device("meta"):
        return UNet(num_classes, **options).eval()


def grey(model: UNet) -> UNet:
    """With the paper's single input channel: the first of the three that a U-Net here is fed."""
    with torch.device("meta"):
        first = nn.Conv2d(1, 64, 3)
    first.register_forward_pre_hook(lambda _layer, inputs: inputs[0][:, :1])
    model.down[0][0].conv = first
    return model


def empty(height: int, width: int) -> Tensor:
    return torch.empty(1, 3, height, width, device="meta")


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_layer_of_the_papers_tile() -> None:
    """388x388 pixels are predicted from 572x572."""
    assert_layers_are(PAPER, grey(on_meta(2, padding="valid")), empty(388, 388))


def test_the_release_joins_128_upsampled_channels_at_the_top() -> None:
    released = PAPER.replace("upconv_u0 392x392 32,832 1.259", "upconv_u0 392x392 65,664 2.518")
    # 128 and 64 channels are joined: 192 * 64 * 9 weights and 64 biases, used at 390 * 390 places.
    released = released.replace("conv_u0b-c 390x390 73,792 11.214", "conv_u0b-c 390x390 110,656 16.821")
    assert_layers_are(released, grey(on_meta(2, form="released", padding="valid")), empty(388, 388))
    assert count(grey(on_meta(2))) == 31_030_658
    assert count(grey(on_meta(2, form="released"))) == 31_100_354


@pytest.mark.parametrize(
    ("num_classes", "padding", "size", "parameters", "gmac"),
    [
        (11, "valid", (360, 480), 31_032_395, 176.137),
        (11, "same", (368, 480), 31_032_395, 129.939),
        (37, "valid", (360, 480), 31_034_085, 176.436),
        (37, "same", (368, 480), 31_034_085, 130.233),
    ],
)
def test_totals(num_classes: int, padding: Any, size: tuple[int, int], parameters: int, gmac: float) -> None:
    model = on_meta(num_classes, padding=padding)
    assert count(model) == parameters
    assert count(on_meta(num_classes, padding=padding, form="released")) == parameters + 31_100_354 - 31_030_658
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(empty(*size))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.0006)


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("size", [(45, 60), (97, 131), (224, 224), (361, 481)])
def test_any_size_fits_and_comes_out(options: dict[str, Any], size: tuple[int, int]) -> None:
    layers, output = layers_run(on_meta(11, **options), empty(*size))
    fed = {layer.path: layer.fed for layer in layers}
    if options.get("padding", "valid") == "valid":
        # The least 16k + 60 of which 184 pixels can be lost and the image is left.
        tile = tuple(next(s for s in range(188, 900, 16) if s - 184 >= side) for side in size)
        assert fed["down.0.0.conv"] == tile
        # Two convolutions take 4 pixels and a pooling half of what is left, four times: (side - 60) / 16.
        assert fed["down.4.0.conv"] == tuple((side - 60) // 16 for side in tile)
    else:
        expected = size
        for level in range(5):
            assert fed[f"down.{level}.0.conv"] == expected
            assert level == 4 or fed[f"up.{level}.0.conv"] == expected
            expected = tuple(-(-side // 2) for side in expected)
    assert output == size


@pytest.mark.parametrize(("form", "rectified"), [("paper", False), ("released", True)])
def test_only_the_release_has_a_relu_after_each_up_convolution(form: Any, rectified: bool) -> None:
    torch.manual_seed(0)
    model = UNet(2, width=1 / 16, form=form).eval()
    seen: list[tuple[bool, bool]] = []

    def compare(level: int, joined: Tensor) -> None:
        above = model.upconvolutions[level].out_channels
        seen.append((bool((joined[:, :above] < 0).any()), bool((joined[:, above:] < 0).any())))

    for level, convolutions in enumerate(model.up):
        convolutions.register_forward_hook(lambda _m, inputs, _out, level=level: compare(level, inputs[0]))
    model(torch.rand(1, 3, 45, 60))
    assert seen == [(not rectified, False)] * 4


@pytest.mark.parametrize("options", FORMS)
def test_every_weight_learns(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = UNet(3, width=1 / 8, **options).train()
    F.cross_entropy(model(torch.rand(2, 3, 33, 40)), torch.randint(0, 3, (2, 33, 40))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.dim() < 2 or parameter.grad.count_nonzero() > 0, name


def test_deviations_at_the_start_are_the_papers() -> None:
    torch.manual_seed(0)
    for path, module in UNet(11, width=1 / 4, form="released").named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            incoming = module.out_channels * 4 if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
            expected = (2 / incoming) ** 0.5
            error = expected / (2 * module.weight.numel()) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, abs=5 * error), path
            assert module.bias is not None and not module.bias.any()
