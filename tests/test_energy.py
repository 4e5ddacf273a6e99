"""Energy by a fake clock: counters that move in steps, power that is integrated, RAPL folders, and none of them."""

import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pynvml
import pytest
import torch
from fake_nvml import GPU, SLICE, NoNvml, installed, refusal

from segbench.profiling import energy
from segbench.profiling.energy import NoMeterError, PowerIntegral, Rapl, energy_of, metered

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Clock:
    """Time that passes only in passes of the model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr(energy.time, "perf_counter", lambda: self.seconds)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    def passing(self, seconds: float) -> Callable[[], None]:
        def one_pass() -> None:
            self.seconds += seconds

        return one_pass

    def stepping(self, watts: float, every_s: float) -> Callable[[], float]:
        """A counter in mJ that moves once in `every_s`."""
        return lambda: (self.seconds + 1e-9) // every_s * every_s * watts * 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power is then read at the calls alone, and nothing depends on when a thread runs."""
    monkeypatch.setattr(PowerIntegral, "_sample", lambda self: None)


# --- from one step of the meter to another ---


def test_steps_that_fall_on_passes_are_exact(clock: Clock) -> None:
    """50 W, passes of 25 ms, steps of 100 ms: 4 passes a step, and 1 s is 40 passes; the next step is 4 more."""
    taken = metered(clock.passing(0.025), clock.stepping(50, 0.1), min_seconds=1.0)
    assert taken.passes == 44
    assert taken.mj == pytest.approx(50_000 * 1.1)
    assert taken.mj / taken.passes == pytest.approx(50_000 * 0.025)
    assert taken.seconds == pytest.approx(1.1)


def test_steps_that_fall_between_passes_are_right_to_one_pass(clock: Clock) -> None:
    taken = metered(clock.passing(0.03), clock.stepping(50, 0.1), min_seconds=1.0)
    assert taken.mj / taken.passes == pytest.approx(1500, rel=1 / taken.passes)


def test_long_passes_are_run_three_times_at_least(clock: Clock) -> None:
    taken = metered(clock.passing(5.0), clock.stepping(10, 0.1), min_seconds=1.0)
    assert taken.passes == 4  # three, and the one that shows the next step
    assert taken.mj == pytest.approx(4 * 5 * 10_000)


def test_a_counter_that_stands_still_is_no_counter(clock: Clock) -> None:
    with pytest.raises(NoMeterError, match="stood still for 1 s"):
        metered(clock.passing(0.3), lambda: 0.0, min_seconds=1.0)
    assert clock.seconds == pytest.approx(1001.2)


# --- GPU ---


def test_energy_is_shared_among_the_images(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    synchronised: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", synchronised.append)
    fake = installed(monkeypatch, TotalEnergyConsumption=clock.stepping(300, 0.1))
    given = energy_of(clock.passing(0.05), 4, CUDA, GPU)
    assert given.mj == pytest.approx(300_000 * 0.05 / 4)
    assert given.source == "whole GPU by NVML's energy counter"
    assert given.note == f"energy_mj is of the {given.source}, idle power included: 22 passes in 1.10 s"
    assert synchronised == [CUDA] * (22 + 2)  # the first step took two passes more
    assert fake.open == 0


def test_a_longer_measurement_is_as_long_as_asked(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    installed(monkeypatch, TotalEnergyConsumption=clock.stepping(300, 0.1))
    given = energy_of(clock.passing(0.05), 1, CUDA, GPU, min_seconds=3.0)
    assert given.mj == pytest.approx(300_000 * 0.05)
    assert "62 passes in 3.10 s" in (given.note or "")


@pytest.mark.usefixtures("no_thread")
def test_without_a_counter_power_is_integrated(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    fake = installed(monkeypatch, TotalEnergyConsumption=refusal(), PowerUsage=80_000)
    given = energy_of(clock.passing(0.25), 2, CUDA, GPU)
    assert given.mj == pytest.approx(80_000 * 0.25 / 2)
    assert given.source == "whole GPU by NVML's power readings, integrated"
    assert fake.open == 0


@pytest.mark.usefixtures("no_thread")
def test_a_counter_that_stands_still_gives_way_to_power(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    fake = installed(monkeypatch, TotalEnergyConsumption=5_000, PowerUsage=80_000)
    given = energy_of(clock.passing(0.25), 2, CUDA, GPU)
    assert given.mj == pytest.approx(80_000 * 0.25 / 2)
    assert given.source == "whole GPU by NVML's power readings, integrated"
    assert (given.note or "").startswith(f"energy_mj is of the {given.source}, idle power included: ")
    assert (given.note or "").endswith("; whole GPU by NVML's energy counter: it has stood still for 1 s of work")
    assert fake.open == 0


def test_nvml_is_not_asked_after_every_pass(clock: Clock) -> None:
    """Passes of 1 ms and a counter that moves every 100 ms: asked every 10 ms, that is 2 + 20 times in two steps."""
    read, asked = clock.stepping(50, 0.1), []
    taken = metered(clock.passing(0.001), lambda: asked.append(clock.seconds) or read(), min_seconds=1.0)
    assert len(asked) <= 2 + 20
    assert min(later - earlier for earlier, later in pairwise(asked)) > 0.0099
    assert taken.mj / taken.passes == pytest.approx(50, rel=0.02)


@pytest.mark.usefixtures("no_thread")
def test_power_is_integrated_by_trapezoids(clock: Clock) -> None:
    """10 W, after 1 s 30 W, after 2 s more 20 W: 20 J and 50 J."""
    power = iter([10_000, 30_000, 20_000])
    with PowerIntegral(lambda: next(power)) as read:
        clock.seconds += 1
        assert read() == pytest.approx(20_000)
        clock.seconds += 2
        assert read() == pytest.approx(70_000)


def test_the_thread_reads_power_while_a_pass_runs() -> None:
    enough, readings = threading.Event(), [0]

    def power_mw() -> float:
        readings[0] += 1
        if readings[0] == 4:
            enough.set()
        return 1000.0

    begin = time.perf_counter()
    with PowerIntegral(power_mw) as read:
        assert enough.wait(10)
        mj = read()
    assert 3 * energy.POWER_EVERY_S * 1000 <= mj <= (time.perf_counter() - begin) * 1000
    assert not read._thread.is_alive()


def test_a_reading_that_fails_in_the_thread_is_not_lost() -> None:
    failed, readings = threading.Event(), [0]

    def power_mw() -> float:
        readings[0] += 1
        if readings[0] == 2:
            failed.set()
            raise refusal(pynvml.NVML_ERROR_GPU_IS_LOST)
        return 1000.0

    with PowerIntegral(power_mw) as read:
        assert failed.wait(10)
        read._thread.join(10)
        with pytest.raises(pynvml.NVMLError, match="GPU is lost"):
            read()


def test_a_slices_energy_is_that_of_its_gpu(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    fake = installed(monkeypatch, TotalEnergyConsumption=clock.stepping(300, 0.1), MigMode=[1, 1])
    fake.gpus[SLICE] = {"board": GPU}
    given = energy_of(clock.passing(0.05), 1, CUDA, SLICE)
    assert given.mj == pytest.approx(15_000)
    assert given.source == "whole GPU, all its MIG slices, by NVML's energy counter"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"TotalEnergyConsumption": refusal(), "PowerUsage": refusal()}, "Not Supported"),
        (
            {"TotalEnergyConsumption": refusal(), "PowerUsage": refusal(pynvml.NVML_ERROR_NO_PERMISSION)},
            "Insufficient Permissions",
        ),
        ({"TotalEnergyConsumption": 0, "PowerUsage": refusal()}, "it has stood still for 1 s of work; whole GPU by"),
        ({"TotalEnergyConsumption": 0, "PowerUsage": 0}, "readings, integrated: it has stood still"),
    ],
)
def test_a_gpu_that_does_not_tell(
    answers: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    installed(monkeypatch, **answers)
    mj, source, note = energy_of(clock.passing(0.3), 1, CUDA, GPU)
    assert (mj, source) == (None, None)
    assert note and note.startswith("energy not measured: ") and said in note


def test_without_nvml_there_is_no_energy_of_a_gpu(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", NoNvml)
    given = energy_of(clock.passing(0.3), 1, CUDA, GPU)
    assert given.note == "energy not measured: NVMLError_LibraryNotFound: NVML Shared Library Not Found"
    assert energy_of(clock.passing(0.3), 1, CUDA, None).mj is None


def test_a_model_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    def fails() -> None:
        raise ValueError("odd size")

    installed(monkeypatch)
    assert energy_of(fails, 1, CUDA, GPU) == (None, None, "energy not measured: ValueError: odd size")


# --- CPU ---


def domain(powercap: Path, folder: str, name: str, energy_uj: int, range_uj: int = 1_000_000) -> Path:
    place = powercap / folder
    place.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", range_uj)):
        (place / file).write_text(f"{value}\n")
    return place / "energy_uj"


def test_rapl_sums_packages_alone(tmp_path: Path) -> None:
    """A platform's domain, cores and memory would be counted twice, or are not the processor."""
    counters = [
        domain(tmp_path, folder, name, 1000)
        for folder, name in (
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:1", "package-1"),
            ("intel-rapl:2", "psys"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:0:1", "dram"),
            ("intel-rapl-mmio:0", "package-0"),
        )
    ]
    read = Rapl(tmp_path)
    assert read() == 0
    for counter, more in zip(counters, (5000, 20_000, 10**5, 10**5, 10**5, 10**5), strict=True):
        counter.write_text(f"{1000 + more}\n")
    assert read() == 25.0  # mJ


def test_rapl_begins_again_at_its_range(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 900_000, range_uj=1_000_000)
    read = Rapl(tmp_path)
    for value, mj in ((950_000, 50), (150_000, 250), (100_000, 1200)):
        counter.write_text(str(value))
        assert read() == mj


def test_energy_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock) -> None:
    """20 W in passes of 100 ms, over a counter that begins again at 21 J."""
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 0, range_uj=21_000_000)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)

    def one_pass() -> None:
        clock.seconds += 0.1
        counter.write_text(str(round((clock.seconds - 1000) * 20e6) % 21_000_000))

    given = energy_of(one_pass, 2, CPU, None)
    assert given.mj == pytest.approx(1000)
    assert given.source == "processor packages by RAPL"
    assert "idle power included" in (given.note or "")


def test_a_cpu_without_rapl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    given = energy_of(lambda: None, 1, CPU, None)
    assert given == (
        None,
        None,
        f"energy not measured: no RAPL counter of a processor package in {tmp_path}",
    )


def test_a_cpu_whose_counter_is_for_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    read_text = Path.read_text

    def denied(self: Path, *arguments: Any) -> str:
        if self == counter:
            raise PermissionError(13, "Permission denied")
        return read_text(self, *arguments)

    monkeypatch.setattr(Path, "read_text", denied)  # tests may run as root, who may read everything
    given = energy_of(lambda: None, 1, CPU, None)
    assert given.mj is None
    assert given.note == f"energy not measured: {counter}: permission denied; most systems let only root read it"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    from segbench.profiling.device import cuda_uuid

    square = torch.rand(2048, 2048, device="cuda")
    given = energy_of(lambda: square @ square, 1, CUDA, cuda_uuid(CUDA))
    assert given.mj is None or 0 < given.mj < 1e5, given
    assert given.note
