"""Every registered model leaves PyTorch whole: the exported program and ONNX compute what the model does."""

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segbench.errors import ModelError
from segbench.models import MODELS
from segbench.models.build import build
from segbench.models.export import export_onnx, exported

# Odd in both sides at some level: 45 -> 23 -> 12 -> 6 -> 3 -> 2.
SIZE = (45, 60)
SEGFORMER = {
    "hidden_sizes": [8] * 4,
    "depths": [1] * 4,
    "num_attention_heads": [1] * 4,
    "decoder_hidden_size": 8,
}
MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "smp:": ("smp:FPN", {"encoder_name": "resnet18"}),
    "torchvision:": ("torchvision:lraspp_mobilenet_v3_large", {}),
    "hf:": ("hf:segformer", SEGFORMER),
}
CASES = [MEMBERS.get(name, (name, {})) for name in MODELS.entries]
# One is always exported; all of them take minutes.
FAST = {"segnet-basic"}
every_model = pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(*case, id=case[0], marks=[] if case[0] in FAST else pytest.mark.slow) for case in CASES],
)


def small(name: str, options: dict[str, Any]) -> nn.Module:
    """The model at an eighth of its width where it has one, with weights that leave no output zero."""
    if name.startswith("hf:"):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    narrow = {"width": 1 / 8} if "width" in inspect.signature(MODELS.resolve(name)).parameters else {}
    model = build(name, 4, {**narrow, **options}, input_size=SIZE).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(0.02 * torch.rand_like(value))
    return model


def check_equal(found: Tensor, expected: Tensor) -> None:
    """To 1e-4 of the largest logit: other runtimes add in another order."""
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@every_model
@torch.no_grad()
def test_exported_programs_and_onnx_compute_what_the_model_computes(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = small(name, options)
    images = torch.randn(3, 3, *SIZE)  # another number of images than it is traced with
    expected = model(images)
    check_equal(exported(model, SIZE).module()(images), expected)
    export_onnx(model, SIZE, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    check_equal(torch.from_numpy(logits), expected)


class Undecided(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images if images.sum() > 0 else -images


def test_what_cannot_be_traced_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"^Undecided cannot be exported: [^\n]+$"):
        exported(Undecided(), (4, 4))


def test_without_the_exporter_onnx_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModelError, match=r"pip install 'segbench\[onnx\]'"):
        export_onnx(nn.Conv2d(3, 2, 1), (4, 4), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
