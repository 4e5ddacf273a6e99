"""Each scope against the same output computed by hand, step by step."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from segbench.errors import ModelError
from segbench.profiling import scopes
from segbench.profiling.scopes import Pipeline, label_maps, loader, pipeline, upload, write_frames
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.timing import time_model
from segbench.profiling.workload import Fed, fed_bytes, random_batch, random_images, seeded

CLASSES = 5
CPU = torch.device("cpu")
RES, FRAME = (6, 8), (12, 16)


class Network(nn.Module):
    """A 1x1 convolution behind an input that halves and shifts the bytes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.classify = nn.Conv2d(3, CLASSES, 1)

    def input(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        return images.float() / 2 - 60

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        return self.classify(images)


def spec_of(scope: str, batch: int = 2) -> ProfileSpec:
    values: dict[str, Any] = {"res": RES, "scope": scope, "time_batch": batch}
    if "resize" in scope:
        values["frame"] = FRAME
    return ProfileSpec.model_validate(values)


@contextmanager
def opened(scope: str, batch: int = 2, network: nn.Module | None = None) -> Iterator[tuple[Pipeline, Network]]:
    model = Network()
    with pipeline(network or model, spec_of(scope, batch), CLASSES, CPU) as way:
        yield way, model


def result(scope: str) -> tuple[Tensor, Network]:
    with opened(scope) as (way, model), torch.inference_mode():
        return way.through(model, CLASSES)(), model


def test_the_model_alone() -> None:
    given, model = result("model")
    assert torch.equal(given, model(random_images(2, RES, CPU)))


def test_input() -> None:
    given, model = result("model+input")
    frames = random_images(2, RES, CPU, "model+input")
    assert frames.dtype == torch.uint8
    assert torch.equal(given, model(frames.float() / 2 - 60))


def test_argmax() -> None:
    given, _ = result("model+input+argmax")
    logits, _ = result("model+input")
    assert given.dtype == torch.uint8
    assert np.array_equal(given.numpy(), logits.numpy().argmax(1))


def test_beyond_a_byte_labels_have_more_bits() -> None:
    scores = torch.zeros(1, 300, 1, 2)
    scores[0, 299, 0, 0] = scores[0, 7, 0, 1] = 1
    labels = label_maps(scores, 300)
    assert labels.dtype == torch.int64 and labels.tolist() == [[[299, 7]]]
    assert label_maps(scores[:, :257], 256).dtype == torch.int64  # a score for void may have the 257th
    assert label_maps(scores[:, :256], 255).dtype == torch.uint8  # 255 classes and a score for void


def test_resize() -> None:
    """Frames of twice the size; a bilinear kernel widened by two weighs 1, 3, 3, 1 eighths in each direction."""
    given, model = result("model+resize+input+argmax")
    frames = random_images(2, FRAME, CPU, "model+input").double()
    padded = functional.pad(frames, (1, 1, 1, 1))
    weights = functional.pad(torch.ones_like(frames), (1, 1, 1, 1))
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.double)

    def weighed(images: Tensor) -> Tensor:
        windows = images.unfold(2, 4, 2).unfold(3, 4, 2)
        return (windows * kernel[:, None] * kernel).sum((4, 5))

    small = (weighed(padded) / weighed(weights)).round()
    with opened("model+resize+input+argmax") as (way, _):
        fed = way.images()
    assert fed.shape == (2, 3, *RES)
    assert (fed - (small / 2 - 60)).abs().max() <= 0.5  # one level: its own roundings, of rows and then of columns
    with torch.no_grad():
        logits = functional.interpolate(model(fed), FRAME, mode="bilinear", align_corners=False)
    assert torch.equal(given, logits.argmax(1).to(torch.uint8))


def test_floats_are_resized_too() -> None:
    given, model = result("model+resize")
    assert given.shape == (2, CLASSES, *FRAME)
    frames = random_images(2, FRAME, CPU)
    with torch.no_grad():
        logits = model(functional.interpolate(frames, RES, mode="bilinear", align_corners=False, antialias=True))
        assert torch.allclose(given, functional.interpolate(logits, FRAME, mode="bilinear"))


def test_logits_are_resized_between_pixel_centres() -> None:
    """A row of 0 and 4, twice as wide: 0, a quarter, three quarters, 4."""
    row = scopes.logits_resized(torch.tensor([[[[0.0, 4.0]]]]), (1, 4))
    assert row.tolist() == [[[[0.0, 1.0, 3.0, 4.0]]]]


@pytest.mark.parametrize("scope", ["model+loader+input", "model+loader+transfer+input"])
def test_loader(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images a pass, over eight files, beginning again after the last; the files are gone afterwards."""
    written: list[Path] = []
    monkeypatch.setattr(scopes, "write_frames", lambda *given: written.extend(paths := write_frames(*given)) or paths)
    frames = random_images(8, RES, CPU, "model+input")
    with opened(scope, batch=3) as (way, _):
        assert len(written) == 8 and all(path.is_file() for path in written)
        for order in ([0, 1, 2], [3, 4, 5], [6, 7, 0], [1, 2, 3]):
            fed = way.images()
            assert torch.equal(fed, frames[order].float() / 2 - 60)
    assert not any(path.exists() for path in written) and not written[0].parent.exists()


def test_files_have_the_size_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(scopes, "write_frames", lambda folder, size: sizes.append(size) or write_frames(folder, size))
    for scope in ("model+loader+input", "model+loader+input+resize"):
        with opened(scope):
            pass
    assert sizes == [RES, FRAME]


def test_files_are_read_and_decoded_each_time(tmp_path: Path) -> None:
    paths = write_frames(tmp_path, RES)
    read = loader(paths, batch=8)
    first = read()
    Image.fromarray(np.full((*RES, 3), 9, dtype=np.uint8)).save(paths[0])
    again = read()
    assert torch.equal(again[1:], first[1:])
    assert bool((again[0] == 9).all()) and not torch.equal(first[0], again[0])


def test_files_of_a_pipeline_that_fails_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(scopes, "write_frames", lambda *given: written.extend(paths := write_frames(*given)) or paths)
    with pytest.raises(RuntimeError, match="stop"), opened("model+loader+input"):
        raise RuntimeError("stop")
    assert written and not written[0].parent.exists()


def test_frames_come_in_their_own_size_and_type() -> None:
    for scope, kind in (("model+transfer", torch.float32), ("model+transfer+input+resize", torch.uint8)):
        spec = spec_of(scope)
        frames = scopes.first_frames(spec.scope.split("+"), spec, CPU)
        assert frames.dtype == kind and frames.shape[2:] == (spec.frame or RES)


class Sent(Tensor):
    """Notes where it was sent, and stays."""

    log: list[Any] = []

    def pin_memory(self) -> "Sent":  # type: ignore[override]
        self.log.append("pin")
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> "Sent":  # type: ignore[override]
        self.log.append((str(device), non_blocking))
        return self

    def cpu(self) -> "Sent":  # type: ignore[override]
        self.log.append("back")
        return self


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    monkeypatch.setattr(Sent, "log", [])
    return torch.zeros(2, 3, *RES).as_subclass(Sent)


@pytest.mark.parametrize(("device", "moves"), [("cpu", [("cpu", False)]), ("cuda:1", ["pin", ("cuda:1", True)])])
def test_cuda_is_fed_from_pinned_memory(device: str, moves: list[Any], sent: Sent) -> None:
    upload(sent, torch.device(device))
    assert sent.log == moves


@pytest.mark.parametrize("scope", ["model", "model+transfer"])
def test_a_scope_begins_and_ends_on_its_side(scope: str, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device; with +transfer on the host, pinned, and the result is brought back."""
    log, parts, spec = sent.log, scope.split("+"), spec_of(scope)
    monkeypatch.setattr(scopes, "random_images", lambda n, res, device, scope: log.append(str(device)) or sent)
    scopes.first_frames(parts, spec, torch.device("cuda:0"))
    scopes.composed(scopes.steps_behind(parts, spec, CLASSES))(sent)
    assert log == (["cuda:0"] if scope == "model" else ["cpu", "pin", "back"])


@pytest.mark.parametrize("scope", ["model+loader+input", "model+transfer", "model+resize"])
def test_steps_before_the_network_copy_what_is_on_the_host(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.device] = []
    monkeypatch.setattr(scopes, "upload", lambda images, device: copied.append(device) or images)
    with opened(scope) as (way, _):
        way.images()
    assert copied == ([] if scope == "model+resize" else [CPU])


def test_a_network_without_an_input_or_without_logits_is_refused() -> None:
    undeclared = r"scope \+input needs .* declares its `input`, and Conv2d does not; "
    with (
        pytest.raises(ModelError, match=undeclared),
        opened("model+input+argmax", network=nn.Conv2d(3, CLASSES, 1)),
    ):
        pass
    with opened("model+argmax") as (way, model):
        region = way.through(lambda images: model(images)[:, :, ::2], CLASSES)
        with pytest.raises(ModelError, match=r"gave \[2, 5, 3, 8\]; expected logits \[2, 5, 6, 8\]"):
            region()


def test_every_scope_ends_in_what_it_names() -> None:
    parts = ("loader", "transfer", "input", "resize", "argmax")
    for chosen in product([False, True], repeat=5):
        named = [part for part, taken in zip(parts, chosen, strict=True) if taken]
        if "loader" in named and "input" not in named:
            continue
        given, _ = result("+".join(["model", *named]))
        size = FRAME if "resize" in named else RES
        assert given.shape == ((2, *size) if "argmax" in named else (2, CLASSES, *size)), named


def test_training_passes_take_the_images_of_the_scope_and_not_its_result() -> None:
    scope = "model+loader+transfer+resize+input+argmax"
    spec = spec_of(scope).model_copy(update={"protocol": "caffe-time", "repetitions": 2})
    taken: list[str] = []
    with opened(scope) as (way, model):
        noted = Pipeline(
            lambda: taken.append("images") or way.images(), lambda logits: taken.append("result") or way.result(logits)
        )
        region = noted.through(model, CLASSES)
        times = time_model(model, region, random_batch(2, RES, CLASSES, CPU), spec, noted.images, nullcontext, None)
    assert times.backward is not None, times.notes
    assert taken == ["images"] * 3 + ["images", "result"] * 3


def test_any_scope_with_input_stands_behind_it() -> None:
    assert [fed_bytes(scope) for scope in ("model", "model+resize", "model+input", "model+loader+input+argmax")] == [
        *(False, False, True, True)
    ]
    assert isinstance(seeded(Network, CPU, "model+transfer+input"), Fed)
    assert isinstance(seeded(Network, CPU, "model+transfer"), Network)
    assert random_images(1, RES, CPU, "model+input+argmax").dtype == torch.uint8
    assert random_images(1, RES, CPU, "model+argmax").dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scope", ["model+transfer", "model+loader+transfer+resize+input+argmax"])
def test_on_cuda(scope: str) -> None:
    device = torch.device("cuda", 0)
    model = Network()
    expected, _ = result(scope)
    with pipeline(model.to(device), spec_of(scope), CLASSES, device) as way, torch.inference_mode():
        given = way.through(model, CLASSES)()
    assert given.device.type == "cpu" and given.shape == expected.shape
    assert (
        (given == expected).float().mean() > 0.95 if "argmax" in scope else torch.allclose(given, expected, atol=1e-3)
    )
