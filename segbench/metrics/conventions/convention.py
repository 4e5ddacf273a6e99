"""One number of another library, and the forms in which libraries print."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from segbench.metrics.region import areas

Confusion = Int64[np.ndarray, "n k1 k1"]
Array = np.ndarray | np.generic
Scalar = float | np.ndarray | np.generic
Checked = Literal[
    "tested against the library",  # by the tests, as installed
    "compared with the release",  # once, with the file of the release itself: it pulls in too much for the tests
    "source read",
    "documentation only",
    "not verified",
]

SAME = "the same definition"


class Convention(NamedTuple):
    """A number as a library gives it.

    `value` is a fraction, and NaN where the library answers NaN or nothing; `text` tells these apart: it is what the
    library prints, and "n/a" where it prints no number. `ours` names the score of segbench nearest to it; `why` says in
    one line how it differs from that, or why there is no number.
    """

    library: str
    version: str
    name: str
    value: float
    text: str
    ours: str
    why: str
    checked: Checked


class Library(NamedTuple):
    """A library as it was read: `version` is a release, or the file and commit."""

    name: str
    version: str
    checked: Checked

    def row(self, name: str, value: Scalar, text: str, ours: str, why: str) -> Convention:
        return Convention(self.name, self.version, name, float(value), text, ours, why, self.checked)


def without_answer(rows: list[Convention], why: str) -> list[Convention]:
    """The same rows as "n/a"."""
    return [row._replace(value=float("nan"), text="n/a", why=why) for row in rows]


def counted_by_histc(rows: list[Convention], confusion: Confusion) -> list[Convention]:
    """The rows of a library that counts with `torch.histc`: in float32, which stops at 2**24 (pytorch issue 96613)."""
    if areas(confusion)[:, :2].max() <= 2**24:
        return rows
    return without_answer(
        rows, "counts with torch.histc, which stops at 2**24 pixels of a class in an image, by the number of threads"
    )


def predicts_no_class(confusion: Confusion) -> bool:
    """Whether any scored pixel is predicted as void or out of range."""
    return bool(confusion[:, :-1, -1].any())


def ratio(part: Array, whole: Array) -> Float[np.ndarray, "..."]:
    """part / whole in their own floating type, NaN for 0/0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.asarray(part) / np.asarray(whole))


def nan_mean(values: Float[np.ndarray, " k"]) -> float:
    """`numpy.nanmean` to the last bit, without its warning where nothing is left."""
    with np.errstate(invalid="ignore"):
        return float(values.dtype.type(np.nansum(values) / np.isfinite(values).sum()))


def tensor_text(value: float) -> str:
    """A float32 scalar as PyTorch prints it between the brackets of `tensor(…)`, with its default settings."""
    if value in (0, 1):
        return f"{value:.0f}."
    return f"{value:.4e}" if abs(value) < 1e-4 else f"{value:.4f}"
