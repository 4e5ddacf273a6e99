"""What the numbers were measured on, and in which state it was before, during and after.

A GPU's state is what NVML says: driver, power, clocks, temperature, and the reasons for which it holds its clocks down.
A CPU's is the load average of the last minute, this program's own work included, and the clock of its fastest core (the
others may idle). Settings are only read.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from segbench.profiling.failure import in_words
from segbench.profiling.nvml import Gpu, Value, find, mig_mode, nvml, read_all, readings, slice_note

CPUINFO = Path("/proc/cpuinfo")
CPUFREQ = Path("/sys/devices/system/cpu")
# NVML answers in fractions of a millisecond to some milliseconds; asked more often, it would disturb what is timed.
EVERY_MS = 50
DURING = ("sm_clock_mhz", "memory_clock_mhz", "power_w", "throttle")
GPU_KEYS = (
    *("driver", "power_limit_w", "sm_clock_mhz", "memory_clock_mhz"),
    *("power_w", "temperature_c", "utilisation_percent", "throttle", "mig"),
)


def device_name(device: torch.device) -> str:
    """`AMD EPYC 7763 64-Core Processor` or `NVIDIA H100 80GB HBM3`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    names = cpuinfo_values("model name", cpuinfo)
    return next(filter(None, names), "") or platform.processor() or platform.machine() or "unknown CPU"


def cpuinfo_values(key: str, cpuinfo: Path) -> list[str]:
    """One value a logical CPU; empty where there is no such file or line."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]


def cpu_clock_mhz(cpufreq: Path = CPUFREQ, cpuinfo: Path = CPUINFO) -> float:
    """Of the fastest core, now. Raises `OSError` where neither file says it."""
    khz = [int(path.read_text()) for path in cpufreq.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    clocks = [value / 1000 for value in khz] or [float(value) for value in cpuinfo_values("cpu MHz", cpuinfo)]
    if not clocks:
        raise OSError(f"neither {cpufreq} nor {cpuinfo} has it")
    return max(clocks)


def cuda_uuid(device: torch.device) -> str | None:
    """NVML's name of a CUDA device."""
    if device.type != "cuda":
        return None
    # Not every build of torch gives one; NVML then finds no such device and a note says so.
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", "unknown"))
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


class DeviceWatch:
    """The device's state around and during a measurement; `uuid` is that of a CUDA device, None for the CPU.

    with DeviceWatch(uuid) as watch:
        ...             # one timed sample
        watch()         # was it throttled?

    `state` has `before` and `after` (driver, power_limit_w, sm_clock_mhz, memory_clock_mhz, power_w, temperature_c,
    utilisation_percent, throttle, mig; on a CPU load_average, cpu_clock_mhz) and, of a GPU, `during` (readings,
    sm_clock_mhz and memory_clock_mhz each with min, median and max, power_max_w, throttle): plain JSON values, None
    where `notes` says why. It never raises.
    """

    def __init__(self, uuid: str | None) -> None:
        self.uuid = uuid
        self.before: dict[str, Value] = {}
        self.after: dict[str, Value] = {}
        self._readings: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._gpu: Gpu | None = None
        self._library = ExitStack()
        self._throttled: bool | None = None
        self._due_ns = 0

    def __enter__(self) -> "DeviceWatch":
        if self.uuid is not None:
            try:
                self._gpu = find(self._library.enter_context(nvml()), self.uuid)
            except Exception as error:  # NVML fails in many ways; a profile does without it
                self._notes.append(f"NVML not available: {in_words(error)}")
        self.before = self._read()
        return self

    def __exit__(self, *failure: object) -> None:
        self.after = self._read()
        self._gpu = None
        try:
            self._library.close()
        except Exception as error:
            self._notes.append(f"NVML not closed: {in_words(error)}")

    def __call__(self) -> bool | None:
        """Whether the device is throttled, by a reading at most 50 ms old; None where that cannot be told."""
        if self._gpu is None or time.perf_counter_ns() < self._due_ns:
            return self._throttled
        how = readings(self._gpu)
        values, notes = read_all({key: how[key] for key in DURING})
        self._notes += notes
        self._readings.append(values)
        self._throttled = None if values["throttle"] is None else bool(values["throttle"])
        self._due_ns = time.perf_counter_ns() + EVERY_MS * 1_000_000
        return self._throttled

    @property
    def state(self) -> dict[str, Any]:
        during = summary(self._readings) if self.uuid is not None else {}
        return {"before": self.before, "during": during, "after": self.after}

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self._notes, *throttle_notes(self._readings)]))

    def _read(self) -> dict[str, Value]:
        if self.uuid is not None and self._gpu is None:
            return dict.fromkeys(GPU_KEYS)
        values, notes = read_all(host_readings() if self._gpu is None else readings(self._gpu))
        self._notes += notes
        if self._gpu is not None:
            values["mig"] = mig_mode(self._gpu)
            self._notes += filter(None, [slice_note(self._gpu)])
        return values


def host_readings() -> dict[str, Callable[[], Value]]:
    return {"load_average": lambda: os.getloadavg()[0], "cpu_clock_mhz": cpu_clock_mhz}


def summary(taken: list[dict[str, Any]]) -> dict[str, Any]:
    """The readings of the measurement as one: extremes and medians of clocks, the highest power, reasons seen."""
    values = {key: [reading[key] for reading in taken if reading[key] is not None] for key in DURING}
    seen = dict.fromkeys(name for names in values["throttle"] for name in names)
    return {
        "readings": len(taken),
        **{key: spread(values[key]) for key in ("sm_clock_mhz", "memory_clock_mhz")},
        "power_max_w": max(values["power_w"], default=None),
        "throttle": list(seen) if values["throttle"] else None,
    }


def spread(values: list[Any]) -> dict[str, float] | None:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)} if values else None


def throttle_notes(taken: list[dict[str, Any]]) -> list[str]:
    """`throttled while timed: power cap in 3 of 40 readings`, a line a reason."""
    reasons = [name for reading in taken for name in reading["throttle"] or ()]
    return [
        f"throttled while timed: {name} in {reasons.count(name)} of {len(taken)} readings"
        for name in dict.fromkeys(reasons)
    ]
