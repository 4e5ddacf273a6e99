"""`segbench run`: a suite from YAML to a table."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segbench.cli.options import AllowCode, Data, Device, ResultsDir, WorkDir
from segbench.errors import SettingError

if TYPE_CHECKING:
    from segbench.preparation import Prepared
    from segbench.suite.plan import Run


def run(
    suite: Annotated[Path, typer.Argument(help="A suite, such as suites/quickstart.yaml.", show_default=False)],
    only: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="Only the models of this name or label; may be repeated.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as in recipe.iterations=200; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
    device: Device = "auto",
    results: ResultsDir = Path("results"),
    work: WorkDir = Path(".segbench"),
    data: Data = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="ray", help="Spread the stages over the GPUs or machines of a Ray cluster."),
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Train, score and profile a suite.

    Does every run that has no record yet, then prints the table that compares them.

    Every image and every setting is checked before the start. Ctrl-C is safe: the same command goes on from where it
    was, and what is finished is not done again. Exit code 1 says that a run failed; its record says why.

    With --on ray the cluster is the one that RAY_ADDRESS names or that runs on this machine, else all GPUs and
    processors of this machine. Its machines share the file system.
    """
    from segbench.suite.load import load
    from segbench.suite.plan import select

    if on not in (None, "ray"):
        raise SettingError(f"--on {on}: stages can run on ray; leave --on out to run them here")
    described, runs = load(suite, set_ or [], allow_code)
    runs = select(runs, only or [])
    if dry_run:
        from segbench.cli.dry_run import print_plan

        print_plan(described, runs, results, work, data)
        return

    prepared, complete = carried_out(described.name, runs, device, results, work, data, on)
    if prepared is None:
        return

    from segbench.report import render, tables

    folders = [results / described.name / keys.record for keys in prepared.keys]
    render.show(tables.summary(tables.read(folders)))
    if not complete:
        raise typer.Exit(1)


def carried_out(
    suite: str, runs: "list[Run]", device: str, results: Path, work: Path, data: Path | None, on: str | None
) -> "tuple[Prepared | None, bool]":
    """Check and execute the runs; what was prepared, and whether every run has a record that is done. Nothing at a
    process that torchrun started beside the first."""
    from rich.console import Console

    from segbench.cli.progress import follow, help_first
    from segbench.engine.device import resolve_device
    from segbench.engine.distributed import is_first, launched, started
    from segbench.fanout import library, on_ray
    from segbench.preparation import prepare
    from segbench.stages import LOCAL
    from segbench.store.files import Results, Work, check_folder, hold
    from segbench.together import leading

    if on and launched() > 1:
        raise SettingError("--on ray gives out whole stages itself; start it without torchrun, or leave --on out")
    if on:
        library()  # said before every image is read
    check_folder(results, "--results")
    check_folder(work, "--work")
    target = resolve_device(device)
    places = Work(work), Results(results)
    with started(target):
        if not is_first():
            help_first(target, *places)
            return None, False
        with Console(stderr=True).status("checking every image, setting and model ..."):
            prepared = prepare(runs, target, data)
        with (
            hold(work, "--work"),
            hold(results / suite, "--results"),
            leading(prepared),
            on_ray(prepared, *places) if on else nullcontext(LOCAL) as stages,
        ):
            return prepared, follow(prepared, *places, stages)
