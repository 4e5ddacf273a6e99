"""The resident set of this process: what it holds of the machine's memory, now and at its peak.

On Linux the peak is VmHWM of proc(5), which can be set back; elsewhere getrusage's, which cannot.
"""

import ctypes
import gc
import re
import sys
from pathlib import Path

MIB = 2**20
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_mib() -> tuple[float, float, str]:
    """Resident set of this process now and at its peak, in MiB, and where they were read.

    Garbage goes first. Without /proc the present size is unknown and the peak so far stands for it.
    """
    gc.collect()
    trim_heap()
    try:
        status = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", STATUS.read_text(), re.MULTILINE))
        return int(status["VmRSS"]) / 1024, int(status["VmHWM"]) / 1024, f"VmHWM of {STATUS}"
    except (OSError, KeyError):
        import resource  # here: Windows has none, and its error then says so

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
        return peak, peak, "ru_maxrss of getrusage"


def reset_peak() -> bool:
    """Set VmHWM back to the present size; False where that is not allowed."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def trim_heap() -> None:
    """Give freed pages back to the system, where the C library is glibc: they would hide as much of the model."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
