"""`segbench profile`: the cost of models, as in Table 6 of the SegNet paper."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segbench.cli.options import AllowCode, Classes, Device, Option, check_model_name, read_options

if TYPE_CHECKING:
    from segbench.profiling.spec import ProfileSpec
    from segbench.report.cost_files import Profiled


def profile(
    model: Annotated[list[str], typer.Option(help="Name of a model, as `segbench models` lists it; may be repeated.")],
    res: Annotated[str, typer.Option(metavar="HEIGHTxWIDTH,...", help="Sizes of the input.")] = "360x480",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Images a pass, for the times.")] = "1",
    precision: Annotated[str, typer.Option(metavar="P,...", help="fp32, tf32, bf16, fp16.")] = "fp32",
    backend: Annotated[str, typer.Option(metavar="B,...", help="eager, compile, onnxruntime.")] = "eager",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Weights and images channels last.")] = False,
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Replay the forward as a CUDA graph.")] = False,
    protocol: Annotated[
        str, typer.Option(metavar="PROTOCOL", help="steady, or caffe-time: one warm-up and the mean of ten passes.")
    ] = "steady",
    scope: Annotated[
        str,
        typer.Option(
            metavar="SCOPE", help="model, and what else a forward includes: +loader+transfer+input+resize+argmax."
        ),
    ] = "model",
    frame: Annotated[
        str | None, typer.Option(metavar="HEIGHTxWIDTH", help="Size of the frames that +resize brings to --res.")
    ] = None,
    training: Annotated[bool, typer.Option(help="Time training passes too.")] = True,
    repetitions: Annotated[int | None, typer.Option(min=1, help="Passes of caffe-time.")] = None,
    min_samples: Annotated[int | None, typer.Option(min=1, help="Passes of steady, at least.")] = None,
    min_seconds: Annotated[float | None, typer.Option(help="Seconds of them, at least.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Seconds a region may take, warm-up included.")] = None,
    memory: Annotated[bool, typer.Option(help="Measure memory too, in fresh processes.")] = True,
    train_memory_batch: Annotated[int, typer.Option(min=1, help="Batch of the training memory.")] = 4,
    infer_memory_batch: Annotated[int, typer.Option(min=1, help="Batch of the inference memory.")] = 1,
    largest_batch: Annotated[
        bool, typer.Option("--largest-batch", help="Search the largest batches that fit.")
    ] = False,
    energy: Annotated[bool, typer.Option(help="Measure energy, where there is a counter.")] = True,
    isolation: Annotated[
        str, typer.Option(metavar="warn|error", help="What another process on the GPU does.")
    ] = "warn",
    classes: Classes = 11,
    option: Option = None,
    device: Device = "auto",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every sample to this JSON file.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers of the table as CSV.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure time, memory, energy and size of models.

    Each model gets the row of the SegNet paper's Table 6 and what is needed to believe it: forward, backward, training
    and inference memory, size. Several sizes, batches, precisions or backends, with commas between them, are measured
    in every combination. A row that cannot be measured says why, the others go on, and the exit code is 1. Ctrl-C ends
    the command with the table of the rows that are finished.
    """
    from segbench.report import render
    from segbench.report.costs import cost_table

    specs = read_specs(
        {
            **{"res": listed(res), "time_batch": listed(batch), "precision": listed(precision)},
            **{"backend": listed(backend), "channels_last": channels_last, "cuda_graphs": cuda_graphs},
            **{"protocol": protocol, "scope": scope, "frame": frame, "training": training},
            **{"repetitions": repetitions, "min_samples": min_samples},
            **{"min_seconds": min_seconds, "max_seconds": max_seconds},
            **{"memory": memory, "train_memory_batch": train_memory_batch, "infer_memory_batch": infer_memory_batch},
            **{"largest_batch": largest_batch, "energy": energy, "isolation": isolation},
        }
    )
    options = read_options(option or [])
    for name in model:
        check_model_name(name, allow_code)
    check_files(json, csv)
    rows: list[Profiled] = []
    interrupted = False
    try:
        for row in measured(list(dict.fromkeys(model)), options, classes, specs, device):
            rows.append(row)
            # After each, so that one which takes the whole program down leaves what was measured before it.
            write_files(rows, json, csv)
    except KeyboardInterrupt:
        interrupted = True
    failures = {row.label: row.failure for row in rows if row.failure}
    if rows:
        render.show(cost_table({row.label: row.usage for row in rows if row.usage}, failures))
    if interrupted:
        render.warn(f"interrupted; {len(rows)} of {len(dict.fromkeys(model)) * len(specs)} rows are finished")
        raise typer.Exit(130)
    if failures:
        raise typer.Exit(1)


def check_files(json: Path | None, csv: Path | None) -> None:
    """Raises `SettingError` for files that cannot be written, before hours of work."""
    from segbench.errors import SettingError
    from segbench.store.files import check_folder

    for flag, path in (("--json", json), ("--csv", csv)):
        if path and path.is_dir():
            raise SettingError(f"{flag} {path}: is a folder; name a file")
        if path:
            check_folder(path.parent, flag)
    if json and csv and json.resolve() == csv.resolve():
        raise SettingError(f"--json, --csv: both name {json}; name two files")


def write_files(rows: "Sequence[Profiled]", json: Path | None, csv: Path | None) -> None:
    """All rows so far, in the files that are asked for."""
    from segbench.report.cost_files import as_csv, as_json
    from segbench.store.files import write_text

    if json:
        write_text(json, as_json(rows))
    if csv:
        write_text(csv, as_csv(rows))


def listed(text: str) -> list[str]:
    """`1, 2,4` -> ["1", "2", "4"]"""
    return [part.strip() for part in text.split(",")]


def read_specs(given: dict[str, Any]) -> "list[ProfileSpec]":
    """A ProfileSpec for each combination; a value that is none is the user's mistake. None stands for the default."""
    from pydantic import ValidationError

    from segbench.errors import SettingError
    from segbench.profiling.spec import ProfileSpec
    from segbench.profiling.sweep import points
    from segbench.suite.load import in_words

    try:
        settings = points({key: value for key, value in given.items() if value is not None})
        specs = [ProfileSpec.model_validate(point) for point in settings]
    except ValidationError as error:
        where, words = in_words(error, ProfileSpec)
        words = with_flags(words)
        raise SettingError(f"{flag(str(where[0]))}{words}" if where else words.removeprefix(": ")) from None
    except ValueError as error:
        key, _, words = str(error).removeprefix("profile.").partition(" ")
        raise SettingError(f"{flag(key)}: {words}") from None
    if len(set(map(repr, specs))) < len(specs):
        raise SettingError("--res, --batch: the same value stands there twice; name each once")
    return specs


def flag(key: str) -> str:
    """`time_batch`, a key of suites, as the command line calls it: `--batch`."""
    return "--batch" if key == "time_batch" else f"--{key.replace('_', '-')}"


def with_flags(words: str) -> str:
    """Keys of a profile in a message for suites, as flags: `frame` -> `--frame`, `frame: 24x32` -> `--frame 24x32`."""
    from segbench.profiling.spec import ProfileSpec

    key = f"({'|'.join(ProfileSpec.model_fields)})"
    words = re.sub(f"`{key}`", lambda found: flag(found[1]), words)
    words = re.sub(f"^{key}: ", lambda found: f"{flag(found[1])}: ", words)
    return re.sub(rf"(?<=\s){key}: (?=\S)", lambda found: f"{flag(found[1])} ", words)


def measured(
    names: list[str], options: dict[str, Any], classes: int, specs: "list[ProfileSpec]", device: str
) -> "Iterator[Profiled]":
    """Every model at every point in turn. Raises `SettingError` where the first cannot be measured as asked."""
    from functools import partial

    import torch
    from rich.console import Console

    from segbench.engine.device import resolve_device
    from segbench.errors import ModelError, SettingError
    from segbench.models.build import build
    from segbench.profiling.device import device_name
    from segbench.profiling.profile import profile as measure
    from segbench.profiling.sweep import told_apart
    from segbench.report.cost_files import Profiled
    from segbench.spec import write_size
    from segbench.store.environment import environment

    target = str(resolve_device(device))
    for name in names:
        check_buildable(name, classes, options)
    here = environment(device_name(torch.device(target)), torch.get_num_threads())
    progress = Console(stderr=True, highlight=False)
    points = [(name, spec, words) for name in names for spec, words in zip(specs, told_apart(specs), strict=True)]
    for number, (name, spec, words) in enumerate(points, 1):
        label = f"{name} ({', '.join(words)})" if words else name
        where = f"{label}{'' if write_size(spec.res) in words else f' at {write_size(spec.res)}'} on {target}"
        progress.print(f"[{number}/{len(points)}] measuring {where} ...", style="dim", soft_wrap=True, markup=False)
        asked = spec.model_dump(mode="json")
        try:
            usage = measure(partial(build, name, classes, options, spec.res), classes, spec, target)
            yield Profiled(label, name, options, classes, asked, here, usage)
        except (ModelError, SettingError) as error:
            told = with_flags(str(error)) if isinstance(error, SettingError) else str(error)
            # A stranger who is there at the start can be sent away; one who comes later fails the rows that he meets.
            if isinstance(error, SettingError) and number == 1:
                raise SettingError(told) from None
            progress.print(f"segbench: {told}", soft_wrap=True, markup=False)
            yield Profiled(label, name, options, classes, asked, here, None, told)


def check_buildable(name: str, classes: int, options: dict[str, Any]) -> None:
    """A wrong option is told before anything is measured."""
    import torch

    from segbench.errors import ModelError
    from segbench.models.build import build

    try:
        with torch.device("meta"):
            build(name, classes, options)
    except ModelError:
        build(name, classes, options)  # some sound models cannot be built without memory
