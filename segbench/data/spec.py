"""What a suite says about its data: which dataset, where it lies, at which size."""

from pathlib import Path
from typing import Any

from pydantic import Field

from segbench.spec import Size, Spec


class DataSpec(Spec):
    """`data:` of a suite. `--data` goes before `root`, and `root` before the environment's `SEGBENCH_DATA`.

    `size` (height x width) resizes images and labels, and scores are then at that size; without it a dataset keeps its
    own. `options` are the keyword arguments of the dataset's constructor; `check_options` says which exist.
    """

    name: str
    root: Path | None = None
    size: Size | None = None
    options: dict[str, Any] = Field(default_factory=dict)
