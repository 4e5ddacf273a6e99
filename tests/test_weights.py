"""Weights: a model's own, and VGG16's in torchvision's layout, against torchvision's own networks."""

import hashlib
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VGG16_Weights, vgg16
from torchvision.models.vgg import cfgs, make_layers

from segbench.errors import ModelError
from segbench.models import vgg, vgg16_weights, weights
from segbench.models.build import build
from segbench.models.imagenet import DOWNLOADS, weights_digest
from segbench.models.input import IMAGENET, RAW_BGR, Input
from segbench.models.layers import pool
from segbench.models.weights import CAFFE, CHECKPOINTS, Checkpoint, Loaded, load_weights

NARROW = {"width": 1 / 8}
BGR_MINUS_MEAN = Input(order="bgr", mean=vgg.IMAGENET_MEAN_BGR)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def on_meta(name: str, **options: Any) -> nn.Module:
    """Shapes alone: enough for all that is refused, and free at full width."""
    with torch.device("meta"):
        return build(name, 2, options)


def photographs(*size: int) -> Tensor:
    return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)


# The model's own state dict


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
        "code": r"it holds a \S*test_weights\.Surprise, which is no tensor",
        "text": "it is no pickle of tensors, or a broken one",
        "bytes": "it is no pickle of tensors, or a broken one",
        "empty": "it is empty or cut short",
        "zip": "RuntimeError: [^.]*zip archive[^.]*",
    }
    for name, reason in reasons.items():
        with pytest.raises(ModelError, match=rf"{name}\.pt is not a file of weights \(.*\): {reason}$"):
            load_weights(build("fcn-basic", 2, NARROW), tmp_path / f"{name}.pt")


# VGG16's encoder


class Encoder(nn.Module):
    """The part that SegNet, FCN, DeepLab and DeconvNet share."""

    def __init__(self, input: Input, **options: Any) -> None:
        super().__init__()
        self.input = input
        self.encoder = vgg.stages(**options)

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.encoder:
            images = pool(stage(images))
        return images


@cache
def torchvisions(batch_norm: bool) -> nn.Sequential:
    """`features` of torchvision's vgg16 or vgg16_bn, with no value left at its start. Only read."""
    network = make_layers(cfgs["D"], batch_norm=batch_norm).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
            for value in (module.bias, module.running_mean):
                nn.init.normal_(value, std=0.1)
    return network


def saved(network: nn.Module, path: Path, **more: Tensor) -> Path:
    torch.save({f"features.{key}": value for key, value in network.state_dict().items()} | more, path)
    return path


@pytest.mark.parametrize(("given", "own"), [(False, False), (True, False), (True, True)])
def test_encoders_compute_what_torchvisions_do(given: bool, own: bool, tmp_path: Path) -> None:
    theirs, ours = torchvisions(given), Encoder(IMAGENET, batch_norm=own)
    loaded = load_weights(ours, saved(theirs, tmp_path / "vgg.pth"))
    images = IMAGENET(photographs(64, 96))
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours.eval()(images), expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
    assert loaded.layout == ("vgg16_bn" if given else "vgg16")
    assert {key for key in loaded.left if not key.endswith("num_batches_tracked")} == set()
    assert set(loaded.filled) | set(loaded.left) == set(ours.state_dict())


def test_segnet_takes_the_encoder_and_leaves_the_rest(tmp_path: Path) -> None:
    theirs, model = torchvisions(batch_norm=False), build("segnet", 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loaded = load_weights(model, saved(theirs, tmp_path / "vgg.pth"))
    after = model.state_dict()
    convolutions = [layer for layer in theirs if isinstance(layer, nn.Conv2d)]
    units = [unit for stage in model.encoder for unit in stage.children() if not isinstance(unit, nn.Dropout)]
    for layer, unit in list(zip(convolutions, units, strict=True))[1:]:
        assert torch.equal(unit.conv.weight, layer.weight)
        assert torch.equal(unit.conv.bias, layer.bias)
    assert len(loaded.filled) == 26
    assert "encoder.4.conv5_3.bn.weight" in loaded.left
    assert all(torch.equal(after[key], before[key]) for key in loaded.left)


# conv1_1 and what it is fed

INPUTS = {
    "SegNet": RAW_BGR,
    "FCN": BGR_MINUS_MEAN,
    "all": Input(order="bgr", scale=1 / 100, mean=(1.0, 0.2, -0.3), std=(0.5, 2.0, 3.0)),
    "order": Input(order="rgb", mean=(123.0, 117.0, 104.0)),
}


@pytest.mark.parametrize("trained_on", [IMAGENET, CAFFE, BGR_MINUS_MEAN], ids=["torchvision", "caffe", "bgr"])
@pytest.mark.parametrize("fed", INPUTS.values(), ids=INPUTS)
def test_conv1_1_gives_the_same_on_the_networks_own_input_but_at_the_border(fed: Input, trained_on: Input) -> None:
    images, weight, bias = photographs(12, 15), torch.randn(5, 3, 3, 3), torch.randn(5)
    expected = F.conv2d(trained_on(images).double(), weight.double(), bias.double(), padding=1)
    found = F.conv2d(fed(images), *vgg16_weights.for_input(weight, bias, trained_on, fed), padding=1).double()
    difference = (found - expected).abs() / expected.std()
    assert difference[..., 1:-1, 1:-1].max() < 1e-4
    if fed is RAW_BGR:
        assert difference[..., 0, :].max() > 0.1


def test_conv1_1_of_one_weight_by_hand() -> None:
    # (p / 255 - 0.485) / 0.229 with p the red value, the third channel of BGR.
    weight = torch.zeros(1, 3, 1, 1)
    weight[0, 0] = 2.0
    found, bias = vgg16_weights.for_input(weight, torch.tensor([1.0]), IMAGENET, RAW_BGR)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.0, 2 / 255 / 0.229]))
    torch.testing.assert_close(bias, torch.tensor([1 - 2 * 0.485 / 0.229]))


@pytest.mark.parametrize("own", [False, True])
def test_stage_2_is_torchvisions_away_from_the_border(own: bool, tmp_path: Path) -> None:
    theirs, ours = torchvisions(batch_norm=True), Encoder(RAW_BGR, batch_norm=own).eval()
    load_weights(ours, saved(theirs, tmp_path / "vgg.pth"))
    images = photographs(32, 40)
    with torch.no_grad():
        found = ours.encoder[1](pool(ours.encoder[0](ours.input(images))))
        expected = theirs[:13](IMAGENET(images))
    # Two 3x3 convolutions, a pooling and two more: the border reaches two, one, then three places in.
    inner = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(found[inner], expected[inner], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_below_normalisation_filters_keep_their_length(batch_norm: bool, tmp_path: Path) -> None:
    theirs = torchvisions(batch_norm)
    path, length = saved(theirs, tmp_path / "vgg.pth"), theirs[0].weight.norm()
    normalised, plain = Encoder(RAW_BGR), Encoder(RAW_BGR, batch_norm=False)
    load_weights(normalised, path)
    torch.testing.assert_close(normalised.encoder[0].conv1_1.conv.weight.norm(), length)
    if not batch_norm:
        load_weights(plain, path)
        assert 50 < length / plain.encoder[0].conv1_1.conv.weight.norm() < 65


# fc6 and fc7


def test_fully_connected_layers_unroll_to_convolutions() -> None:
    fc6, fc7, features = torch.randn(8, 25088), torch.randn(8, 8), torch.randn(2, 512, 7, 7)
    first, second = vgg16_weights.unrolled(fc6, fc7, step=1, stride=1)
    found = F.conv2d(F.conv2d(features, first), second).flatten(1)
    torch.testing.assert_close(found, features.flatten(1) @ fc6.T @ fc7.T, rtol=1e-3, atol=1e-2)


def test_deeplab_decimates_them() -> None:
    fc6, fc7 = torch.randn(8, 25088), torch.randn(8, 8)
    first, second = vgg16_weights.unrolled(fc6, fc7, step=4, stride=3)
    assert (first.shape, second.shape) == ((2, 512, 3, 3), (2, 2, 1, 1))
    for out, channel, row, column in np.ndindex(2, 512, 3, 3):
        assert first[out, channel, row, column] == fc6[4 * out, 49 * channel + 7 * (3 * row) + 3 * column]
    for out, channel in np.ndindex(2, 2):
        assert second[out, channel] == fc7[4 * out, 4 * channel]


def classifier() -> dict[str, Tensor]:
    """fc6 and fc7 whose weights count their inputs and whose biases count their outputs; repeated rows take no room."""
    return {
        "classifier.0.weight": torch.arange(25088.0).expand(4096, 25088),
        "classifier.0.bias": torch.arange(4096.0),
        "classifier.3.weight": torch.arange(4096.0).expand(4096, 4096),
        "classifier.3.bias": -torch.arange(4096.0),
        "classifier.6.bias": torch.zeros(1000),
    }


@pytest.mark.parametrize("given", [False, True])
def test_deeplab_takes_them_from_a_file(given: bool, tmp_path: Path) -> None:
    model = build("deeplab-largefov", 2)
    loaded = load_weights(model, saved(torchvisions(given), tmp_path / "vgg.pth", **classifier()))
    fc6, fc7, channels = model.fc.fc6.conv, model.fc.fc7.conv, torch.arange(1024.0)
    places = torch.tensor([[0.0, 3, 6], [21, 24, 27], [42, 45, 48]]) + 49 * torch.arange(512.0).view(-1, 1, 1)
    assert torch.equal(fc6.weight, places.expand(1024, 512, 3, 3))
    assert torch.equal(fc6.bias, 4 * channels)
    assert torch.equal(fc7.weight.flatten(1), (4 * channels).expand(1024, 1024))
    assert torch.equal(fc7.bias, -4 * channels)
    assert {"fc8.weight", "fc.fc6.bn.weight"} <= set(loaded.left)
    assert model.fc.fc6.bn.weight.eq(1).all()


@pytest.mark.parametrize(
    ("name", "options", "taken"),
    [
        ("segnet", {}, 0),
        ("fcn8s", {}, 4),
        ("fcn8s", {"batch_norm": False}, 4),
        ("deeplab-largefov", {}, 4),
        ("deconvnet", {"input_size": "360x480"}, 0),
        ("deconvnet", {"form": "released", "input_size": "224x224"}, 4),
    ],
)
def test_what_each_network_takes_of_the_classifier(name: str, options: dict[str, Any], taken: int) -> None:
    needed = vgg16_weights.needed(on_meta(name, **options).state_dict(), batch_norm=False)
    assert sum(key.startswith("classifier") for key in needed) == taken
    assert len(needed) == 26 + taken


@pytest.mark.slow
def test_fcn_computes_what_torchvisions_vgg16_does(tmp_path: Path) -> None:
    theirs, model = vgg16(weights=None).eval(), build("fcn8s", 2, {"batch_norm": False}).eval()
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    model.input = IMAGENET
    loaded = load_weights(model, tmp_path / "vgg16.pth")
    features = torch.rand(1, 512, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(model.fc(features).flatten(1), theirs.classifier[:6](features.flatten(1)))
    assert {key.partition(".")[0] for key in loaded.filled} == {"encoder", "fc"}
    assert all("score" in key for key in loaded.left)


# What is refused


def unreachable(*_arguments: Any, **_options: Any) -> None:
    raise URLError("Name or service not known")


def zeros(name: str, batch_norm: bool = False, **more: Tensor) -> dict[str, Tensor]:
    """A checkpoint of shapes alone; repeated values take no room."""
    with torch.device("meta"):
        network = make_layers(cfgs[name], batch_norm=batch_norm)
    shapes = {f"features.{key}": value.shape for key, value in network.state_dict().items()}
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()} | more


def message_of(model: nn.Module, source: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_weights(model, source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vgg.pth"
    torch.save(zeros("D"), path)
    names = "classifier.0.weight, classifier.0.bias, classifier.3.weight, ..."
    assert f"vgg.pth does not fit torchvision's vgg16 as the model needs it: 4 missing ({names})" in message_of(
        on_meta("fcn8s"), path
    )
    state = zeros("D", batch_norm=True)
    del state["features.41.running_var"]
    torch.save(state, path)
    assert "torchvision's vgg16_bn as the model needs it: 1 missing (features.41.running_var)" in message_of(
        on_meta("segnet"), path
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [("A", "24 missing (features.2.weight"), ("B", "missing"), ("E", "6 missing (features.17.weight")],
)
def test_other_vggs_do_not_fit(name: str, words: str, tmp_path: Path) -> None:
    torch.save(zeros(name), tmp_path / "vgg.pth")
    assert words in message_of(on_meta("segnet"), tmp_path / "vgg.pth")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("segnet", NARROW, ["conv1_1 has 64 channels", "the model's has 8", "width 1"]),
        ("fcn8s", {"width": 2}, ["conv1_1 has 64 channels", "the model's has 128", "width 1"]),
        ("segnet-basic", {}, ["no encoder of VGG16"]),
        ("unet", {}, ["no encoder of VGG16"]),
        ("smp:Unet", {"encoder_name": "vgg16", "encoder_weights": None}, ["no encoder of VGG16"]),
    ],
)
@pytest.mark.parametrize("source", ["vgg.pth", "imagenet", "imagenet-caffe"])
def test_networks_that_vgg16_does_not_fit(
    name: str, options: dict[str, Any], words: list[str], source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is downloaded for a network that cannot take it.
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    torch.save(zeros("D"), tmp_path / "vgg.pth")
    place = source if source in CHECKPOINTS else tmp_path / source
    message = message_of(on_meta(name, **options), place)
    assert message.startswith(f"{place} holds VGG16's weights")
    assert all(word in message for word in words), message


@pytest.mark.parametrize("local", ["lrn", "lcn"])
def test_inputs_that_are_not_linear_are_refused(local: Any, tmp_path: Path) -> None:
    torch.save(zeros("D"), tmp_path / "vgg.pth")
    model = on_meta("segnet")
    model.input = Input(local_normalisation=local)
    assert f"local_normalisation {local}; allowed: none" in message_of(model, tmp_path / "vgg.pth")


def test_a_refused_file_leaves_the_model_alone(tmp_path: Path) -> None:
    state = zeros("D", **{"features.28.bias": torch.full((512,), torch.nan)})
    torch.save(state, tmp_path / "vgg.pth")
    model = Encoder(IMAGENET)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert "1 hold values that are not finite (features.28.bias)" in message_of(model, tmp_path / "vgg.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# Named checkpoints


def named(file: Path, trained_on: Input, monkeypatch: pytest.MonkeyPatch, has_classifier: bool = True) -> Path:
    """Let "imagenet" be `file`, moved into torch's cache under a name like torchvision's."""
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(torch.hub, "_hub_dir", str(file.parent / "hub"))
    checkpoint = Checkpoint(f"vgg16-{digits}.pth", trained_on, has_classifier)
    monkeypatch.setattr(weights, "CHECKPOINTS", {"imagenet": checkpoint})
    place = file.parent / "hub" / "checkpoints" / f"vgg16-{digits}.pth"
    place.parent.mkdir(parents=True)
    return file.rename(place)


@pytest.mark.parametrize("trained_on", [IMAGENET, CAFFE], ids=["torchvision", "caffe"])
@pytest.mark.parametrize("by_name", [True, False])
def test_named_checkpoints_come_from_the_cache_and_know_their_input(
    by_name: bool, trained_on: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = torchvisions(batch_norm=False), Encoder(RAW_BGR, batch_norm=False)
    place = named(saved(theirs, tmp_path / "vgg.pth"), trained_on, monkeypatch)
    loaded = load_weights(ours, "imagenet" if by_name else place)
    assert loaded == Loaded("vgg16", tuple(ours.state_dict()))
    images = photographs(9, 9)
    with torch.no_grad():
        found = ours.encoder[0].conv1_1.conv(RAW_BGR(images))[..., 1:-1, 1:-1]
        expected = theirs[0](trained_on(images))[..., 1:-1, 1:-1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.std()))


def test_a_checkpoint_under_a_false_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = named(saved(torchvisions(batch_norm=False), tmp_path / "vgg.pth"), IMAGENET, monkeypatch)
    with place.open("ab") as file:
        file.write(b"more")
    assert f"{place} is not torchvision's file of that name" in message_of(Encoder(IMAGENET), "imagenet")


def test_the_classifier_of_features_alone_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(zeros("D", **classifier()), tmp_path / "vgg.pth")
    named(tmp_path / "vgg.pth", CAFFE, monkeypatch, has_classifier=False)
    assert "4 missing (classifier.0.weight, " in message_of(on_meta("fcn8s"), "imagenet")


def test_without_a_network_the_message_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    message = message_of(on_meta("segnet"), "imagenet")
    assert message.startswith("weights imagenet: https://download.pytorch.org/models/vgg16-397923af.pth cannot be")
    assert "Name or service not known" in message
    assert f"put it at {tmp_path}/hub/checkpoints/vgg16-397923af.pth" in message


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("imagenet", VGG16_Weights.IMAGENET1K_V1), ("imagenet-caffe", VGG16_Weights.IMAGENET1K_FEATURES)],
)
def test_named_checkpoints_are_torchvisions(name: str, theirs: VGG16_Weights) -> None:
    assert theirs.url == f"{DOWNLOADS}/{CHECKPOINTS[name].file}"
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    preset = theirs.transforms(crop_size=8, resize_size=8)
    torch.testing.assert_close(CHECKPOINTS[name].trained_on(image), preset(image), rtol=1e-5, atol=1e-4)


def test_digests_tell_weights_apart_without_torch_or_a_download(tmp_path: Path) -> None:
    code = "import sys, segbench.models.imagenet; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert weights_digest("imagenet") == "vgg16-397923af.pth"
    assert weights_digest("imagenet-caffe") != weights_digest("imagenet")
    (tmp_path / "a.pt").write_bytes(b"abc")
    # The SHA-256 of "abc", from FIPS 180-2.
    assert weights_digest(tmp_path / "a.pt") == "ba7816bf8f01cfea"
