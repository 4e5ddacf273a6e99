"""Files that are seen whole or not at all, and are still there after a power loss.

What is written is a draft in a folder beside its place, `<name>.<process>.partial`, where also lies what a library puts
there meanwhile. It is on the disk before it takes its name, and the name is on the disk before anything else is done:
fsync of the file, rename, fsync of the folder. A draft that could not be finished is removed, and one that a killed
process left goes when somebody holds its place next (`store/files.py`).
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft_of(path: Path, former: Path | None = None) -> Iterator[Path]:
    """Where to write a file that is to become `path`. What stood there goes, or becomes `former`, when the new one is
    whole, and stays when writing fails."""
    make_folder(path.parent)
    folder = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        folder.mkdir(exist_ok=True)
        draft = folder / path.name
        yield draft
        sync(draft)
        if former and path.exists():
            path.replace(former)
        draft.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    if os.name == "nt":  # pragma: no cover (Windows opens no folder, and syncs no file that is open for reading)
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_below(folder: Path) -> None:
    """`sync` a folder and everything in it."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
