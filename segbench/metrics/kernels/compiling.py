"""How a kernel is compiled: numba's nopython mode, at its first call, kept on disk.

The machine code is kept in NUMBA_CACHE_DIR where that is set, else in `__pycache__` beside the kernel or, where that
cannot be written, in the user's cache folder. numba compiles again when the file of the kernel that Python calls has
changed, and looks at no other file. So a kernel calls kernels of its own file only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

Mask = np.ndarray  # uint16 or uint64: one bit per class


def compiled(function: Callable[..., Any]) -> Any:
    """A function that lets go of the GIL while it runs, so that threads may count images side by side."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder can be written: compile in each process
        return njit(nogil=True)(function)
