"""The counters' inner loops, compiled by numba: what `confusion.py` and `boundary.py` define, only faster.

The kernels stand in a package of their own because importing it imports numba (a third of a second), which `segbench`
does at the first count (`compiled.py`).

Their annotations are for readers: `no_type_check` keeps the tests' jaxtyping hook from wrapping a kernel, as numba
must be given the plain function. Two traps of numba shape the arithmetic: an operation of uint64 with int64 gives
float64, and each array slice costs about 10 ns of reference counting, so that loops slice strips, not rows.
"""

from segbench.metrics.kernels.bands import band_map
from segbench.metrics.kernels.matching import count_matches
from segbench.metrics.kernels.pairs import count_bytes, count_nibbles
from segbench.metrics.kernels.presence import mark_present
from segbench.metrics.kernels.reach import count_in_reach

__all__ = ["band_map", "count_bytes", "count_in_reach", "count_matches", "count_nibbles", "mark_present"]
