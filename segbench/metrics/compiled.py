"""The door to the compiled kernels: numba is imported at the first count, not at `import segbench`.

Not every platform and Python has numba. Without it, or with SEGBENCH_NO_NUMBA=1, the counters run in NumPy and SciPy,
with the same integers, and many times slower: that is said, for nobody would look for it.
"""

import os
import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

from segbench.errors import SegbenchWarning


def kernels() -> ModuleType | None:
    """`segbench.metrics.kernels`, or None where numba fails to load or SEGBENCH_NO_NUMBA=1 forbids it."""
    return None if os.environ.get("SEGBENCH_NO_NUMBA") == "1" else _import_kernels()


@cache
def _import_kernels() -> ModuleType | None:
    try:
        import_module("numba")
        return import_module("segbench.metrics.kernels")
    # Absent, built for another NumPy (ImportError, SystemError), a module of the user's in place of one that it needs
    # (AttributeError), no folder for its cache (RuntimeError).
    except Exception as error:
        warnings.warn(
            f"counting in NumPy, many times slower: numba does not load ({type(error).__name__}: {error}); mend it, or "
            "set SEGBENCH_NO_NUMBA=1 to have it so without this word",
            SegbenchWarning,
            stacklevel=3,
        )
        return None
