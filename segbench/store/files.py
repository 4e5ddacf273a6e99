"""The two places on disk, each held by one process at a time. Nothing is seen half-written: folders and files are made
beside their place, reach the disk, and are renamed (`durable.py`)."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segbench.durable import draft_of, make_folder, sync, sync_below
from segbench.errors import RecordError, SettingError
from segbench.store.record import Record, plain, read_record

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MARK = "stage.json"
"""Written last into a stage's folder: where it stands, the stage is whole."""

OWNED = ".segbench-work"
"""Stands in every work folder, so that `clean` removes nothing that is not ours."""

LOCK = ".lock"
"""What a process holds that works in a folder."""


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with draft_of(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files may be any bytes


def check_folder(path: Path, flag: str) -> None:
    """A folder that is to be written to is not a file; `SettingError` otherwise."""
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise SettingError(f"{flag} {path}: {nearest} is not a folder that can be written to; name another")


class Work:
    """`.segbench/<stage>/<key>/`: outputs of stages under the key of what made them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, stage: str, key: str) -> Path:
        """Where a stage's files are, whether they exist or not."""
        return self.root / stage / key

    def folder(self, stage: str, key: str) -> Path:
        """The same, made if need be."""
        place = self.place(stage, key)
        make_folder(place)
        mark = self.root / OWNED
        if not mark.exists():
            mark.write_text("segbench keeps checkpoints and counts here; `segbench clean` frees it\n")
        return place

    def begin(self, stage: str, key: str) -> Path:
        """The stage's folder, not whole any more: what is in it is about to be made anew."""
        place = self.folder(stage, key)
        (place / MARK).unlink(missing_ok=True)
        sync(place)
        return place

    def finish(self, stage: str, key: str, facts: Mapping[str, Any]) -> None:
        """Declare a stage whole; `facts` are what its record will say of it. Its files reach the disk before."""
        sync_below(self.place(stage, key))
        write_text(self.place(stage, key) / MARK, json.dumps(facts, default=plain))

    def facts(self, stage: str, key: str | None) -> dict[str, Any] | None:
        """What `finish` was told, or None while the stage is not whole."""
        if key is None:
            return None
        try:
            return dict(json.loads((self.place(stage, key) / MARK).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def contents(self) -> dict[str, int]:
        """Bytes below each stage's folder."""
        if not self.root.is_dir():
            return {}
        return {
            stage.name: sum(f.stat().st_size for f in stage.rglob("*") if f.is_file())
            for stage in sorted(self.root.iterdir())
            if stage.is_dir()
        }

    def clean(self) -> None:
        """Remove the folder; `RecordError` when it is not one that segbench made, or when one works there."""
        if self.root.is_dir():
            if not (self.root / OWNED).is_file():
                raise RecordError(
                    f"{self.root}: has no {OWNED} file, so it is not a work folder of segbench; not removed"
                )
            with hold(self.root, "--work"):
                shutil.rmtree(self.root)


@contextmanager
def hold(folder: Path, flag: str) -> Iterator[None]:
    """Hold a folder for this process, and clear it of what a killed one left half-written. A hold ends with its
    process, even by kill -9. `RecordError` when another process has it; `flag` is the option that names a folder."""
    if fcntl is None:  # pragma: no cover (Windows has no flock)
        yield
        return
    make_folder(folder)
    place = folder / LOCK
    with place.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder removed the file meanwhile: the next to come would make another, and hold that one.
            alone = os.path.samestat(os.fstat(file.fileno()), place.stat())
        except OSError:
            alone = False
        if not alone:
            raise RecordError(f"{folder}: another segbench works there; wait for it, or give {flag} DIR")
        try:
            sweep(folder)
            yield
        finally:
            place.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the drafts below a folder, of which nobody writes any."""
    for draft in sorted(folder.rglob("*.partial")):
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


class Results:
    """`results/<suite>/<record id>/`: one folder a record."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, suite: str, record_id: str) -> Record | None:
        """The record of that id, if it is there with all its files."""
        folder = self.root / suite / record_id
        if not (folder / "record.json").is_file():
            return None
        record = read_record(folder)
        whole = all((folder / evaluation.counts).is_file() for evaluation in record.evaluations)
        return record if whole else None

    def write(self, suite: str, record: Record, files: Mapping[str, Path]) -> Path:
        """Put a record and its files (path inside the record's folder -> where it lies now) in place at once."""
        target = self.root / suite / record.id
        draft = target.with_name(f".{record.id}.{os.getpid()}.partial")
        try:
            fill(draft, record, files)
            existing = self.find(suite, record.id)
            # Where folders cannot be held, another process may have been faster; a record that is done is never edited.
            if not existing or existing.status != "done":
                shutil.rmtree(target, ignore_errors=True)
                draft.rename(target)
                sync(target.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return target


def fill(folder: Path, record: Record, files: Mapping[str, Path]) -> None:
    """A record and copies of its files in a folder of its own, on the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    (folder / "record.json").write_text(record.to_json(), encoding="utf-8")
    sync_below(folder)


def record_folders(path: Path) -> list[Path]:
    """Every folder with a record at or below a path, by name; `RecordError` when there is none."""
    found = sorted(p.parent for p in path.glob("**/record.json") if ".partial" not in p.parent.name)
    if not found:
        missing = "does not exist" if not path.exists() else "holds no record.json"
        raise RecordError(f"{path}: {missing}; give a results folder, as in `segbench report results/quickstart`")
    return found
