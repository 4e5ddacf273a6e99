"""All that is asked of NVML, NVIDIA's management library: a GPU found by its UUID and read, its settings never changed.

Source: https://docs.nvidia.com/deploy/nvml-api. CUDA numbers its devices by CUDA_VISIBLE_DEVICES, NVML does not, hence
the UUID. Under MIG a CUDA device is a slice of a GPU: memory and processes are asked of the slice; clocks, power and
energy of the whole GPU, which alone has them. Some versions of CUDA give a slice the UUID of its GPU, and then all is
asked of the whole. NVML may be absent, and any reading may be refused: the functions that say so never raise, and give
None and a note that says why.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from segbench.profiling.failure import in_words
from segbench.profiling.resident import MIB

# nvml.h, nvmlClocksEventReasons: why clocks are lower than they could be. Two more are no throttling: an idle GPU
# (0x1) and clocks that somebody set (0x2).
NOT_THROTTLED = 0x1 | 0x2
THROTTLE_REASONS = {
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal slowdown (software)",
    0x040: "thermal slowdown (hardware)",
    0x080: "power brake (hardware)",
    0x100: "display clock setting",
    0x200: "board limit",
    0x400: "reliability limit",
}

Value = str | float | list[str] | None


class Gpu(NamedTuple):
    """NVML's handles: `device` has memory and processes, `board` clocks and power; they differ for a slice (MIG)."""

    lib: Any
    device: Any
    board: Any


class NvmlMemory(NamedTuple):
    """MiB in use: by one process (None where the process list hides it) and on the whole device."""

    process_mib: float | None
    device_mib: float | None
    note: str | None


@contextmanager
def nvml() -> Iterator[Any]:
    """The pynvml module, initialised. Raises whatever its absence raises."""
    import pynvml  # here: a machine without NVIDIA's driver needs none of it

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def find(lib: Any, uuid: str) -> Gpu:
    """The GPU or slice of this UUID; raises NVML's own error where there is none."""
    try:
        device = lib.nvmlDeviceGetHandleByUUID(uuid)
    except Exception:
        if not uuid.startswith("GPU-"):
            raise
        # PyTorch gives a slice's UUID without saying that it is one.
        uuid = uuid.replace("GPU-", "MIG-", 1)
        device = lib.nvmlDeviceGetHandleByUUID(uuid)
    sliced = uuid.startswith("MIG-")
    return Gpu(lib, device, lib.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device) if sliced else device)


def readings(gpu: Gpu) -> dict[str, Callable[[], Value]]:
    """How each key of the state is read. NVML gives power in milliwatts."""
    lib, board = gpu.lib, gpu.board
    return {
        "driver": lambda: _text(lib.nvmlSystemGetDriverVersion()),
        "power_limit_w": lambda: lib.nvmlDeviceGetEnforcedPowerLimit(board) / 1000,
        "sm_clock_mhz": lambda: float(lib.nvmlDeviceGetClockInfo(board, lib.NVML_CLOCK_SM)),
        "memory_clock_mhz": lambda: float(lib.nvmlDeviceGetClockInfo(board, lib.NVML_CLOCK_MEM)),
        "power_w": lambda: power_mw(gpu) / 1000,
        "temperature_c": lambda: float(lib.nvmlDeviceGetTemperature(board, lib.NVML_TEMPERATURE_GPU)),
        "utilisation_percent": lambda: float(lib.nvmlDeviceGetUtilizationRates(board).gpu),
        "throttle": lambda: throttle_names(throttle_bits(gpu)),
    }


def read_all(how: dict[str, Callable[[], Value]]) -> tuple[dict[str, Value], list[str]]:
    """Each reading, None with a note where it is refused: one that a device does not give must not cost the others."""
    values: dict[str, Value] = dict.fromkeys(how)
    notes = []
    for key, read in how.items():
        try:
            values[key] = read()
        except Exception as error:  # NVML fails in many ways
            notes.append(f"{key} not read: {in_words(error)}")
    return values, notes


def power_mw(gpu: Gpu) -> float:
    """The whole board's; on recent GPUs the mean of the last second."""
    return float(gpu.lib.nvmlDeviceGetPowerUsage(gpu.board))


def energy_mj(gpu: Gpu) -> float:
    """The whole board's since the driver was loaded; Volta and newer. It moves every 20 to 100 ms."""
    return float(gpu.lib.nvmlDeviceGetTotalEnergyConsumption(gpu.board))


def throttle_bits(gpu: Gpu) -> int:
    try:
        return gpu.lib.nvmlDeviceGetCurrentClocksEventReasons(gpu.board)
    except Exception:  # the name before driver 535
        return gpu.lib.nvmlDeviceGetCurrentClocksThrottleReasons(gpu.board)


def throttle_names(bits: int) -> list[str]:
    """`0x24` -> `["power cap", "thermal slowdown (software)"]`; reasons of later drivers by their number."""
    names = [name for bit, name in THROTTLE_REASONS.items() if bits & bit]
    unknown = bits & ~NOT_THROTTLED & ~sum(THROTTLE_REASONS)
    return [*names, f"reason 0x{unknown:x}"] if unknown else names


def mig_mode(gpu: Gpu) -> bool:
    try:
        return gpu.lib.nvmlDeviceGetMigMode(gpu.board)[0] == 1
    except Exception:  # a GPU that cannot be divided does not answer
        return False


def slice_note(gpu: Gpu) -> str | None:
    """What is the whole GPU's although CUDA may work on a slice of it; None where no GPU is divided."""
    if not mig_mode(gpu):
        return None
    whole = "MIG mode is on: clocks, power, energy and throttling are of the whole GPU, all its slices"
    known_alone = gpu.device is gpu.board
    return f"{whole}; so are memory and processes, for the slice has the UUID of its GPU" if known_alone else whole


def processes(gpu: Gpu) -> dict[int, float | None]:
    """Ids of the processes that compute or draw on the device, and their MiB where NVML tells."""
    listed = list(gpu.lib.nvmlDeviceGetComputeRunningProcesses(gpu.device))
    with suppress(Exception):  # a slice, or a GPU that draws nothing, has no such list
        listed += gpu.lib.nvmlDeviceGetGraphicsRunningProcesses(gpu.device)
    mib: dict[int, float | None] = {}
    for process in listed:
        used = None if process.usedGpuMemory is None else process.usedGpuMemory / MIB
        mib[process.pid] = used if mib.get(process.pid) is None else mib[process.pid]
    return mib


def nvml_memory(uuid: str, process_id: int) -> NvmlMemory:
    """What NVML says is in use now. Never raises."""
    try:
        with nvml() as lib:
            gpu = find(lib, uuid)
            device_mib = lib.nvmlDeviceGetMemoryInfo(gpu.device).used / MIB
            process_mib = processes(gpu).get(process_id)
            shared = slice_note(gpu) if gpu.device is gpu.board else None
    except Exception as error:
        return NvmlMemory(None, None, f"NVML not available: {in_words(error)}")
    hidden = "NVML's process list hides this process (a container or MIG); see the device's difference"
    notes = [hidden if process_mib is None else None, shared]
    return NvmlMemory(process_mib, device_mib, "; ".join(filter(None, notes)) or None)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
