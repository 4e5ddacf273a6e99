"""A score of a set of images, in the one form that intervals and tests can work on.

Every dataset score here is a function of sums over images: IoU of summed areas, the mean boundary F1 of a summed F1
and a summed 1. So a score is facts that add up and a function that reads their sum. Resampled images, left-out images,
images swapped between two sets of predictions and whole video sequences are then all the same thing, other weights in
the sum, and no score has to know of any of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Facts = Float64[np.ndarray, "s n m"]
Read = Callable[[Float64[np.ndarray, "*batch m"]], float | Float64[np.ndarray, "..."]]


class Score(NamedTuple):
    """`facts[s, i]`: m numbers of image i under seed s (one seed: s = 1), integers or shares below 2**53, never NaN.

    `read` turns sums over images, with any leading axes, into one value or a vector (a value per class); NaN where it
    is not defined. Scores of the same facts hold the same array, which is then summed once for all of them.
    """

    facts: Facts
    read: Read

    @property
    def value(self) -> Float64[np.ndarray, "*values"]:
        """The score of all images: over seeds, the mean of each seed's score."""
        return np.asarray(np.asarray(self.read(self.facts.sum(1))).mean(0))
