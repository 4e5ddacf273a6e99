"""Options that several commands share, so that they mean and read the same everywhere."""

from pathlib import Path
from typing import Annotated, Any

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
Option = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the model; may be repeated.")]
Res = Annotated[str, typer.Option(metavar="HEIGHTxWIDTH", help="Size of the input.")]
Classes = Annotated[int, typer.Option(min=1, max=255, help="Number of classes.")]


def read_options(texts: list[str]) -> dict[str, Any]:
    """`width=0.5` -> {"width": 0.5}, values as in YAML."""
    from segbench.errors import SettingError
    from segbench.suite.load import parse_set

    options = {}
    for text in texts:
        where, value = parse_set(text, "--option")
        if len(where) > 1:
            raise SettingError(f"--option {text}: an option of a model is one word, as in width=0.5")
        options[str(where[0])] = value
    return options


def read_size(text: str) -> tuple[int, int]:
    """`--res 360x480`."""
    from segbench.errors import SettingError
    from segbench.spec import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise SettingError(f"--res: {error}") from None


def check_model_name(name: str, allow_code: bool) -> None:
    """The name is one of the table, or of code that its user allows."""
    from segbench.models import MODELS

    MODELS.entry(name)
    if not allow_code:
        MODELS.check_allowed(name)
