"""Checkpoints and other files: exact, whole or not there, checked on reading, and one process a folder."""

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import save_file
from torch import Tensor, nn

from segbench import durable
from segbench.durable import draft_of
from segbench.engine import checkpoint
from segbench.engine.checkpoint import NEWEST, PREVIOUS, Progress
from segbench.errors import RecordError, SegbenchWarning
from segbench.store import files
from segbench.store.files import LOCK, Results, Work, hold, write_text
from segbench.store.record import Record

TENSORS = {
    "b": torch.tensor([[1.5, float("nan")], [-0.0, 3e38]]),
    "a": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
    "count": torch.tensor(2**40),
    "bool": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}
FACTS = {"losses": [0.1, 1e-300, 3.0], "selected": None, "word": "Straße"}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """The same names, types, shapes and bits."""

    def bits(tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {
            n: (t.dtype, t.shape, t.contiguous().reshape(-1).view(torch.uint8).tolist()) for n, t in tensors.items()
        }

    return bits(first) == bits(second)


def flip(path: Path, place: int) -> None:
    """Change one bit of the byte at `place`."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# --- files of tensors --------------------------------------------------------------------------------------------


def test_every_bit_comes_back(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "new/x.safetensors", TENSORS, FACTS)
    tensors, facts = checkpoint.read(tmp_path / "new/x.safetensors")
    assert equal(tensors, TENSORS) and facts == FACTS
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_the_digest_is_what_its_docstring_says(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "x.safetensors", TENSORS, FACTS)
    content = (tmp_path / "x.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    (entry,) = header.pop("__metadata__").values()
    digest, text = entry[:64], entry[65:]
    hashed = hashlib.sha256(text.encode())
    names = {"F32": "torch.float32", "BF16": "torch.bfloat16", "I64": "torch.int64", "BOOL": "torch.bool"}
    for name in sorted(header):
        first, end = (8 + length + offset for offset in header[name]["data_offsets"])
        hashed.update(f"\n{name} {names[header[name]['dtype']]} {header[name]['shape']}\n".encode())
        hashed.update(content[first:end])
    assert digest == hashed.hexdigest() and json.loads(text) == FACTS


def test_a_changed_byte_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, TENSORS, FACTS)
    for place in range(path.stat().st_size):
        flip(path, place)
        with pytest.raises(RecordError, match="not a readable checkpoint"):
            checkpoint.read(path)
        flip(path, place)
    checkpoint.read(path)


def test_a_file_that_was_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, TENSORS, FACTS)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(RecordError, match=r"x\.safetensors: not a readable checkpoint .*; delete it"):
            checkpoint.read(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(RecordError):
        checkpoint.read(path)


def test_files_of_others_have_no_digest(tmp_path: Path) -> None:
    for metadata in (None, {"iteration": "3"}, {"segbench": ""}):
        save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors", metadata)
        with pytest.raises(RecordError, match="its digest is missing"):
            checkpoint.read(tmp_path / "x.safetensors")


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    """A record tells trainings apart by the digest of such a file."""
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    for name in "abcd":
        checkpoint.save_weights(tmp_path / name, net, 3)
    assert len({(tmp_path / name).read_bytes() for name in "abcd"}) == 1
    assert checkpoint.load_weights(tmp_path / "a", nn.Linear(2, 2)) == 3
    (length,) = struct.unpack("<Q", (tmp_path / "a").read_bytes()[:8])
    header = json.loads((tmp_path / "a").read_bytes()[8 : 8 + length])
    assert list(header["__metadata__"]) == ["segbench"], "two entries would come in an order of the process's own"


# --- the state to go on from ---------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two layers, one frozen, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.first.requires_grad_(False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, values: Tensor) -> Tensor:
        self.seen += 1
        return self.second(torch.dropout(self.first(values), 0.5, train=True))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True),
    "no momentum": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.1),
    "amsgrad": lambda weights: torch.optim.AdamW(weights, lr=0.1, amsgrad=True),
    "fused": lambda weights: torch.optim.AdamW(weights, lr=0.1, fused=True),
}


def steps(net: Net, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        net(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_the_next_steps_are_the_same(name: str, before: int, tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = Net()
    optimizer = OPTIMIZERS[name](net.parameters())
    steps(net, optimizer, before)
    progress = Progress(before, [0.1 + 0.2] * before, [(1, 1 / 3)], 1, 0.7, 0.1)
    kept = {"scale": torch.tensor(65536.0), "_growth_tracker": torch.tensor(7)}
    checkpoint.save_state(tmp_path, net, optimizer, progress, kept)
    torch.manual_seed(before)  # as the training does for each iteration
    steps(net, optimizer, 4)

    torch.manual_seed(99)
    other = Net()
    resumed = OPTIMIZERS[name](other.parameters())
    state = checkpoint.newest_state(tmp_path)
    assert state is not None and state.progress == progress == checkpoint.peek(tmp_path / NEWEST)
    assert equal(checkpoint.restore(state, other, resumed), kept)
    torch.manual_seed(before)
    steps(other, resumed, 4)
    assert equal(net.state_dict(), other.state_dict())
    ours, theirs = optimizer.state_dict(), resumed.state_dict()
    assert ours["param_groups"] == theirs["param_groups"] and ours["state"].keys() == theirs["state"].keys()
    assert all(equal(ours["state"][index], theirs["state"][index]) for index in ours["state"])


def saved(folder: Path, *selections: int | None) -> tuple[Net, torch.optim.Optimizer]:
    """A state for each selection, of iterations 1, 2, ..., whose best weights are kept before it."""
    net = Net()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    for iteration, selected in enumerate(selections, 1):
        with torch.no_grad():
            net.second.bias.fill_(iteration)
        if selected == iteration:
            checkpoint.save_weights(folder / f"best-{iteration}.safetensors", net, iteration)
        checkpoint.save_state(folder, net, optimizer, Progress(iteration, selected=selected), {})
    return net, optimizer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert checkpoint.newest_state(tmp_path) is None and checkpoint.newest_state(tmp_path / "none") is None


def test_the_state_before_stays_and_so_do_the_best_weights_of_both(tmp_path: Path) -> None:
    saved(tmp_path / "a", 1)
    assert names(tmp_path / "a") == ["best-1.safetensors", NEWEST]
    saved(tmp_path / "b", 1, 1, 3)
    assert names(tmp_path / "b") == ["best-1.safetensors", "best-3.safetensors", PREVIOUS, NEWEST]
    iterations = [checkpoint.peek(tmp_path / "b" / name).iteration for name in (NEWEST, PREVIOUS)]
    assert iterations == [3, 2]
    saved(tmp_path / "c", 1, 1, 3, 3)
    assert names(tmp_path / "c") == ["best-3.safetensors", PREVIOUS, NEWEST]
    checkpoint.conclude(tmp_path / "b", Progress(3, selected=3))
    assert names(tmp_path / "b") == ["best-3.safetensors"]
    checkpoint.conclude(tmp_path / "c", Progress(4))
    assert names(tmp_path / "c") == []


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path: Path) -> None:
    net, optimizer = saved(tmp_path, 1, 1, 3)
    flip(tmp_path / NEWEST, (tmp_path / NEWEST).stat().st_size - 1)
    with pytest.warns(SegbenchWarning, match=rf"{NEWEST}: not a readable .* one before it, of iteration 2$") as caught:
        state = checkpoint.newest_state(tmp_path)
    assert state and state.progress.iteration == 2 and state.tensors["model/second.bias"].tolist() == [2, 2]
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert names(tmp_path) == ["best-1.safetensors", "best-3.safetensors", PREVIOUS]
    # The whole one is still the previous one after the next, so it can step in again.
    checkpoint.save_state(tmp_path, net, optimizer, Progress(3, selected=3), {})
    flip(tmp_path / NEWEST, 100)
    with pytest.warns(SegbenchWarning):
        state = checkpoint.newest_state(tmp_path)
    assert state and state.progress.iteration == 2


def test_a_power_loss_between_the_names_leaves_the_one_before(tmp_path: Path) -> None:
    saved(tmp_path, 1, 1)
    (tmp_path / NEWEST).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = checkpoint.newest_state(tmp_path)
    assert state and state.progress.iteration == 1


def test_states_that_are_all_damaged_are_named(tmp_path: Path) -> None:
    saved(tmp_path, None, None)
    (tmp_path / PREVIOUS).write_bytes(b"")
    checkpoint.newest_state(tmp_path)  # the newest is whole: nobody asks for the other
    (tmp_path / NEWEST).write_bytes(b"not whole")
    with pytest.raises(RecordError, match=rf"neither {NEWEST} nor {PREVIOUS} is a readable .*; delete both to train"):
        checkpoint.newest_state(tmp_path)
    assert names(tmp_path) == [PREVIOUS, NEWEST]
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(RecordError, match=rf"{NEWEST}: not a readable checkpoint .*; delete it to train again"):
        checkpoint.newest_state(tmp_path)


def test_damaged_weights_are_not_loaded(tmp_path: Path) -> None:
    checkpoint.save_weights(tmp_path / "3.safetensors", Net(), 3)
    flip(tmp_path / "3.safetensors", (tmp_path / "3.safetensors").stat().st_size - 3)
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RecordError, match=r"3\.safetensors: not a readable .*other content.*delete it to train again"):
        checkpoint.load_weights(tmp_path / "3.safetensors", net)
    assert equal(net.state_dict(), before)


# --- whole or not at all -------------------------------------------------------------------------------------------


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, None)
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spied_fsync(opened: int) -> None:
        done.append(f"sync {'folder' if os.path.samestat(os.fstat(opened), tmp_path.stat()) else 'draft'}")
        fsync(opened)

    def spied_replace(old: Path, new: Path) -> None:
        done.append(f"{old.name if old.parent == tmp_path else 'draft'} -> {new.name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(os, "replace", spied_replace)
    net = Net()
    checkpoint.save_state(tmp_path, net, OPTIMIZERS["momentum"](net.parameters()), Progress(2), {})
    assert done == ["sync draft", f"{NEWEST} -> {PREVIOUS}", f"draft -> {NEWEST}", "sync folder"]


def test_new_folders_reach_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync", synced.append)
    durable.make_folder(tmp_path / "a/b")
    assert synced == [tmp_path, tmp_path / "a"]
    durable.make_folder(tmp_path / "a/b")
    assert len(synced) == 2


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_what_cannot_be_written_leaves_what_was_there(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, optimizer = saved(tmp_path, 1, 1)
    write_text(tmp_path / "text", "before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(RecordError, match=r"resume\.safetensors: cannot be written .*No space left.*; make room"):
        checkpoint.save_state(tmp_path, net, optimizer, Progress(3), {})
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "text", "after")
    monkeypatch.undo()
    assert names(tmp_path) == ["best-1.safetensors", PREVIOUS, NEWEST, "text"]
    assert (tmp_path / "text").read_text() == "before"
    state = checkpoint.newest_state(tmp_path)
    assert state and state.progress.iteration == 2


def test_an_error_while_writing_leaves_no_draft(tmp_path: Path) -> None:
    def fail(draft: Path) -> None:
        draft.write_text("half")
        (draft.parent / ".a-librarys-own").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), draft_of(tmp_path / "x") as draft:
        fail(draft)
    assert names(tmp_path) == []


# --- the two places ------------------------------------------------------------------------------------------------


def test_a_stage_is_on_the_disk_before_its_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(tmp_path)
    place = work.folder("evaluate", "key")
    (place / "maps").mkdir()
    (place / "maps/a.png").write_bytes(b"png")
    (place / "counts.npz").write_bytes(b"npz")
    synced: list[str] = []
    real = durable.sync
    monkeypatch.setattr(durable, "sync", lambda path: (synced.append(path.name), real(path)))
    work.finish("evaluate", "key", {"images": 3})
    mark = synced.index("stage.json")
    assert {"counts.npz", "a.png", "maps", "key"} <= set(synced[:mark]) and work.facts("evaluate", "key") == {
        "images": 3
    }


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    words = r"folder: another segbench works there; wait for it, or give --work DIR$"
    with hold(tmp_path / "new/folder", "--work"), hold(tmp_path / "other", "--results"):
        with pytest.raises(RecordError, match=words), hold(tmp_path / "new/folder", "--work"):
            pass
        with pytest.raises(RecordError, match="--results DIR"), hold(tmp_path / "other", "--results"):
            pass
    assert names(tmp_path / "new/folder") == names(tmp_path / "other") == []
    for _ in range(2):
        with suppress(ZeroDivisionError), hold(tmp_path / "other", "--results"):
            raise ZeroDivisionError


HOLDER = """\
import sys, time
from pathlib import Path
from segbench.store.files import hold
with hold(Path(sys.argv[1]), "--work"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_holds_nothing_and_what_it_left_half_written_goes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(RecordError, match="another segbench works there"), hold(tmp_path, "--work"):
            pass
        (tmp_path / "train/key/3.safetensors.99.partial").mkdir(parents=True)
        (tmp_path / "train/key/3.safetensors.99.partial/.tmp5").write_text("half")
        (tmp_path / "train/key/2.safetensors").write_text("whole")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with hold(tmp_path, "--work"):
        assert names(tmp_path / "train/key") == ["2.safetensors"]


def test_a_hold_on_a_file_that_its_last_holder_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    real = fcntl.flock

    def slow(file: Any, how: int) -> None:
        monkeypatch.undo()
        (tmp_path / LOCK).unlink()  # the last holder leaves after we opened its file
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with pytest.raises(RecordError, match="another segbench"), hold(tmp_path, "--work"):
        pass
    with hold(tmp_path, "--work"):
        pass


def test_clean_does_not_remove_a_folder_in_use(tmp_path: Path) -> None:
    work = Work(tmp_path / "work")
    work.folder("train", "key")
    with hold(work.root, "--work"), pytest.raises(RecordError, match="another segbench works there"):
        work.clean()
    assert (work.root / "train/key").is_dir()
    work.clean()
    assert not work.root.exists()


def record(status: Any, words: str) -> Record:
    return Record(
        id="a-s0",
        status=status,
        reason=words,
        run={},
        keys={},
        data=None,
        environment={},
        training=None,
        evaluations=[],
        usage=None,
        created="now",
    )


def test_a_record_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path)
    (tmp_path / "counts").write_bytes(b"npz")
    results.write("suite", record("failed", "first"), {"counts.npz": tmp_path / "counts"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.write("suite", record("done", "second"), {"counts.npz": tmp_path / "counts"})
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        results.write("suite", record("done", "second"), {"counts.npz": tmp_path / "vanished"})
    found = results.find("suite", "a-s0")
    assert found and found.reason == "first" and names(tmp_path / "suite") == ["a-s0"]


def test_a_record_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real = durable.sync
    for module in (durable, files):
        monkeypatch.setattr(module, "sync", lambda path: (done.append(path.name), real(path)))
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda old, new: (done.append("renamed"), rename(old, new)))
    (tmp_path / "counts").write_bytes(b"npz")
    Results(tmp_path / "r").write("suite", record("done", ""), {"maps/a.png": tmp_path / "counts"})
    written = done[: done.index("renamed")]
    assert {"record.json", "a.png", "maps", f".a-s0.{os.getpid()}.partial"} <= set(written)
    assert done[len(written) :] == ["renamed", "suite"]
