"""What was measured, as plain numbers: every timed sample, memory by kind, size and work. No torch here.

What was not measured is None, with a note that says why; it is never 0. Times are in milliseconds, memory in MiB
(2^20 bytes), the model's size in MB (10^6 bytes, 4 a parameter: the size of a Caffe file of the weights, as in
SegNet's Table 6).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from segbench.errors import RecordError


@dataclass(frozen=True)
class Samples:
    """The times of one region: each repetition, and the warm-up passes, which no statistic includes."""

    measured_ms: tuple[float, ...]
    warmup_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.measured_ms:
            raise ValueError("samples need one measurement at least; what was not measured is None")

    @property
    def mean(self) -> float:
        """Arithmetic mean, ms: what `caffe time` prints."""
        return float(np.mean(self.measured_ms))

    @property
    def median(self) -> float:
        return self.percentile(50.0)

    @property
    def p5(self) -> float:
        return self.percentile(5.0)

    @property
    def p95(self) -> float:
        return self.percentile(95.0)

    def percentile(self, percent: float) -> float:
        """Percentile in ms, linear between the ordered samples (NumPy's default)."""
        return float(np.percentile(self.measured_ms, percent))


@dataclass(frozen=True)
class Usage:
    """The cost of one model at one resolution on one device.

    `memory_mib` has these kinds, each with the prefix `train_` or `infer_`: on a CPU `peak_rss`; on CUDA `allocated`
    and `reserved` (PyTorch's caching allocator), `nvml_process` and `nvml_device` (with context and libraries; see
    memory.py). `macs` counts one image, `device_state` the driver, power limit and clocks right after the timing.
    `scope` says whether times and memory include the model's `input` (spec.py); size and `macs` never do.
    """

    device: str
    res: tuple[int, int]
    protocol: str
    time_batch: int
    train_memory_batch: int
    infer_memory_batch: int
    threads: int
    forward_ms: Samples
    train_forward_ms: Samples | None
    backward_ms: Samples | None
    memory_mib: dict[str, float | None]
    parameters: int
    trainable_parameters: int
    parameter_mb: float
    macs: int | None
    device_state: dict[str, str | float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    precision: str = "fp32"
    scope: str = "model"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: `json.loads(json.dumps(u.to_dict()))` is what `from_dict` takes."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Usage":
        """The inverse of `to_dict`; raises `RecordError` when a key is missing or unknown."""
        given = dict(values)
        try:
            for key in ("forward_ms", "train_forward_ms", "backward_ms"):
                given[key] = given[key] and Samples(**{k: tuple(v) for k, v in given[key].items()})
            given["res"], given["notes"] = tuple(given["res"]), tuple(given["notes"])
            return cls(**given)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f"usage: {type(error).__name__}: {error}; expected what Usage.to_dict() writes"
            ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
