"""What the numbers were measured on: the device's name, and what NVML says of driver, power limit, clocks and memory.

NVML is only read, never asked to change a setting, and may be absent: then the values are None and a note says why.
CUDA numbers its devices by CUDA_VISIBLE_DEVICES, NVML does not, so a device is found by its UUID.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from segbench.profiling.failure import in_words

MIB = 2**20
CPUINFO = Path("/proc/cpuinfo")


class NvmlMemory(NamedTuple):
    """MiB in use: by one process (None where the process list hides it) and on the whole device."""

    process_mib: float | None
    device_mib: float | None
    note: str | None


def device_name(device: torch.device) -> str:
    """`AMD EPYC 7763 64-Core Processor` or `NVIDIA H100 80GB HBM3`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), "") or platform.processor() or platform.machine() or "unknown CPU"


def cuda_uuid(device: torch.device) -> str | None:
    """NVML's name of a CUDA device."""
    if device.type != "cuda":
        return None
    # Not every build of torch gives one; NVML then finds no such device and a note says so.
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", "unknown"))
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


@contextmanager
def nvml() -> Iterator[Any]:
    """The pynvml module, initialised. Raises whatever its absence raises."""
    import pynvml  # here: a machine without NVIDIA's driver needs none of it

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def device_state(uuid: str | None) -> tuple[dict[str, str | float | None], tuple[str, ...]]:
    """Driver, power limit (W) and clocks (MHz) of a CUDA device now, and notes; empty for a CPU. Never raises."""
    if uuid is None:
        return {}, ()
    state: dict[str, str | float | None] = dict.fromkeys(
        ("driver", "power_limit_w", "sm_clock_mhz", "memory_clock_mhz")
    )
    notes = []
    try:
        with nvml() as lib:
            handle = lib.nvmlDeviceGetHandleByUUID(uuid)
            for key, read in readings(lib, handle).items():
                try:
                    state[key] = read()
                except Exception as error:  # one reading that this device does not give must not cost the others
                    notes.append(f"{key} not read: {in_words(error)}")
    except Exception as error:  # NVML fails in many ways; a profile does without it
        notes.append(f"NVML not available: {in_words(error)}")
    return state, tuple(notes)


def readings(lib: Any, handle: Any) -> dict[str, Callable[[], str | float]]:
    """How each key of the state is read. NVML gives the power limit in milliwatts."""
    return {
        "driver": lambda: _text(lib.nvmlSystemGetDriverVersion()),
        "power_limit_w": lambda: lib.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "sm_clock_mhz": lambda: float(lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_SM)),
        "memory_clock_mhz": lambda: float(lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_MEM)),
    }


def nvml_memory(uuid: str, process_id: int) -> NvmlMemory:
    """What NVML says is in use now. Never raises."""
    try:
        with nvml() as lib:
            handle = lib.nvmlDeviceGetHandleByUUID(uuid)
            device_mib = lib.nvmlDeviceGetMemoryInfo(handle).used / MIB
            process_mib = _process_mib(lib, handle, process_id)
    except Exception as error:
        return NvmlMemory(None, None, f"NVML not available: {in_words(error)}")
    hidden = "NVML's process list hides this process (a container or MIG); see the device's difference"
    return NvmlMemory(process_mib, device_mib, hidden if process_mib is None else None)


def _process_mib(lib: Any, handle: Any, process_id: int) -> float | None:
    """None where the list has another process namespace's ids, or withholds the number."""
    for process in lib.nvmlDeviceGetComputeRunningProcesses(handle):
        if process.pid == process_id and process.usedGpuMemory is not None:
            return float(process.usedGpuMemory / MIB)
    return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
