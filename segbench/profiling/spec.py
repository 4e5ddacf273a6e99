"""What a profile measures: where a pass begins and ends, how often it is run, in which precision. No torch here.

Resolution and batches are by default those of SegNet's Table 6 (Badrinarayanan, Kendall & Cipolla, PAMI 2017, section
4.3): 360x480, times at batch 1, training memory at batch 4, inference memory at batch 1. The paper's way to time is the
protocol `caffe-time`; the default, `steady`, measures until the number can be believed, or says that it cannot.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from segbench.spec import Precision, Size, Spec

Protocol = Literal["steady", "caffe-time"]
Backend = Literal["eager", "compile", "onnxruntime"]
Isolation = Literal["warn", "error"]

PROFILE_VERSION = 4
"""Part of every profile's key: raised when a change changes what is measured."""

PARTS = ("loader", "transfer", "input", "resize", "argmax")
"""What may be timed beside the model, in the order in which an image passes them."""


def parse_scope(value: Any) -> Any:
    """`model+argmax+input` -> `model+input+argmax`: one name for one scope."""
    if not isinstance(value, str):
        raise ValueError('a scope is text, such as "model" or "model+input+argmax"')
    first, *others = value.replace(" ", "").split("+")
    wrong = next((part for part in others if part not in PARTS), None) if first == "model" else first
    if wrong is not None or len(set(others)) < len(others):
        raise ValueError(f'"{value}" is not a scope; write model, and behind it any of +{", +".join(PARTS)}, each once')
    if "loader" in others and "input" not in others:
        raise ValueError(f'"{value}": files hold 8-bit images; add +input')
    return "+".join(["model", *(part for part in PARTS if part in others)])


Scope = Annotated[str, BeforeValidator(parse_scope)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


OTHERS = {"steady": {"warmup", "repetitions"}, "caffe-time": {"min_samples", "min_seconds", "max_seconds"}}
"""By protocol, the settings that it would ignore."""


class ProfileSpec(Spec):
    """The settings of one profile; sizes are height x width, batches are images.

    `protocol: steady` warms up until the samples no longer drift, then measures until there are `min_samples` of them
    and `min_seconds` have passed, or until `max_seconds` have. `protocol: caffe-time` is what `caffe time` does:
    `warmup` unrecorded passes, then `repetitions` forward and backward passes of the *training* network, its loss
    included. An inference forward is timed the same way beside it.

    In the scope `model` a forward begins at the numbers that the network is fed and ends at its logits. `+input`
    begins at 8-bit RGB images on the device; `+transfer` at the host, and ends there; `+loader` at image files of the
    size `frame`; `+resize` brings frames of the size `frame` to `res`, and logits back to it; `+argmax` ends at label
    maps. Training passes include what comes before the network, not what comes after it.

    `precision`: `fp32` has neither TF32 nor any other short product; `bf16` and `fp16` are PyTorch's autocast.
    `training: false` leaves out training passes and training memory. `isolation` says what another process on the GPU
    does: `warn` notes it, `error` stops before anything is measured, or fails what was measured beside it.
    """

    res: Size = (360, 480)
    protocol: Protocol = "steady"
    scope: Scope = "model"
    frame: Size | None = None
    time_batch: PositiveInt = 1
    training: bool = True
    warmup: PositiveInt = 1
    repetitions: PositiveInt = 10
    min_samples: PositiveInt = 20
    min_seconds: Seconds = 1.0
    max_seconds: Seconds = 60.0
    memory: bool = True
    train_memory_batch: PositiveInt = 4
    infer_memory_batch: PositiveInt = 1
    largest_batch: bool = False
    energy: bool = True
    precision: Precision = "fp32"
    channels_last: bool = False
    backend: Backend = "eager"
    cuda_graphs: bool = False
    isolation: Isolation = "warn"

    def measured(self) -> dict[str, Any]:
        """The settings that may change a number: all but `isolation`, which says when there shall be none."""
        return self.model_dump(exclude={"isolation"})

    @model_validator(mode="after")
    def _check(self) -> "ProfileSpec":
        for key in sorted(self.model_fields_set & OTHERS[self.protocol]):
            other = "caffe-time" if self.protocol == "steady" else "steady"
            raise ValueError(
                f"`{key}` is a setting of the protocol {other}; found {self.protocol}; leave one of them out"
            )
        if "resize" in self.scope and self.frame is None:
            raise ValueError("the scope +resize needs `frame`, the size that frames come in, as in frame: 720x960")
        if self.frame is not None and "resize" not in self.scope and self.frame != self.res:
            raise ValueError("`frame` is another size than `res`; add +resize to the scope, or leave it out")
        if self.protocol == "steady" and self.max_seconds < 4 * self.min_seconds:
            raise ValueError(
                f"`max_seconds` is {self.max_seconds:g}, for warm-up and measuring; allow four times `min_seconds` "
                f"({self.min_seconds:g})"
            )
        if self.cuda_graphs and self.backend != "eager":
            raise ValueError(f"`cuda_graphs` captures the eager backend; found backend {self.backend}")
        if self.backend == "onnxruntime" and (self.channels_last or self.precision in ("bf16", "fp16")):
            raise ValueError("the backend onnxruntime has neither autocast nor channels_last; write fp32 or tf32 alone")
        return self
