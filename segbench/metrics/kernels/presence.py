"""Which labels occur in a map."""

from typing import no_type_check

import numpy as np
from jaxtyping import UInt8

from segbench.metrics.kernels.compiling import compiled


@compiled
@no_type_check
def mark_present(labels: UInt8[np.ndarray, "h w"], present: UInt8[np.ndarray, "256"]) -> None:
    flat = labels.ravel()
    for i in range(flat.size):
        present[flat[i]] = 1
