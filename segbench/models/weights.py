"""Weights for a built model: a file of its own, or VGG16's to begin from. What does not fit raises on one line.

A source is a file (safetensors, or a plain state dict in .pt or .pth) or the name of a checkpoint of ImageNet
(imagenet.py). Those come from torch's cache, into which they are downloaded once (528 MB).

A file in the layout of torchvision's `vgg16` or `vgg16_bn` is taken as trained on torchvision's ImageNet input (RGB,
0..1, standardised) unless its SHA-256 is that of one of the named. The file itself does not tell, so weights that
others converted from Caffe begin from a wrong input.
"""

import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors.torch import load_file
from torch import Size, Tensor, nn

from segbench.errors import ModelError
from segbench.models import vgg16_weights
from segbench.models.build import first_line
from segbench.models.external import External
from segbench.models.imagenet import DOWNLOADS, FILES, sha256
from segbench.models.input import IMAGENET, Input

SHOWN = 3
CAFFE = Input(scale=1 / 255, mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255))


@dataclass(frozen=True)
class Checkpoint:
    """A file of VGG16's weights and what it was trained on."""

    file: str
    trained_on: Input
    has_classifier: bool = True


CHECKPOINTS = {
    "imagenet": Checkpoint(FILES["imagenet"], IMAGENET),
    "imagenet-caffe": Checkpoint(FILES["imagenet-caffe"], CAFFE, has_classifier=False),
}


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did: the layout that it found, and the names of the model that it filled and left alone."""

    layout: Literal["own", "vgg16", "vgg16_bn"]
    filled: tuple[str, ...]
    left: tuple[str, ...] = ()


def load_weights(model: nn.Module, source: str | Path) -> Loaded:
    """Put weights into the model, on its device. Never runs code from a file.

    A state dict of the model's own, or of the other library's network in it, must have exactly its names and shapes.
    VGG16's weights fill the encoder, and fc6 and fc7 where the model has them (see `vgg16_weights`), rewritten for
    `model.input` as it is now.

    Raises `ModelError`, and leaves the model as it was, where the source does not fit or is not there.
    """
    name, wanted = str(source), model.state_dict()
    if name in CHECKPOINTS:
        vgg16_weights.check_network(name, wanted, _input(model))  # before a download
        path = _cached(name)
    else:
        path = Path(source)
    state = _read_weights(path)
    if vgg16_weights.is_vgg(state) and not vgg16_weights.is_vgg(wanted):
        return _begin_from_vgg16(model, path, state)
    if isinstance(model, External) and not any(key.startswith("network.") for key in state):
        state = {f"network.{key}": value for key, value in state.items()}  # saved under the library's own names
    shapes = {key: value.shape for key, value in wanted.items()}
    _require(path, state, shapes, unexpected=[key for key in state if key not in wanted])
    model.load_state_dict(state)
    return Loaded("own", filled=tuple(wanted))


def _begin_from_vgg16(model: nn.Module, path: Path, state: Mapping[str, Tensor]) -> Loaded:
    wanted, fed, checkpoint = model.state_dict(), _input(model), _checkpoint(path)
    vgg16_weights.check_network(str(path), wanted, fed)
    batch_norm = vgg16_weights.has_normalisation(state)
    layout: Literal["vgg16", "vgg16_bn"] = "vgg16_bn" if batch_norm else "vgg16"
    if not checkpoint.has_classifier:  # the file has its names all the same
        state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    needed = vgg16_weights.needed(wanted, batch_norm)
    _require(path, state, needed, what=f"torchvision's {layout} as the model needs it")
    broken = [key for key in needed if not state[key].isfinite().all()]
    if broken:
        raise ModelError(f"{path} does not fit: {len(broken)} hold values that are not finite ({_shortened(broken)})")
    filled = vgg16_weights.translated(state, wanted, checkpoint.trained_on, fed)
    model.load_state_dict(filled, strict=False)
    return Loaded(layout, tuple(filled), left=tuple(key for key in wanted if key not in filled))


def _require(
    path: Path,
    state: Mapping[str, Tensor],
    shapes: Mapping[str, Size],
    unexpected: Collection[str] = (),
    what: str = "the model",
) -> None:
    """Raises `ModelError` unless `state` holds what `shapes` says and nothing is unexpected."""
    missing = [key for key in shapes if key not in state]
    misshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(shape)}"
        for key, shape in shapes.items()
        if key in state and state[key].shape != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
    faults = [f"{len(keys)} {kind} ({_shortened(keys)})" for kind, keys in kinds if keys]
    if faults:
        raise ModelError(f"{path} does not fit {what}: {'; '.join(faults)}")


def _cached(name: str) -> Path:
    """A named checkpoint in torch's cache, downloaded where it is not there yet."""
    file = CHECKPOINTS[name].file
    path = Path(torch.hub.get_dir(), "checkpoints", file)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(f"{DOWNLOADS}/{file}", str(path), hash_prefix=_digits(file))
    except Exception as error:  # a network fails in many ways
        raise ModelError(
            f"weights {name}: {DOWNLOADS}/{file} cannot be downloaded ({first_line(error)}); put it at {path}, or give"
            " a file in its layout as `weights`"
        ) from error
    return path


def _checkpoint(path: Path) -> Checkpoint:
    """What is known of a VGG16 checkpoint, by its bytes; raises `ModelError` where its name is false."""
    digest = sha256(path)
    for checkpoint in CHECKPOINTS.values():
        if digest.startswith(_digits(checkpoint.file)):
            return checkpoint
        if path.name == checkpoint.file:
            raise ModelError(f"{path} is not torchvision's file of that name (its SHA-256 differs); remove it")
    return Checkpoint(path.name, trained_on=IMAGENET)


def _digits(file: str) -> str:
    """The first digits of a file's SHA-256, as torchvision writes them at the end of its name."""
    return Path(file).stem.rpartition("-")[2]


def _input(model: nn.Module) -> Input:
    return cast(Input, model.input)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; never runs code from it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: there is no such file of weights") from error
    except Exception as error:  # a pickle of garbage may raise anything
        raise ModelError(f"{path} is not a file of weights (safetensors, or a state dict): {_unread(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path} is not a plain state dict: it must map names to tensors and hold nothing else")
    return found


def _unread(error: Exception) -> str:
    """Why a file was not read. PyTorch's words for a pickle are a page, and advise to run the code in it."""
    if isinstance(error, EOFError):
        return "it is empty or cut short"
    if not isinstance(error, pickle.UnpicklingError):
        return first_line(error).partition(". ")[0]
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f"it holds a {named[1]}, which is no tensor" if named else "it is no pickle of tensors, or a broken one"


def _shortened(keys: Collection[str]) -> str:
    return ", ".join(list(keys)[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
