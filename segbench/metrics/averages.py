"""Means that leave out what is not defined, and the same means as sums over images.

Nearly every score of a dataset is a mean in which some values are missing: a class that does not occur has no F1, an
image without a class has none either. Not defined is NaN here, 0/0 gives it, and a mean leaves it out.

Intervals need scores as facts that add up over images (`score.py`). The facts of a mean are the value and a 1, or two
zeros where it is not defined; the mean is read from their sums.
"""

import numpy as np
from jaxtyping import Float64

Mean = float | Float64[np.ndarray, "*batch"]


def ratio(part: np.ndarray | np.generic, whole: np.ndarray | np.generic) -> Mean:
    """part / whole, NaN where whole is 0; a scalar for scalars."""
    defined = np.asarray(whole) > 0
    return np.divide(part, whole, out=np.full(defined.shape, np.nan), where=defined)[()]


def mean_defined(values: Float64[np.ndarray, "*batch k"]) -> Mean:
    """Mean over the last axis without its NaNs; NaN where nothing is left."""
    return ratio(np.nansum(values, axis=-1), np.isfinite(values).sum(-1))


def mean_facts(values: Float64[np.ndarray, "n v"]) -> Float64[np.ndarray, "n 2*v"]:
    """What adds up to the mean over images of each of v values: the values, then 1 for each that is defined."""
    return np.concatenate([np.nan_to_num(values), np.isfinite(values).astype(np.float64)], axis=-1)


def read_means(sums: Float64[np.ndarray, "*batch v2"]) -> Float64[np.ndarray, "*batch v2//2"]:
    """The v means from sums over images of `mean_facts`; NaN for a value that no image defines."""
    values, images = np.split(sums, 2, axis=-1)
    return np.asarray(ratio(values, images))
