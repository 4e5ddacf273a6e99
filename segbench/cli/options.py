"""Options that several commands share, so that they mean and read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Where to compute: auto (the first GPU, else the CPU), cpu or cuda:N.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder that holds the dataset. Without it: the suite's data.root, then SEGBENCH_DATA."),
]
ResultsDir = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where records are kept.")]
WorkDir = Annotated[
    Path, typer.Option("--work", metavar="DIR", help="Where checkpoints and other large, remakeable files are kept.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Models may be code of yours, package.module:factory, which is then run.")
]
