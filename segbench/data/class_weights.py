"""Class weights of the loss: natural (all 1), three rules over the training labels, and those shipped with networks.

Median frequency is of Eigen & Fergus, ICCV 2015, as Badrinarayanan, Kendall & Cipolla use it: weight(c) = median of
freq / freq(c), where freq(c) is the number of pixels of c divided by the number of pixels of the images in which c
occurs. Conventions:

- The pixels of an image include its void pixels. Void itself is no class and has no part in the median.
- The median is over the classes that occur. A class that occurs nowhere has freq 0/0 and gets weight 0: no pixel of the
  split would ever use its weight, and an infinite one would turn 0 x inf into NaN in the loss.
- Pixels are counted at the dataset's size.

Inverse log is of ENet (Paszke et al., arXiv:1606.02147): weight(c) = 1 / ln(1.02 + p(c)). Effective number is of Cui et
al., CVPR 2019 (arXiv:1901.05555): weight(c) = (1 - beta) / (1 - beta ** n(c)), beta = (N - 1) / N, then scaled so that
the weights of the occurring classes sum to their number. Conventions:

- n(c) are the pixels of c in the split, p(c) is their share of its valid pixels: void has no part in either.
- Cui et al. leave N open (they search beta from 0.9 to 0.9999, over images); here it is the number of valid pixels, so
  that nothing is to be tuned. As n is at most N, the weights are close to those of 1 / (1 - exp(-p)).
- A class that occurs nowhere gets weight 0, as above, where the rules would give it 50.5 and infinity.

Shipped weights are the numbers printed in the loss layer of SegNet's training files, which a dataset class holds in
`shipped_weights`. They are copied because they cannot be computed: on CamVid's released labels the rule above gives
SignSymbol 3.85, the files 9.64. Counting void as a twelfth class comes closest, within 11 % on the ten other classes,
and gives SignSymbol 3.53; which labels or rule were used was never said. They are used as they stand at any size.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from segbench.data.dataset import Dataset
from segbench.errors import SettingError
from segbench.registry import did_you_mean

ClassWeights = Literal["natural", "median-frequency", "shipped", "inverse-log", "effective-number"]


class ClassCounts(NamedTuple):
    """Pixels of each class, pixels of the images in which it occurs (void included), void pixels, and images."""

    pixels: Int64[np.ndarray, "classes"]
    image_pixels: Int64[np.ndarray, "classes"]
    void_pixels: int
    images: int

    def plus(self, other: "ClassCounts") -> "ClassCounts":
        return ClassCounts(
            self.pixels + other.pixels,
            self.image_pixels + other.image_pixels,
            self.void_pixels + other.void_pixels,
            self.images + other.images,
        )


def no_counts(num_classes: int) -> ClassCounts:
    """The counts of no image."""
    return ClassCounts(np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64), 0, 0)


def count(labels: UInt8[np.ndarray, "h w"], num_classes: int) -> ClassCounts:
    """The counts of one image; labels hold 0..num_classes, the last being void."""
    pixels = np.bincount(labels.ravel(), minlength=num_classes + 1).astype(np.int64)
    assert pixels.size == num_classes + 1, "labels beyond void"
    present = pixels[:-1] > 0
    return ClassCounts(pixels[:-1], present * np.int64(labels.size), int(pixels[-1]), 1)


def class_counts(dataset: Dataset) -> ClassCounts:
    """The counts of a split, reading every sample; `preflight.survey` has them from its own pass."""
    total = no_counts(len(dataset.classes))
    for sample in dataset:
        total = total.plus(count(sample.labels, len(dataset.classes)))
    return total


def class_weights(
    name: str, counts: ClassCounts, shipped: Sequence[float] | None = None
) -> Float64[np.ndarray, "classes"]:
    """One weight a class, in their order; `shipped` are the dataset's own, where it has some.

    Raises `SettingError` for a name that is none of `ClassWeights`, and for "shipped" where there are none.
    """
    known = get_args(ClassWeights)
    if name not in known:
        raise SettingError(f'unknown class weights "{name}"{did_you_mean(name, known)} (known: {", ".join(known)})')
    if name == "natural":
        return np.ones(counts.pixels.size)
    if name == "shipped":
        return of_release(counts.pixels.size, shipped)
    return RULES[name](counts)


def of_release(num_classes: int, shipped: Sequence[float] | None) -> Float64[np.ndarray, "classes"]:
    """The shipped weights as they are."""
    if shipped is None:
        raise SettingError(
            'recipe.class_weights is "shipped", but no weights were released for this dataset; '
            "write median-frequency, which computes them, or natural"
        )
    assert len(shipped) == num_classes, f"{len(shipped)} shipped weights for {num_classes} classes"
    return np.array(shipped, np.float64)


def median_frequency(counts: ClassCounts) -> Float64[np.ndarray, "classes"]:
    """The median frequency over each class's own; 0 for a class that never occurs."""
    weights = np.zeros(counts.pixels.size)
    present = counts.pixels > 0
    if present.any():
        frequency = counts.pixels[present] / counts.image_pixels[present]
        weights[present] = np.median(frequency) / frequency
    return weights


def inverse_log(counts: ClassCounts) -> Float64[np.ndarray, "classes"]:
    """1 / ln(1.02 + share of the valid pixels): 1.42 for the only class, up to 50.5 for the rarest."""
    weights = np.zeros(counts.pixels.size)
    present = counts.pixels > 0
    weights[present] = 1 / np.log(1.02 + counts.pixels[present] / counts.pixels.sum())
    return weights


def effective_number(counts: ClassCounts) -> Float64[np.ndarray, "classes"]:
    """(1 - beta) / (1 - beta ** pixels), scaled to mean 1 over the classes that occur."""
    weights = np.zeros(counts.pixels.size)
    present = counts.pixels > 0
    if present.any():
        with np.errstate(divide="ignore"):  # of a single pixel beta is 0 and its logarithm -inf, which is meant
            log_beta = np.log1p(-1 / counts.pixels.sum())
        # 1 - beta is the same for all and cancels; beta ** n itself would lose the digits of beta, which is nearly 1.
        share = 1 / -np.expm1(counts.pixels[present] * log_beta)
        weights[present] = share / share.mean()
    return weights


RULES: dict[str, Callable[[ClassCounts], Float64[np.ndarray, "classes"]]] = {
    "median-frequency": median_frequency,
    "inverse-log": inverse_log,
    "effective-number": effective_number,
}
