"""The settings of a suite, built of the parts' own specs.

A model's `recipe` holds only what differs from the suite's: it is merged key by key, and `optimizer` is replaced
whole, so that nothing of another optimizer lingers. The merged recipe is validated when the suite is loaded.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from segbench.data.spec import DataSpec
from segbench.engine.inference import Inference
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.sweep import points
from segbench.scoring.spec import ScoreSpec
from segbench.spec import Spec, name_alone, one_or_more

Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]


class ModelSpec(Spec):
    """One row of the comparison. `weights` start the training, or are scored as they are with `train: false`: a file of
    the network's own or of VGG16's, or the name of a checkpoint of ImageNet (segbench/models/imagenet.py).

    `inference` is how label maps are made; without it, as the model's name says (`plain` for most).
    """

    name: str
    label: Annotated[str, Field(min_length=1)] | None = None
    options: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    weights: Annotated[Literal["imagenet", "imagenet-caffe"] | Path | None, Field(union_mode="left_to_right")] = None
    train: bool = True
    inference: Inference | None = None

    @model_validator(mode="after")
    def _has_something_to_score(self) -> "ModelSpec":
        if not self.train and set(self.recipe) - {"input"}:
            raise ValueError("train: false leaves nothing for a recipe to set but `input`; remove one of them")
        return self


class Suite(Spec):
    """A whole comparison. Without `recipe` nothing is trained, without `score` nothing is scored, without `profile`
    nothing is timed; a suite that only profiles needs no `data`, and then may state its number of `classes` (11).
    A list in `profile` is a sweep: every run is profiled at each of its points, each of them a row."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    data: DataSpec | None = None
    models: Annotated[
        tuple[Annotated[ModelSpec, BeforeValidator(name_alone)], ...],
        Field(min_length=1),
    ]
    recipe: dict[str, Any] | None = None
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(one_or_more), Field(min_length=1)] = (0,)
    score: ScoreSpec | None = None
    profile: Annotated[tuple[ProfileSpec, ...], BeforeValidator(points)] = ()
    classes: Annotated[int, Field(gt=0, le=255, strict=True)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Suite":
        if (self.recipe is not None or self.score is not None) and self.data is None:
            raise ValueError("there is a recipe or a score, but no data; add `data: {name: ...}`")
        if self.recipe is None and self.score is None and not self.profile:
            raise ValueError("there is nothing to do; add `recipe` and `score`, or `profile`")
        if self.data is not None and self.classes is not None:
            raise ValueError("classes are those of the data; leave `classes` out, or `data`")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed stands twice in seeds")
        return self
