"""What a training leaves on disk: weights to keep, and two files from which it goes on.

All are safetensors, so that reading one runs no code, and appear whole or not at all (`durable.py`). Each carries a
SHA-256 of what is in it, which every reading checks: a disk that lied about a write, or lost a bit since, is noticed.

The state to go on from holds the weights, the optimizer's state, what the training step keeps for itself, and the
history; images and random numbers follow from the seed and the iteration alone (`train.py`). The one before it stays
until the next is whole, and steps in where the newest turns out to be damaged.
"""

import hashlib
import json
import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from segbench.durable import draft_of
from segbench.errors import RecordError, SegbenchWarning

NEWEST, PREVIOUS = "resume.safetensors", "resume.previous.safetensors"

ENTRY = "segbench"
"""The one entry of a file's metadata: the digest, a space, and JSON. One, because safetensors writes several in an
order that differs from process to process, and equal weights are to be equal files."""


@dataclass
class Progress:
    """How far a training has come: losses of every step, `[iteration, score]` of every validation; `waited_s` of its
    `seconds` went by until images were there."""

    iteration: int = 0
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    selected: int | None = None
    seconds: float = 0.0
    waited_s: float = 0.0
    processes: int = 1


class State(NamedTuple):
    """What a training goes on from; `restore` takes the tensors apart."""

    progress: Progress
    tensors: dict[str, Tensor]


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], former: Path | None = None) -> None:
    """Write a file; the one that stood there becomes `former`. Raises `RecordError` when it cannot be written."""
    there = on_host(tensors)
    text = json.dumps(facts)
    try:
        with draft_of(path, former) as draft:
            save_file(there, draft, {ENTRY: f"{digest(there, text)} {text}"})
    except (SafetensorError, OSError) as error:
        raise RecordError(
            f"{path}: cannot be written ({error}); make room, and the same command goes on from the state before"
        ) from error


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in memory of its own: safetensors refuses weights that two names share."""
    there: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        place = host.untyped_storage().data_ptr()
        there[name] = host.clone() if place in taken else host
        taken.add(place)
    return there


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file; `RecordError` when it is not the very file that was written."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found, _, text = (file.metadata() or {}).get(ENTRY, "").partition(" ")
    except (SafetensorError, OSError) as error:
        raise broken(path, error) from error
    if found != digest(tensors, text):
        raise broken(path, "its digest is missing" if not found else "its digest is of other content")
    return tensors, json.loads(text)


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of a line of text and of the name, type, shape and bytes of every tensor, which lie on the host."""
    hashed = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def broken(path: Path, why: object) -> RecordError:
    return RecordError(f"{path}: not a readable checkpoint ({why}); delete it to train again")


def save_weights(path: Path, model: nn.Module, iteration: int) -> None:
    """Keep the weights (and buffers) as they are now."""
    write(path, model.state_dict(), {"iteration": iteration})


def load_weights(path: Path, model: nn.Module) -> int:
    """Put kept weights into a model of the same architecture; after which iteration they were kept."""
    tensors, facts = read(path)
    model.load_state_dict(tensors)
    return int(facts["iteration"])


def save_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    step: Mapping[str, Tensor],
) -> None:
    """Everything that the next step depends on; `step` is what the training step keeps for itself. Then, not before,
    the best weights that neither state selects any more may go."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": v for name, v in values.items() if isinstance(v, Tensor)}
    tensors |= {f"step/{name}": value for name, value in step.items()}
    write(folder / NEWEST, tensors, asdict(progress), former=folder / PREVIOUS)
    keep_best(folder, {peek(path).selected for path in states(folder)})


def states(folder: Path) -> list[Path]:
    """The states that are there, the newest first."""
    return [path for path in (folder / NEWEST, folder / PREVIOUS) if path.exists()]


def keep_best(folder: Path, selected: Collection[int | None]) -> None:
    """Remove the best weights of validations that are not among the selected."""
    for path in folder.glob("best-*.safetensors"):
        if path.name not in {f"best-{iteration}.safetensors" for iteration in selected}:
            path.unlink()


def peek(path: Path) -> Progress:
    """How far the training in a file has come, without reading its weights, so unchecked."""
    try:
        with safe_open(path, framework="pt") as file:
            return progress_of(json.loads(file.metadata()[ENTRY].partition(" ")[2]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise broken(path, error) from error


def progress_of(facts: Mapping[str, Any]) -> Progress:
    validations = [(iteration, score) for iteration, score in facts["validations"]]  # JSON has no tuples
    return Progress(**{**facts, "validations": validations})


def newest_state(folder: Path) -> State | None:
    """The newest state that is whole; None where none was written. A damaged one is removed, with a warning, when the
    one before it is whole. Raises `RecordError` when there are states and none is whole."""
    there = states(folder)
    if not there:
        return None
    newest, *before = there
    try:
        return read_state(newest)
    except RecordError:
        if not before:
            raise
    try:
        state = read_state(before[0])
    except RecordError as error:
        raise RecordError(
            f"{folder}: neither {NEWEST} nor {PREVIOUS} is a readable checkpoint; delete both to train again"
        ) from error
    # It must not become the previous one, or nothing whole would stand behind the next.
    newest.unlink(missing_ok=True)
    words = f"{newest}: not a readable checkpoint; going on from the one before it, of iteration"
    warnings.warn(f"{words} {state.progress.iteration}", SegbenchWarning, stacklevel=2)
    return state


def read_state(path: Path) -> State:
    tensors, facts = read(path)
    return State(progress_of(facts), tensors)


def restore(state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Bring model and optimizer to where they were saved; returns what the training step kept."""
    model.load_state_dict(part(state.tensors, "model/"))
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in part(state.tensors, "optimizer/").items():
        index, name = key.split("/", 1)
        states.setdefault(int(index), {})[name] = value
    # The groups hold only settings, which the recipe gave to the fresh optimizer already.
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return part(state.tensors, "step/")


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, by what follows it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def conclude(folder: Path, progress: Progress) -> None:
    """A training is over: nothing goes on from here, and of the best weights the selected stay."""
    for path in states(folder):
        path.unlink()
    keep_best(folder, {progress.selected})
