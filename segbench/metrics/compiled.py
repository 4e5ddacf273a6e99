"""The door to the compiled kernels: numba is imported at the first count, not at `import segbench`.

Not every platform and Python has numba. Without it, or with SEGBENCH_NO_NUMBA=1, the counters run in NumPy and SciPy,
slower and with the same integers.
"""

import os
from functools import cache
from importlib import import_module
from types import ModuleType


def kernels() -> ModuleType | None:
    """`segbench.metrics.kernels`, or None where numba fails to load or SEGBENCH_NO_NUMBA=1 forbids it."""
    return None if os.environ.get("SEGBENCH_NO_NUMBA") == "1" else _import_kernels()


@cache
def _import_kernels() -> ModuleType | None:
    try:
        import_module("numba")
        return import_module("segbench.metrics.kernels")
    # Absent, built for another NumPy (ImportError, SystemError), no folder for its cache (RuntimeError).
    except Exception:
        return None
