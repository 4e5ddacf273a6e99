"""The state of the device and who else is on it, from a fake NVML: every field, refusals, no library, slices."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest
import torch
from fake_nvml import GPU, OTHER_GPU, SLICE, FakeNvml, NoNvml, gpu, installed, process, refusal

from segbench.errors import SettingError
from segbench.profiling import device as device_module
from segbench.profiling.device import DeviceWatch, cpu_clock_mhz, cpu_name, host_readings
from segbench.profiling.isolation import check_isolation, strangers
from segbench.profiling.nvml import THROTTLE_REASONS, find, nvml, nvml_memory, readings, throttle_names

IDLE = {
    "driver": "570.1",
    "power_limit_w": 350.0,
    "sm_clock_mhz": 1410.0,
    "memory_clock_mhz": 2619.0,
    "power_w": 120.5,
    "temperature_c": 41.0,
    "utilisation_percent": 7.0,
    "throttle": [],
    "mig": False,
}


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns = 10**15
        monkeypatch.setattr(device_module.time, "perf_counter_ns", lambda: self.ns)

    def advance(self, ms: float) -> None:
        self.ns += int(ms * 1e6)


@pytest.fixture(autouse=True)
def no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever tests ran before, this process has not used the GPU."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


# --- names ---


def test_cpu_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nmodel name\t: Abacus 9\nmodel name\t: Abacus 9\n")
    assert cpu_name(listing) == "Abacus 9"
    monkeypatch.setattr(device_module.platform, "processor", lambda: "x86")
    assert cpu_name(tmp_path / "absent") == "x86"


def test_the_clock_of_a_cpu_is_that_of_its_fastest_core(tmp_path: Path) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text("cpu MHz\t\t: 800.000\ncpu MHz\t\t: 2445.430\n")
    assert cpu_clock_mhz(tmp_path, listing) == 2445.43
    for core, khz in (("cpu0", 3_400_000), ("cpu11", 3_600_000)):
        (tmp_path / core / "cpufreq").mkdir(parents=True)
        (tmp_path / core / "cpufreq" / "scaling_cur_freq").write_text(f"{khz}\n")
    assert cpu_clock_mhz(tmp_path, listing) == 3600.0
    with pytest.raises(OSError, match="neither"):
        cpu_clock_mhz(tmp_path / "absent", tmp_path / "absent")


# --- reasons ---


def test_the_reasons_are_those_of_the_installed_header() -> None:
    def bit(name: str) -> int:
        return getattr(pynvml, f"nvmlClocksEventReason{name}", 0) or getattr(pynvml, f"nvmlClocksThrottleReason{name}")

    words = {
        "SwPowerCap": "power cap",
        "HwSlowdown": "hardware slowdown",
        "SyncBoost": "sync boost",
        "SwThermalSlowdown": "thermal slowdown (software)",
        "HwThermalSlowdown": "thermal slowdown (hardware)",
        "HwPowerBrakeSlowdown": "power brake (hardware)",
        "DisplayClockSetting": "display clock setting",
        "BoardLimit": "board limit",
        "Reliability": "reliability limit",
    }
    assert {bit(name): word for name, word in words.items()} == THROTTLE_REASONS
    harmless = bit("GpuIdle") | bit("ApplicationsClocksSetting")
    assert throttle_names(harmless) == []
    assert throttle_names(pynvml.nvmlClocksThrottleReasonAll) == list(THROTTLE_REASONS.values())
    assert throttle_names(harmless | 0x24) == ["power cap", "thermal slowdown (software)"]
    assert throttle_names(0x804) == ["power cap", "reason 0x800"]


# --- state ---


def test_the_state_is_read_before_during_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, fake = Clock(monkeypatch), installed(monkeypatch)
    with DeviceWatch(GPU) as watch:
        for sm, reasons, milliwatts in ((1300, 0x1, 300_000), (1980, 0x4, 349_000), (1500, 0x24, 340_000)):
            fake.gpus[GPU] |= {
                "ClockInfo": lambda kind, sm=sm: sm if kind == pynvml.NVML_CLOCK_SM else 2619,
                "CurrentClocksEventReasons": reasons,
                "PowerUsage": milliwatts,
            }
            assert watch() is (reasons != 0x1)
            clock.advance(50)
        fake.gpus[GPU] |= gpu(Temperature=60)
    assert watch.notes == (
        "throttled while timed: power cap in 2 of 3 readings",
        "throttled while timed: thermal slowdown (software) in 1 of 3 readings",
    )
    assert watch.state == {
        "before": IDLE,
        "during": {
            "readings": 3,
            "sm_clock_mhz": {"min": 1300.0, "median": 1500.0, "max": 1980.0},
            "memory_clock_mhz": {"min": 2619.0, "median": 2619.0, "max": 2619.0},
            "power_max_w": 349.0,
            "throttle": ["power cap", "thermal slowdown (software)"],
        },
        "after": IDLE | {"temperature_c": 60.0},
    }
    assert json.loads(json.dumps(watch.state)) == watch.state
    assert (fake.opened, fake.open) == (1, 0)


def test_nvml_is_asked_once_in_fifty_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, fake = Clock(monkeypatch), installed(monkeypatch, CurrentClocksEventReasons=0x4)
    with DeviceWatch(GPU) as watch:
        fake.asked.clear()
        assert watch() is True
        asked = len(fake.asked)
        fake.gpus[GPU]["CurrentClocksEventReasons"] = 0
        clock.advance(49)
        assert watch() is True
        assert len(fake.asked) == asked == 4
        clock.advance(1)
        assert watch() is False
    assert watch.state["during"]["readings"] == 2


def test_drivers_before_535_have_the_reasons_by_their_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = refusal(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    installed(monkeypatch, CurrentClocksEventReasons=absent, CurrentClocksThrottleReasons=0x40)
    with DeviceWatch(GPU) as watch:
        assert watch() is True
    assert watch.state["before"]["throttle"] == ["thermal slowdown (hardware)"]


@pytest.mark.parametrize("key", [key for key in IDLE if key != "mig"])
def test_a_refused_reading_costs_no_other(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = installed(monkeypatch)
    answers = {
        "driver": "nvmlSystemGetDriverVersion",
        "power_limit_w": "EnforcedPowerLimit",
        "power_w": "PowerUsage",
        "temperature_c": "Temperature",
        "utilisation_percent": "UtilizationRates",
        "throttle": "CurrentClocksEventReasons",
    }
    denied = refusal(pynvml.NVML_ERROR_NO_PERMISSION)

    def clock_info(kind: int) -> int:
        if kind == (pynvml.NVML_CLOCK_SM if key == "sm_clock_mhz" else pynvml.NVML_CLOCK_MEM):
            raise denied
        return 1410 if kind == pynvml.NVML_CLOCK_SM else 2619

    def driver() -> bytes:
        raise denied

    if key == "driver":
        monkeypatch.setattr(fake, "nvmlSystemGetDriverVersion", driver)
    else:
        fake.gpus[GPU] |= {answers.get(key, "ClockInfo"): denied if key in answers else clock_info}
    with DeviceWatch(GPU) as watch:
        assert watch() is (None if key == "throttle" else False)
    assert watch.state["before"] == watch.state["after"] == IDLE | {key: None}
    words = "Not Supported" if key == "throttle" else "Insufficient Permissions"  # the older name is asked last
    assert [note.partition(": ")[0] for note in watch.notes] == [f"{key} not read"]
    assert watch.notes[0].endswith(words)


def test_what_is_refused_during_the_measurement_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    installed(monkeypatch, ClockInfo=refusal(), PowerUsage=refusal(), CurrentClocksEventReasons=refusal())
    with DeviceWatch(GPU) as watch:
        assert watch() is None
    assert watch.state["during"] == {
        "readings": 1,
        "sm_clock_mhz": None,
        "memory_clock_mhz": None,
        "power_max_w": None,
        "throttle": None,
    }


@pytest.mark.parametrize("absent", [NoNvml, None])
def test_without_nvml_nothing_is_known_and_nothing_raises(monkeypatch: pytest.MonkeyPatch, absent: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", absent)  # None: the import itself fails
    with DeviceWatch(GPU) as watch:
        assert watch() is None
    assert len(watch.notes) == 1 and watch.notes[0].startswith("NVML not available: ")
    assert watch.state["before"] == watch.state["after"] == dict.fromkeys(IDLE)
    assert watch.state["during"]["readings"] == 0
    assert nvml_memory(GPU, 1)[:2] == (None, None)
    assert check_isolation(GPU, "error")[0].startswith("other processes on the GPU not looked for: ")


def test_a_measurement_that_fails_closes_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = installed(monkeypatch)
    with pytest.raises(RuntimeError, match="odd"), DeviceWatch(GPU):
        raise RuntimeError("odd")
    assert fake.open == 0


def test_a_gpu_that_nvml_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = installed(monkeypatch)
    with DeviceWatch("GPU-unknown") as watch:
        assert watch() is None
    assert watch.notes == ("NVML not available: NVMLError_NotFound: Not Found",)
    assert fake.open == 0


def test_each_gpu_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with nvml() as lib:
        assert [readings(find(lib, uuid))["power_w"]() for uuid in (GPU, OTHER_GPU)] == [120.5, 9.0]


def test_the_state_of_a_cpu_is_its_load_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([(0.5, 1, 1), (1.5, 1, 1)])
    monkeypatch.setattr(os, "getloadavg", lambda: next(loads))
    monkeypatch.setattr(device_module, "cpu_clock_mhz", lambda: 2445.0)
    with DeviceWatch(None) as watch:
        assert watch() is None
    assert watch.state == {
        "before": {"load_average": 0.5, "cpu_clock_mhz": 2445.0},
        "during": {},
        "after": {"load_average": 1.5, "cpu_clock_mhz": 2445.0},
    }
    assert watch.notes == ()


def test_a_cpu_that_does_not_tell_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> float:
        raise OSError("neither file")

    monkeypatch.setattr(device_module, "cpu_clock_mhz", unreadable)
    assert host_readings()["cpu_clock_mhz"] is unreadable
    with DeviceWatch(None) as watch:
        pass
    assert watch.state["before"]["cpu_clock_mhz"] is None
    assert watch.notes == ("cpu_clock_mhz not read: OSError: neither file",)


# --- slices ---


@pytest.fixture
def sliced(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A GPU in MIG mode, and a slice of it that has memory and processes only, as NVML has it."""
    fake = installed(monkeypatch, MigMode=[1, 1], UtilizationRates=refusal())
    memory = {key: gpu()[key] for key in ("MemoryInfo", "ComputeRunningProcesses")}
    fake.gpus[SLICE] = memory | {"board": GPU, "ComputeRunningProcesses": [process(5, 1)]}
    return fake


@pytest.mark.parametrize("uuid", [SLICE, SLICE.replace("MIG-", "GPU-")])
def test_a_slice_has_the_clocks_of_its_gpu_and_its_own_processes(uuid: str, sliced: FakeNvml) -> None:
    """Under either name: PyTorch leaves out what kind of UUID it is."""
    with DeviceWatch(uuid) as watch:
        assert watch() is False
    assert watch.state["before"] == IDLE | {"utilisation_percent": None, "mig": True}
    assert any(note.startswith("MIG mode is on: clocks, power, energy") for note in watch.notes)
    assert not any("memory" in note for note in watch.notes)
    assert strangers(uuid, {1}) == ([(5, 1024.0)], None)
    assert nvml_memory(uuid, 5) == (1024.0, 4096.0, None)


def test_a_slice_that_has_the_uuid_of_its_gpu_is_told(sliced: FakeNvml) -> None:
    """As some versions of CUDA give it: then memory and processes are the whole GPU's too."""
    whole = "so are memory and processes, for the slice has the UUID of its GPU"
    with DeviceWatch(GPU) as watch:
        pass
    assert any(whole in note for note in watch.notes)
    process_mib, device_mib, note = nvml_memory(GPU, 77)
    assert (process_mib, device_mib) == (3072.0, 4096.0) and whole in (note or "")
    assert "hides" in (nvml_memory(GPU, 1).note or "") and whole in (nvml_memory(GPU, 1).note or "")


# --- memory ---


def test_nvml_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert nvml_memory(GPU, 77) == (3072.0, 4096.0, None)
    for hidden in (78, 1):  # withheld, and not listed
        reading = nvml_memory(GPU, hidden)
        assert reading[:2] == (None, 4096.0)
        assert "hides" in (reading.note or "")


# --- isolation ---


def test_strangers_are_told_and_own_processes_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = [process(77, None), process(78, 0.5), process(90, None)]
    installed(monkeypatch, GraphicsRunningProcesses=drawing)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert nvml_memory(GPU, 77).process_mib == 3072.0
    assert strangers(GPU, {77}) == ([(78, 512.0), (90, None)], None)
    assert strangers(GPU, {77, 78, 90}) == ([], None)


def test_a_gpu_without_a_list_of_drawing_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, GraphicsRunningProcesses=refusal())
    assert strangers(GPU, {77}) == ([(78, None)], None)


@pytest.mark.parametrize("listed", [[], [process(4711, 2)]])
def test_ids_of_another_namespace_accuse_nobody(listed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """This process uses the GPU and is not in the list: the list is the host's, or is hidden."""
    installed(monkeypatch, ComputeRunningProcesses=listed)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    found, note = strangers(GPU, {os.getpid()})
    assert found == []
    assert f"cannot be told: NVML lists {len(listed)}, and this one" in (note or "")
    assert check_isolation(GPU, "error") == (note,)


def test_isolation_warns_or_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    found = f"other processes are on {GPU}: process 77 (3072 MiB), process 78"
    assert check_isolation(GPU, "warn") == (f"{found}; what was measured may be theirs",)
    with pytest.raises(SettingError) as stopped:
        check_isolation(GPU, "error")
    assert str(stopped.value) == f"isolation: {found}; end them, choose another GPU, or write isolation: warn"


def test_a_gpu_of_our_own_has_no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, ComputeRunningProcesses=[process(os.getpid(), 1)])
    assert check_isolation(GPU, "error") == ()
    assert check_isolation(None, "error") == ()  # a CPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    uuid = device_module.cuda_uuid(torch.device("cuda", 0))
    torch.zeros(1, device="cuda")
    with DeviceWatch(uuid) as watch:
        watch()
    assert watch.state["before"]["driver"] and watch.state["during"]["readings"] == 1, watch.notes
    check_isolation(uuid, "warn")
