"""Is a GPU ours alone? Another process on it changes every time, every clock and the energy.

NVML lists the processes of a GPU by their ids on the host. In a container that list may be empty, or hold ids that
cannot be compared with ours: then nobody is accused, and a note says that it cannot be told. On a CPU nothing is
checked: other processes are always there.
"""

import os
from collections.abc import Collection

import torch

from segbench.errors import SettingError
from segbench.profiling.failure import in_words
from segbench.profiling.nvml import find, nvml, processes
from segbench.profiling.spec import Isolation

Strangers = list[tuple[int, float | None]]


def check_isolation(uuid: str | None, isolation: Isolation) -> tuple[str, ...]:
    """Notes of what else is on the GPU; with `error` other processes raise `SettingError` instead.

    To be asked before anything is measured and again afterwards: a process that came and went between is not seen.
    """
    if uuid is None:
        return ()
    others, note = strangers(uuid, {os.getpid()})
    if not others:
        return (note,) if note else ()
    found = f"other processes are on {uuid}: {', '.join(described(*other) for other in others)}"
    if isolation == "error":
        raise SettingError(f"isolation: {found}; end them, choose another GPU, or write isolation: warn")
    return (f"{found}; what was measured may be theirs",)


def described(pid: int, mib: float | None) -> str:
    return f"process {pid}" if mib is None else f"process {pid} ({mib:.0f} MiB)"


def strangers(uuid: str, own_pids: Collection[int]) -> tuple[Strangers, str | None]:
    """Ids of processes on the GPU that are not ours with their MiB, and a note where that cannot be told.

    Never raises. A process that holds no CUDA context is in no list, so its absence tells nothing; that of a process
    which holds one tells that the ids are another's.
    """
    try:
        with nvml() as lib:
            listed = processes(find(lib, uuid))
    except Exception as error:  # NVML fails in many ways; a profile does without it
        return [], f"other processes on the GPU not looked for: {in_words(error)}"
    if listed.keys().isdisjoint(own_pids) and torch.cuda.is_initialized():
        return [], (
            f"other processes on the GPU cannot be told: NVML lists {len(listed)}, and this one, which uses the GPU, "
            "is not among their ids (a container)"
        )
    return [(pid, mib) for pid, mib in listed.items() if pid not in own_pids], None
