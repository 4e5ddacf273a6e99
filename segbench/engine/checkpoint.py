"""What a training leaves on disk: weights to keep, and one file from which it goes on.

Both are safetensors, so that reading one runs no code. A file appears whole or not at all: it is written beside its
place and renamed. The file to go on from holds the weights, the optimizer's state, the random-number states and
the history; the order of the images follows from the seed and the iteration alone.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from segbench.errors import RecordError


@dataclass
class Progress:
    """How far a training has come: losses of every step, `[iteration, score]` of every validation."""

    iteration: int = 0
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    selected: int | None = None
    seconds: float = 0.0


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".partial")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, draft, metadata)
    draft.replace(path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file; `RecordError` when it is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise broken(path, error) from error


def broken(path: Path, error: Exception) -> RecordError:
    return RecordError(f"{path}: not a readable checkpoint ({error}); delete it to train again")


def save_weights(path: Path, model: nn.Module, iteration: int) -> None:
    """Keep the weights (and buffers) as they are now."""
    write(path, model.state_dict(), {"iteration": str(iteration)})


def load_weights(path: Path, model: nn.Module) -> int:
    """Put kept weights into a model of the same architecture; after which iteration they were kept."""
    tensors, metadata = read(path)
    model.load_state_dict(tensors)
    return int(metadata["iteration"])


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Everything that the next step depends on."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": v for name, v in state.items() if isinstance(v, Tensor)}
    tensors["random/cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    write(path, tensors, {"progress": json.dumps(asdict(progress))})


def peek(path: Path) -> Progress:
    """How far the training in a file has come, without reading its weights."""
    try:
        with safe_open(path, framework="pt") as file:
            return progress_in(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise broken(path, error) from error


def progress_in(metadata: dict[str, str]) -> Progress:
    saved = json.loads(metadata["progress"])
    saved["validations"] = [(iteration, score) for iteration, score in saved["validations"]]  # JSON has no tuples
    return Progress(**saved)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Bring model, optimizer and random numbers to where the file was written; its progress."""
    tensors, metadata = read(path)
    model.load_state_dict({n.removeprefix("model/"): v for n, v in tensors.items() if n.startswith("model/")})
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/", 2)
            states.setdefault(int(index), {})[name] = value
    # The groups hold only settings, which the recipe gave to the fresh optimizer already.
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random/cpu"])
    device = next(model.parameters()).device
    if device.type == "cuda" and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"], device)
    return progress_in(metadata)
