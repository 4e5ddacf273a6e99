"""On what a run was made: versions, commit, machine. Read without importing any of the libraries."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import segbench

LIBRARIES = (
    *("torch", "torchvision", "triton", "segmentation-models-pytorch", "timm", "transformers", "pydensecrf2"),
    *("numpy", "scipy", "numba", "pillow"),
    *("onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "nvidia-ml-py"),
)


def environment(device: str, threads: int) -> dict[str, Any]:
    """Everything that a reader of a number would ask about the machine; `device` is its name, `threads` torch's."""
    return {
        "date": now(),
        "segbench": segbench.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "threads": threads,
        "cpus": os.cpu_count(),
        "libraries": library_versions(),
    }


def library_versions() -> dict[str, str | None]:
    """Installed versions; None for what is not installed."""
    return {name: installed(name) for name in LIBRARIES}


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of a checkout, with `+` when tracked files differ from it; None for an installed package."""
    root = Path(segbench.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = git(root, "rev-parse", "--short=12", "HEAD")
        changed = git(root, "status", "--porcelain", "--untracked-files=no", "--", "segbench", "suites")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
