"""Steps a second of `train` against a bare loop written by hand, and of the fast recipe against plain fp32.

    python -m benchmarks.training [--out benchmarks/training.md] [--device auto] [--rounds 5] [--steps 30]

The bare loop has the same network, batch, optimizer, loss, precision and mode, its batches on the device, and reads no
loss. Both begin anew in each round and take turns; the first steps of each warm up (compiling included) and do not
count. What waiting for data costs is what `train` gains when its batches lie ready on the device. Frames are random.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.machine import processor
from segbench.data.batches import Batch, Frames
from segbench.data.synthetic import Synthetic
from segbench.engine.determinism import computing
from segbench.engine.device import resolve_device
from segbench.engine.loss import segmentation_loss
from segbench.engine.recipe import Recipe
from segbench.engine.train import train
from segbench.models.build import build
from segbench.precision import autocast_of

CLASSES, WARM_UP = 11, 5
FAST = {"mode": "fast", "precision": "bf16", "channels_last": True, "compile": True, "fused": True}


class Ready(Frames):
    """The frames whose every batch is the one that was fetched first."""

    first: Batch | None = None

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu", **settings: Any) -> Batch:
        self.first = self.first or super().batch(indices, device, **settings)
        return self.first


def recipe_of(batch: int, steps: int, changes: dict[str, Any]) -> Recipe:
    given = {"optimizer": {"name": "sgd", "lr": 1e-3}, "batch_size": batch, "multipliers": "none"}
    return Recipe.model_validate(given | {"iterations": WARM_UP + steps + 10} | changes)


def seconds_of(step: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Of `steps` steps, behind those that warm up."""
    for _ in range(WARM_UP):
        step()
    synchronise(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def trained(name: str, frames: Frames, recipe: Recipe, steps: int, device: torch.device) -> float:
    """Seconds of `train`; what it writes when it is left comes after."""
    with tempfile.TemporaryDirectory() as folder:
        going = train(fresh(name), frames, recipe, CLASSES, 0, Path(folder), device)
        seconds = seconds_of(partial(next, going), steps, device)
        going.close()
    return seconds


def bare(name: str, frames: Frames, recipe: Recipe, steps: int, device: torch.device) -> float:
    """Seconds of the loop that one would write by hand for this network alone."""
    model = fresh(name).to(device).train()
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    spec: Any = recipe.optimizer
    settings = {"momentum": spec.momentum, "weight_decay": spec.weight_decay, "fused": recipe.fused or None}
    optimizer = torch.optim.SGD(model.parameters(), lr=spec.lr, **settings)
    forward = torch.compile(model, dynamic=False) if recipe.compile else model
    batch = frames.batch(range(recipe.batch_size))
    images, labels = (tensor.to(device) for tensor in batch)

    def step() -> None:
        optimizer.zero_grad()
        fed = model.input(images)
        if recipe.channels_last:
            fed = fed.contiguous(memory_format=torch.channels_last)
        with autocast_of(recipe.precision, device):
            logits = forward(fed)
        segmentation_loss(logits, labels, CLASSES).backward()
        optimizer.step()

    with computing(recipe, device):
        return seconds_of(step, steps, device)


def fresh(name: str) -> nn.Module:
    torch.compiler.reset()
    torch.manual_seed(0)
    return build(name, CLASSES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a Markdown file; the terminal otherwise")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--network", default="segnet-basic")
    given = parser.parse_args()
    device = resolve_device(given.device)
    size, batch = ((360, 480), 12) if device.type == "cuda" else ((90, 120), 4)
    dataset = Synthetic("train", size=size, train=4 * batch)
    frames, ready = Frames(dataset), Ready(dataset)
    frames.batch(range(len(frames)))  # decoded once, before anything is timed
    ways: dict[str, Callable[[], float]] = {}
    recipes = {"fp32": {}, "fast": FAST} if device.type == "cuda" else {"fp32": {}}
    for kind, changes in recipes.items():
        settings = (given.network, recipe_of(batch, given.steps, changes), given.steps, device)
        for way, run, source in (
            ("bare", bare, frames),
            ("train", trained, frames),
            ("train, batches ready", trained, ready),
        ):
            ways[f"{kind}: {way}"] = partial(run, settings[0], source, *settings[1:])
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way, run in ways.items():
            found[way].append(given.steps / run())
    text = "\n".join(report(found, size, batch, given, device))
    given.out.write_text(text) if given.out else print(text)


def report(
    found: dict[str, list[float]], size: tuple[int, int], batch: int, given: Any, device: torch.device
) -> list[str]:
    """Ratios are medians of those of each round, for a machine's speed drifts from round to round."""
    rows, sentences = [], []
    for way, rates in found.items():
        kind = way.partition(":")[0]
        ratio = median(a / b for a, b in zip(rates, found[f"{kind}: bare"], strict=True))
        rows.append(f"| {way} | {median(rates):.3f} | {batch * median(rates):.1f} | {ratio:.3f} |")
    for kind in dict.fromkeys(way.partition(":")[0] for way in found):
        pairs = zip(found[f"{kind}: train"], found[f"{kind}: train, batches ready"], strict=True)
        sentences.append(f"{kind}: waiting for data {max(0.0, 1 - median(a / b for a, b in pairs)):.1%} of the time.")
    if "fast: train" in found:
        pairs = zip(found["fast: train"], found["fp32: bare"], strict=True)
        sentences.append(f"The fast recipe against the bare fp32 loop: x {median(a / b for a, b in pairs):.2f}.")
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return [
        "# Training against a bare loop",
        "",
        f"{given.network}, {size[0]}x{size[1]}, batch {batch}; {given.steps} steps a round, medians of {given.rounds} "
        f"rounds in turns; load of the machine {os.getloadavg()[1]:.1f}.",
        f"{processor()}, {on}, Python {platform.python_version()}, torch {torch.__version__}, {date.today()}. "
        "Made by `python -m benchmarks.training`.",
        "",
        "| | steps a second | images a second | x bare |",
        "|---|---:|---:|---:|",
        *rows,
        "",
        *sentences,
        "",
    ]


if __name__ == "__main__":
    main()
