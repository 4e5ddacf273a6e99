"""What was measured, as plain numbers: every timed sample, memory by kind, energy, size and work. No torch here.

What was not measured is None, with a note that says why; it is never 0. Times are in milliseconds, memory in MiB
(2^20 bytes), energy in millijoules an image, the model's size in MB (10^6 bytes, 4 a parameter: the size of a Caffe
file of the weights, as in SegNet's Table 6).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.special import bdtr

from segbench.errors import RecordError

LEVEL = 0.95
ASKED = (
    *("res", "protocol", "scope", "frame", "precision", "backend", "channels_last", "cuda_graphs"),
    *("time_batch", "train_memory_batch", "infer_memory_batch"),
)
"""What is written of the profile's settings."""
REGIONS = ("forward_ms", "train_forward_ms", "backward_ms", "step_ms")


@dataclass(frozen=True)
class Samples:
    """The times of one region: each repetition, and the warm-up passes, which no statistic includes.

    `stable` is whether the samples came from one state of the machine, None where nobody judged it (`caffe-time`).
    `throttled` marks the samples during which the device slowed itself down; it is empty where that cannot be read.
    """

    measured_ms: tuple[float, ...]
    warmup_ms: tuple[float, ...] = ()
    stable: bool | None = None
    throttled: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.measured_ms:
            raise ValueError("samples need one measurement at least; what was not measured is None")
        if len(self.throttled) not in (0, len(self.measured_ms)):
            raise ValueError(f"{len(self.throttled)} marks for {len(self.measured_ms)} samples; mark each or none")

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

    @property
    def interval(self) -> tuple[float, float] | None:
        """At least a 95 % interval of the median, ms: two of the ordered samples, whatever their distribution.

        The k-th smallest and k-th largest of n independent samples hold the median between them with probability
        1 - 2 B(k - 1; n, 1/2), B the binomial distribution function (David & Nagaraja, Order Statistics, section 7.1).
        None below six samples, whose extremes hold it with less. Samples in a row are seldom independent; then it is
        too narrow, which is what `stable` is there for.
        """
        ordered = sorted(self.measured_ms)
        below = bdtr(np.arange(len(ordered)), len(ordered), 0.5)  # B(0), B(1) ...
        rank = int(np.count_nonzero(below <= (1 - LEVEL) / 2))
        return (ordered[rank - 1], ordered[-rank]) if rank else None


@dataclass(frozen=True)
class Usage:
    """The cost of one model at one resolution on one device.

    `memory_mib` has these kinds, each with the prefix `train_` or `infer_`: on a CPU `peak_rss`; on CUDA `allocated`
    and `reserved` (PyTorch's caching allocator), `nvml_process` and `nvml_device` (with context and libraries), and
    what can be told of their parts (see memory.py). `largest_batch` has `train` and `infer`. `macs` counts one image.
    `device_state` holds what NVML says `before`, `during` and `after` the timing. `deviation` is how far this variant
    (precision, backend ...) is from fp32 eager on the same images. `scope` says what times and memory include beside
    the network (spec.py); size and `macs` never do.
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
    device_state: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    precision: str = "fp32"
    scope: str = "model"
    frame: tuple[int, int] | None = None
    step_ms: Samples | None = None
    file_mb: float | None = None
    activation_mib: float | None = None
    energy_mj: float | None = None
    energy_source: str | None = None
    largest_batch: dict[str, int | None] = field(default_factory=dict)
    backend: str = "eager"
    channels_last: bool = False
    cuda_graphs: bool = False
    deviation: dict[str, float | None] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: `json.loads(json.dumps(u.to_dict()))` is what `from_dict` takes."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Usage":
        """The inverse of `to_dict`; raises `RecordError` when a key is missing or unknown."""
        given = dict(values)
        try:
            for key in REGIONS:
                given[key] = _samples(given[key]) if given.get(key) else None
            given["res"], given["notes"] = tuple(given["res"]), tuple(given["notes"])
            given["frame"] = tuple(given["frame"]) if given.get("frame") else None
            return cls(**given)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f"usage: {type(error).__name__}: {error}; expected what Usage.to_dict() writes"
            ) from error


def _samples(values: Mapping[str, Any]) -> Samples:
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Samples(**given)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
