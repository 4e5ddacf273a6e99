"""Stands in for the pynvml module: GPUs made of plain answers. What the real module lacks is an error here too."""

import sys
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

GPU, OTHER_GPU, SLICE = "GPU-1234", "GPU-9999", "MIG-5678"


def refusal(code: int = pynvml.NVML_ERROR_NOT_SUPPORTED) -> Exception:
    """What pynvml raises, as `Not Supported`."""
    return pynvml.NVMLError(code)


def process(pid: int, gib: float | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=None if gib is None else int(gib * 2**30))


def gpu(**answers: Any) -> dict[str, Any]:
    """A GPU's answers by the end of the function's name (`PowerUsage`); an exception is raised, a function called."""
    return {
        "EnforcedPowerLimit": 350_000,
        "ClockInfo": lambda kind: {pynvml.NVML_CLOCK_SM: 1410, pynvml.NVML_CLOCK_MEM: 2619}[kind],
        "PowerUsage": 120_500,
        "Temperature": lambda sensor: {pynvml.NVML_TEMPERATURE_GPU: 41}[sensor],
        "UtilizationRates": SimpleNamespace(gpu=7, memory=3),
        "CurrentClocksEventReasons": 0x1,
        "TotalEnergyConsumption": 1_000_000,
        "MigMode": refusal(),
        "MemoryInfo": SimpleNamespace(used=4 * 2**30),
        "ComputeRunningProcesses": [process(77, 3), process(78, None)],
        "GraphicsRunningProcesses": [],
    } | answers


class FakeNvml:
    """The module, with these GPUs by UUID; it must be initialised, and counts how often it is opened and asked."""

    def __init__(self, gpus: dict[str, dict[str, Any]]) -> None:
        self.gpus = gpus
        self.open = self.opened = 0
        self.asked: list[str] = []

    def nvmlInit(self) -> None:
        self.open += 1
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.1"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> dict[str, Any]:
        assert self.open
        if uuid not in self.gpus:
            raise refusal(pynvml.NVML_ERROR_NOT_FOUND)
        return self.gpus[uuid]

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: dict[str, Any]) -> dict[str, Any]:
        return self.gpus[handle["board"]]

    def __getattr__(self, name: str) -> Any:
        real = getattr(pynvml, name)
        if not name.startswith("nvmlDeviceGet"):
            return real

        def ask(handle: dict[str, Any], *arguments: Any) -> Any:
            assert self.open, f"{name} after nvmlShutdown"
            key = name.removeprefix("nvmlDeviceGet")
            self.asked.append(key)
            answer = handle[key] if key in handle else refusal()
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return ask


class NoNvml:
    @staticmethod
    def nvmlInit() -> None:
        raise refusal(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


def installed(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> FakeNvml:
    """A machine with two GPUs, the first of which gives these answers."""
    fake = FakeNvml({OTHER_GPU: gpu(PowerUsage=9_000, ClockInfo=refusal()), GPU: gpu(**answers)})
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake
