"""Energy of an image: what the whole device draws while passes run one after the other, its idle power included.

A pass begins when the one before has ended on the device, as where passes are timed.

A GPU is read by NVML: its counter of all energy since the driver was loaded (Volta and newer); where that is refused or
stands still, its power readings, joined by trapezoids. A CPU is read by RAPL, Intel's and AMD's counters of the
processor packages, in Linux's powercap tree (docs.kernel.org/power/powercap): every program's work is in them, memory
modules and the rest of the machine are not.

A meter moves in steps, NVML's every 20 to 100 ms. So passes run until it moves, from there for `min_seconds` at least,
and on until it moves again: between two steps both its energy and the number of passes are known, to one pass or to
`ASK_EVERY_S`, whichever is longer. (Asked after every pass, NVML would be a part of what it measures.) A meter that
stands still is none; the energy is then None and never 0.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from segbench.profiling.failure import in_words
from segbench.profiling.nvml import Gpu, energy_mj, find, mig_mode, nvml, power_mw

POWERCAP = Path("/sys/class/powercap")
MIN_PASSES = 3
PATIENCE_S = 1.0
POWER_EVERY_S = 0.02
ASK_EVERY_S = 0.01

Meter = Callable[[], float]
"""Energy in mJ since some beginning."""


class Energy(NamedTuple):
    """Millijoules an image and what they were read from; both None where `note` says why."""

    mj: float | None
    source: str | None
    note: str | None


class NoMeterError(Exception):
    """This machine cannot tell; the text says why."""


class Metered(NamedTuple):
    mj: float
    passes: int
    seconds: float

    def note(self, source: str) -> str:
        return f"energy_mj is of the {source}, idle power included: {self.passes} passes in {self.seconds:.2f} s"


def energy_of(
    region: Callable[[], object], images: int, device: torch.device, uuid: str | None, min_seconds: float = 1.0
) -> Energy:
    """Energy of one of the `images` that a run of the region takes. Never raises: a failure is None with its words."""

    def one_pass() -> None:
        region()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    failed: list[str] = []
    try:
        with meters(device, uuid) as known:
            for source, opened in known:
                try:
                    with opened as read:
                        taken = metered(one_pass, read, min_seconds)
                    return Energy(taken.mj / (taken.passes * images), source, "; ".join([taken.note(source), *failed]))
                except NoMeterError as error:
                    failed.append(f"{source}: {error}")
    except NoMeterError as error:
        failed.append(str(error))
    except Exception as error:  # the region is somebody's model, and NVML fails in many ways
        failed.append(in_words(error))
    return Energy(None, None, f"energy not measured: {'; '.join(failed)}")


def metered(one_pass: Callable[[], None], read: Meter, min_seconds: float) -> Metered:
    """From one step of the meter to another that is `min_seconds` and three passes later, or more."""
    begin_mj, _ = to_next_step(one_pass, read)
    passes, begin = 0, time.perf_counter()
    while passes < MIN_PASSES or time.perf_counter() - begin < min_seconds:
        one_pass()
        passes += 1
    end_mj, more = to_next_step(one_pass, read)
    return Metered(end_mj - begin_mj, passes + more, time.perf_counter() - begin)


def to_next_step(one_pass: Callable[[], None], read: Meter) -> tuple[float, int]:
    """Passes until the meter moves: what it then shows, and how many they were."""
    shown, passes, begin = read(), 0, time.perf_counter()
    asked = begin
    while True:
        one_pass()
        passes += 1
        if time.perf_counter() - asked < ASK_EVERY_S:
            continue
        if (now := read()) != shown:
            return now, passes
        asked = time.perf_counter()
        if asked - begin > PATIENCE_S:
            raise NoMeterError(f"it has stood still for {PATIENCE_S:g} s of work")


@contextmanager
def meters(device: torch.device, uuid: str | None) -> Iterator[list[tuple[str, AbstractContextManager[Meter]]]]:
    """The names of the device's meters and how each is opened, the best first.

    A meter raises `NoMeterError` where it cannot be read. Raises that too, or whatever NVML's absence raises.
    """
    if device.type == "cpu":
        yield [("processor packages by RAPL", nullcontext(Rapl()))]
        return
    if uuid is None:
        raise NoMeterError(f"the device {device} has no counter that is known here")
    with nvml() as lib:
        gpu = find(lib, uuid)
        whole = "whole GPU, all its MIG slices," if mig_mode(gpu) else "whole GPU"
        # The counter is refused before Volta and in some virtual machines; in others it stands still.
        yield [
            (f"{whole} by NVML's energy counter", nullcontext(readable(energy_mj, gpu))),
            (f"{whole} by NVML's power readings, integrated", PowerIntegral(readable(power_mw, gpu))),
        ]


def readable(read: Callable[[Gpu], float], gpu: Gpu) -> Callable[[], float]:
    """A reading whose refusal is told from the errors of the model that runs between its calls."""

    def reading() -> float:
        try:
            return read(gpu)
        except Exception as error:
            raise NoMeterError(in_words(error)) from error

    return reading


class PowerIntegral:
    """Energy in mJ since it was entered: power in mW, read every 20 ms in a thread and at each call, times seconds."""

    def __init__(self, power_mw: Callable[[], float]) -> None:
        self._power_mw = power_mw
        self._mj = 0.0
        self._failure: Exception | None = None
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PowerIntegral":
        self._at, self._mw = time.perf_counter(), self._power_mw()
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._done.set()
        self._thread.join()

    def __call__(self) -> float:
        """Raises what a reading raised: a gap in the curve is no zero."""
        if self._failure:
            raise self._failure
        with self._lock:
            now, mw = time.perf_counter(), self._power_mw()
            self._mj += (now - self._at) * (self._mw + mw) / 2
            self._at, self._mw = now, mw
            return self._mj

    def _sample(self) -> None:
        try:
            while not self._done.wait(POWER_EVERY_S):
                self()
        except Exception as error:
            self._failure = error


class Rapl:
    """Energy in mJ of all processor packages since it was made. Raises `NoMeterError` where they cannot be read."""

    def __init__(self, powercap: Path | None = None) -> None:
        powercap = powercap or POWERCAP
        # Cores and memory are domains below these; a platform's domain (psys) would count the packages again.
        self._packages = [
            Package(folder)
            for folder in sorted(powercap.glob("intel-rapl:*"))
            if _contents(folder / "name").startswith("package")
        ]
        if not self._packages:
            raise NoMeterError(f"no RAPL counter of a processor package in {powercap}")

    def __call__(self) -> float:
        return sum(package.energy_uj() for package in self._packages) / 1000


class Package:
    """One counter in uJ, which begins again at 0 after `max_energy_range_uj`; it must be read once a round."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._range = int(_contents(folder / "max_energy_range_uj"))
        self._last, self._total = int(_contents(self._file)), 0

    def energy_uj(self) -> int:
        now = int(_contents(self._file))
        self._total += now - self._last if now >= self._last else now - self._last + self._range
        self._last = now
        return self._total


def _contents(file: Path) -> str:
    try:
        return file.read_text().strip()
    except PermissionError as error:
        raise NoMeterError(f"{file}: permission denied; most systems let only root read it") from error
    except OSError as error:
        raise NoMeterError(f"{file}: {error.strerror}") from error
