"""Other libraries' networks and code from outside: how outputs become logits, what may be asked, what is refused."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from torch import Tensor, nn

from segbench.errors import ModelError
from segbench.models.build import build
from segbench.models.code import source_digest
from segbench.models.external import External, logits_of
from segbench.models.input import IMAGENET, Input

# How outputs become logits

LOGITS, OTHER = torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, 4)


@pytest.mark.parametrize(
    "found",
    [
        LOGITS,
        (LOGITS,),
        [None, LOGITS],
        {"out": LOGITS, "aux": OTHER},
        {"loss": OTHER, "logits": LOGITS},
        {"prediction": LOGITS, "names": ["road"]},
    ],
)
def test_logits_are_found(found: object) -> None:
    assert logits_of(found) is LOGITS


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((LOGITS, OTHER), "a tuple of 2 (Tensor, Tensor)"),
        ({"main": LOGITS, "aux": OTHER}, "a tuple of 2"),
        ([], "a list of 0"),
        (LOGITS[0], "a tensor of shape [2, 3, 4]"),
        ({"out": None}, "a NoneType"),
        ("logits", "a str"),
    ],
)
def test_outputs_that_could_mean_anything_are_refused(found: object, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        logits_of(found)
    assert words in str(caught.value) and "\n" not in str(caught.value)


class Sampled(nn.Module):
    """Every second pixel of the first channel, from the corner: half the size, and easy to work by hand."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.fed = images
        return {"logits": images[:, :1, ::2, ::2]}


def test_small_logits_are_resized_between_pixel_centres() -> None:
    """Two columns 0 and 4 have their centres at 1 and 3 of four: a quarter of the way lies 1, three quarters 3."""
    images = torch.zeros(1, 3, 4, 4)
    images[..., 2] = 4
    expected = torch.tensor([0.0, 1.0, 3.0, 4.0]).expand(1, 1, 4, 4)
    assert torch.equal(External(Sampled(), Input())(images), expected)


def test_logits_of_a_padded_image_are_resized_before_they_are_cropped() -> None:
    network = Sampled()
    images = torch.zeros(1, 3, 3, 3)
    images[..., 2] = 4
    logits = External(network, Input(), multiple=4)(images)
    assert torch.equal(network.fed, F.pad(images, (0, 1, 0, 1)))
    # Rows below the image were padded with zeros: the third of them is a quarter of the way to those.
    row = torch.tensor([0.0, 1.0, 3.0])
    assert torch.equal(logits, torch.stack([row, row, row])[None, None])


def test_logits_of_the_images_size_are_left_alone() -> None:
    images = torch.rand(2, 3, 5, 7)
    assert torch.equal(External(nn.Identity(), Input())(images), images)


def test_encoders_come_from_a_library_and_not_from_somebodys_file() -> None:
    with pytest.raises(ModelError, match=r'"tu-hf-hub:owner/net" is not an encoder'):
        build("smp:Unet", 2, {"encoder_name": "tu-hf-hub:owner/net", "encoder_weights": True})


# Transformers

TINY = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}


@pytest.fixture
def transformers() -> ModuleType:
    return pytest.importorskip("transformers")


@pytest.fixture
def folder(transformers: ModuleType, tmp_path: Path) -> str:
    """A SegFormer of five classes, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    path = tmp_path / "segformer"
    build("hf:segformer", 5, TINY).network.save_pretrained(path)
    return str(path)


def edited(folder: str, **changes: Any) -> None:
    config = Path(folder, "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


def test_a_type_of_transformers_gives_logits_of_the_images_size(transformers: ModuleType) -> None:
    model = build("hf:segformer", 5, TINY).eval()
    assert model.input == IMAGENET
    images = torch.rand(2, 3, 45, 60)
    with torch.no_grad():
        quarter = model.network(images).logits
        assert quarter.shape == (2, 5, 12, 15)
        expected = F.interpolate(quarter, size=(45, 60), mode="bilinear", align_corners=False)
        assert torch.equal(model(images), expected)


def test_heads_that_give_no_logits_are_left_off(transformers: ModuleType) -> None:
    with torch.device("meta"):
        assert build("hf:upernet", 5).network.auxiliary_head is None


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("hf:segformr", {}, ['did you mean "segformer"', "mobilevit"]),
        ("hf:segformer", {"hiden_sizes": [8]}, ["hiden_sizes", 'did you mean "hidden_sizes"']),
        ("hf:segformer", {"num_channels": 1}, ["num_channels is not an option"]),
        ("hf:segformer", {"num_labels": 2}, ["num_labels is not an option"]),
        ("hf:segformer", {"attn_implementation": "a/b"}, ["attn_implementation is not an option"]),
        ("hf:segformer", {"depths": "deep"}, ["'depths'", "expected a list"]),
        ("hf:segformer", {"revision": "main"}, ["revision is not an option"]),
        ("hf:./nowhere", {}, ["no folder ./nowhere"]),
    ],
)
def test_what_transformers_does_not_have_is_one_line(
    transformers: ModuleType, name: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        build(name, 5, options)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), caught.value


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'segbench\[hf\]'"):
        build("hf:segformer", 5)


def test_a_folder_gives_its_weights_back(folder: str) -> None:
    torch.manual_seed(0)
    first = build("hf:segformer", 5, TINY).state_dict()
    torch.manual_seed(1)
    again = build(f"hf:{folder}", 5).state_dict()
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)


def test_other_classes_make_the_last_layer_anew_and_nothing_else(folder: str) -> None:
    five, seven = (build(f"hf:{folder}", classes).state_dict() for classes in (5, 7))
    changed = {key for key in five if five[key].shape != seven[key].shape or not torch.equal(five[key], seven[key])}
    assert changed == {f"network.decode_head.classifier.{kind}" for kind in ("weight", "bias")}
    torch.manual_seed(3)
    first = build(f"hf:{folder}", 7).state_dict()
    torch.manual_seed(3)
    assert all(torch.equal(value, first[key]) for key, value in build(f"hf:{folder}", 7).state_dict().items())


def test_options_of_a_folder_do_not_reshape_its_weights(folder: str) -> None:
    with pytest.raises(ModelError, match=r"decode_head\S+ is \(8.* in its file and \(16.* by its options"):
        build(f"hf:{folder}", 7, {"decoder_hidden_size": 16})
    assert build(f"hf:{folder}", 7, {"classifier_dropout_prob": 0.5}).network.decode_head.dropout.p == 0.5


def test_a_folder_without_any_of_the_weights_is_refused(folder: str) -> None:
    from safetensors.torch import save_file

    save_file({"elsewhere": torch.zeros(1)}, Path(folder, "model.safetensors"), {"format": "pt"})
    with pytest.raises(ModelError, match="holds none of the weights"):
        build(f"hf:{folder}", 5)


def test_a_folder_of_another_task_or_a_wrong_configuration_is_refused(folder: str) -> None:
    edited(folder, depths="deep")
    with pytest.raises(ModelError, match=r"'depths'.*expected a list"):
        build(f"hf:{folder}", 5)
    Path(folder, "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="is a bert; allowed: beit"):
        build(f"hf:{folder}", 5)


def test_a_folder_is_counted_without_being_read(folder: str) -> None:
    with torch.device("meta"):
        model = build(f"hf:{folder}", 7)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("model_type", ["segformer", "theirs"])
def test_code_in_a_folder_is_never_run(folder: str, tmp_path: Path, model_type: str) -> None:
    Path(folder, "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    classes = {"AutoConfig": "theirs.Config", "AutoModelForSemanticSegmentation": "theirs.Net"}
    edited(folder, model_type=model_type, auto_map=classes)
    if model_type == "theirs":
        with pytest.raises(ModelError, match="cannot be built"):
            build(f"hf:{folder}", 5)
    else:
        build(f"hf:{folder}", 5)
    assert not (tmp_path / "ran").exists()


def test_a_kernel_that_a_folder_names_is_not_fetched(folder: str) -> None:
    edited(folder, attn_implementation="somebody/kernel")
    assert build(f"hf:{folder}", 5).network.config._attn_implementation in {"sdpa", "eager"}


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("MobileViTImageProcessor", Input(order="bgr", scale=1 / 255)),
        ("BeitImageProcessor", Input(scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))),
    ],
)
def test_loaded_weights_are_fed_as_their_image_processor_says(
    transformers: ModuleType, folder: str, processor: str, expected: Input
) -> None:
    assert build(f"hf:{folder}", 5).input == IMAGENET
    getattr(transformers, processor)().save_pretrained(folder)
    assert build(f"hf:{folder}", 5).input == expected


# Code from outside

SOURCE = """
import torch
from torch import nn
from segbench.models.input import RAW_BGR

SCALE = torch.full((1,), 2.0)

class Net(nn.Module):
    def __init__(self, num_classes, *, channels: "a forward reference" = 4):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.score = nn.Conv2d(channels, num_classes, 1)

    def forward(self, images):
        return self.score(self.first(images)) * SCALE.to(images.device)

class Whole(nn.Conv2d):
    input = RAW_BGR
    def __init__(self, num_classes):
        super().__init__(3, num_classes, 1)

def short(classes, channels=4): return Net(classes, channels=channels)
def counted(n_classes): return Net(n_classes)
def anything(**options): return Net(options["num_classes"], channels=options.get("width", 4))
def without(depth, width=3): return Net(2)
def not_a_model(num_classes): return num_classes
def sulking(num_classes): raise ZeroDivisionError("I will not\\nand a second line")
NUMBER = 3
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a package of nets; what is imported from it is forgotten afterwards."""
    package = tmp_path / "outside"
    package.mkdir()
    (package / "__init__.py").write_text("from outside.nets import Net\n")
    (package / "nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for name in ("outside", "outside.nets", "outside.broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return package


@pytest.mark.parametrize("factory", ["nets:Net", "nets:short", "nets:counted", "nets:anything"])
def test_a_factory_gets_the_number_of_classes_under_its_own_name(outside: Path, factory: str) -> None:
    model = build(f"outside.{factory}", 6)
    assert isinstance(model, External) and model.input == IMAGENET
    assert model(torch.rand(2, 3, 9, 11)).shape == (2, 6, 9, 11)


@pytest.mark.parametrize("factory", ["nets:Net", "nets:short"])
def test_options_reach_the_factory(outside: Path, factory: str) -> None:
    assert build(f"outside.{factory}", 6, {"channels": 7}).network.first.out_channels == 7
    assert build("outside.nets:anything", 6, {"width": 9}).network.first.out_channels == 9


def test_a_model_that_declares_its_input_is_used_as_it_is(outside: Path) -> None:
    model = build("outside.nets:Whole", 6)
    assert type(model).__name__ == "Whole" and model.input == Input(order="bgr")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("outsid.nets:Net", {}, ["no module outsid ", "installed packages"]),
        ("outside.net:Net", {}, ["no module outside.net "]),
        ("outside.nets:Nett", {}, ["nothing of that name", 'did you mean "Net"']),
        ("outside.nets:NUMBER", {}, ["a int", "allowed: a class or a function"]),
        ("outside.nets:Net", {"chanels": 3}, ["chanels is not an option", 'did you mean "channels"']),
        ("outside.nets:Net", {"num_classes": 3}, ["num_classes is not an option"]),
        ("outside.nets:anything", {"num_classes": 3}, ["num_classes is not an option"]),
        ("outside.nets:without", {}, ["num_classes, classes, n_classes", "it takes depth, width"]),
        ("outside.nets:not_a_model", {}, ["made a int", "torch.nn.Module"]),
        ("outside.nets:sulking", {}, ["cannot be built: ZeroDivisionError: I will not"]),
    ],
)
def test_mistakes_with_code_are_one_line(outside: Path, name: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        build(name, 6, options)
    message = str(caught.value)
    assert message.startswith(f'model "{name}"') and "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import absent_library", "cannot be imported: ModuleNotFoundError: No module named 'absent_library'"),
        ("def f(:", "cannot be imported: SyntaxError"),
        ("raise RuntimeError('no\\nyes')", "cannot be imported: RuntimeError: no"),
        ("raise SystemExit(0)", "is a script that ends the program"),
    ],
)
def test_a_module_that_does_not_import_says_why(outside: Path, source: str, words: str) -> None:
    (outside / "broken.py").write_text(source)
    with pytest.raises(ModelError) as caught:
        build("outside.broken:Net", 6)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_modules_constants_are_not_made_on_the_meta_device(outside: Path) -> None:
    with torch.device("meta"):
        build("outside.nets:Net", 6)
    assert build("outside.nets:Net", 6)(torch.rand(1, 3, 8, 8)).isfinite().all()


def test_a_fresh_process_builds_the_same_model(outside: Path) -> None:
    code = (
        "import pickle, sys, torch\nfactory = pickle.load(sys.stdin.buffer)\ntorch.manual_seed(5)\n"
        "print(sum(float(p.detach().double().abs().sum()) for p in factory().parameters()))"
    )
    factory: Callable[[], nn.Module] = partial(build, "outside.nets:Net", 6, {"channels": 7})
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{code}"],
        input=pickle.dumps(factory),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    torch.manual_seed(5)
    assert float(done.stdout) == sum(float(p.detach().double().abs().sum()) for p in factory().parameters())


def test_the_digest_follows_every_file_of_the_package(outside: Path) -> None:
    before = source_digest("outside.nets:Net")
    assert source_digest("outside.nets:Net") == source_digest("outside:Net") == before
    (outside / "deeper").mkdir()
    (outside / "deeper" / "inner.py").write_text("K = 3\n")
    within = source_digest("outside.nets:Net")
    (outside / "deeper" / "inner.py").write_text("K = 5\n")
    assert len({before, within, source_digest("outside.nets:Net")}) == 3


def test_the_digest_of_a_lone_module_follows_what_it_imports_from_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lone_net.py").write_text("from torch import nn\nfrom lone_part import K\nNet = nn.Identity\n")
    (tmp_path / "lone_part.py").write_text("def K():\n    import lone_deep\n")
    (tmp_path / "lone_deep.py").write_text("")
    (tmp_path / "lone_other.py").write_text("")
    before = source_digest("lone_net:Net")
    (tmp_path / "lone_other.py").write_text("changed = 1\n")
    assert source_digest("lone_net:Net") == before
    (tmp_path / "lone_deep.py").write_text("changed = 1\n")
    assert source_digest("lone_net:Net") != before
