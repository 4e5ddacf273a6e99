"""How much memory this process may still take.

On Linux the least of what the machine has left (`MemAvailable`, proc(5)) and of what each control group around the
process leaves it: its limit less its use, where the cached pages of files do not count as used, since the kernel drops
them when memory is asked for. Groups of both versions are read (docs.kernel.org, admin-guide: `cgroup-v2`,
`cgroup-v1/memory`). Elsewhere it is all the memory that the machine has, and 0 where the system does not tell.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Version(NamedTuple):
    """Where the memory groups of a version lie and what their files are called."""

    folder: str
    limit: str
    used: str
    cached: tuple[str, str]


V1 = Version(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
V2 = Version("sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file"))


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that this process may take before others are pushed out or it is killed; `root` holds proc/ and sys/."""
    left = [*_of_machine(root), *_of_groups(root)] or [_physical()]
    return max(0, min(left))


def _of_machine(root: Path) -> Iterator[int]:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """A line of /proc/self/cgroup is `number:controllers:path`; version 2 names no controllers."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = V1 if controllers else V2
        inside = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's, and only the last of these folders, the mount itself, is there.
        for group in (inside, *inside.parents):
            yield from _of_group(root / version.folder / group, version)


def _of_group(folder: Path, version: Version) -> Iterator[int]:
    limit, used = _read(folder / version.limit).strip(), _read(folder / version.used).strip()
    if limit.isdigit() and used.isdigit():  # else "max", or no such group here
        entries = (line.split() for line in _read(folder / "memory.stat").splitlines())
        cached = sum(int(entry[1]) for entry in entries if entry[0] in version.cached)
        yield int(limit) - max(0, int(used) - cached)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _physical() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
