"""What evaluating costs beside predicting, and the counters on tensors against those of the host.

    python -m benchmarks.evaluation [--out benchmarks/evaluation.md] [--images 8] [--rounds 3]

Networks are untrained; so that maps look like a trained one's (a one-to-one matching takes longest on noise), their
logits are replaced by blurred truth under noise of 8 pixels' grain. Frames are synthetic scenes of 360x480. All ways
take turns in one process; medians. On a GPU each way ends with a synchronisation.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from benchmarks.machine import described
from segbench.data.batches import Frames
from segbench.data.synthetic import Synthetic
from segbench.engine.counting import count_all
from segbench.engine.device import resolve_device
from segbench.engine.evaluate import evaluate
from segbench.engine.predict import PREDICT_BATCH, largest, predict
from segbench.metrics import boundary, boundary_iou, confusion, device
from segbench.metrics.compiled import kernels
from segbench.models.build import build
from segbench.scoring.count import count
from segbench.scoring.spec import BoundarySpec, ScoreSpec

CLASSES, SIZE, TOLERANCE_SQ, BAND_PX = 11, (360, 480), 20, 12
SPEC = ScoreSpec(boundary=BoundarySpec(rules=("distance", "bsds")))
Ways = dict[str, Callable[[], Any]]


class Leaning(nn.Module):
    """A network whose logits are worked out, and then replaced by those that lean to the truth."""

    def __init__(self, network: nn.Module, logits: Tensor) -> None:
        super().__init__()
        self.network, self.input, self.logits, self.done = network, network.input, logits, 0

    def forward(self, images: Tensor) -> Tensor:
        first, self.done = self.done, (self.done + len(images)) % len(self.logits)
        return self.network(images) * 0 + self.logits[first : first + len(images)]


def logits_of(labels: np.ndarray) -> Tensor:
    """4 for the class of the label map, blurred by 2 pixels, under noise."""
    noise = np.random.RandomState(0).normal(0, 12, (CLASSES, *labels.shape))
    near = 4.0 * (labels == np.arange(CLASSES)[:, None, None])
    return torch.from_numpy(gaussian_filter(near, (0, 2, 2)) + gaussian_filter(noise, (0, 8, 8))).float()


def evaluations(name: str, frames: Frames, logits: Tensor, where: torch.device, folder: Path) -> Ways:
    model = Leaning(build(name, CLASSES), logits)

    def one_after_the_other() -> None:
        for batch in predict(model, frames, where):
            for truth, labels in zip(batch.truth.numpy(), batch.labels.cpu().numpy(), strict=True):
                count(truth, labels, CLASSES, SPEC)

    return {
        "predict": lambda: list(predict(model, frames, where)),
        "predict and count": lambda: list(count_all(predict(model, frames, where), CLASSES, SPEC)),
        "predict, then count on the host": one_after_the_other,
        "evaluate: four maps are kept as well": lambda: list(evaluate(model, frames, CLASSES, SPEC, where, folder)),
    }


def counters(truth: Tensor, labels: Tensor, where: torch.device) -> Ways:
    """The same counts of the same maps, on the host and as tensors."""
    pairs = list(zip(truth.numpy(), labels.numpy(), strict=True))
    there = truth.to(where), labels.to(where)

    def host(function: Callable[..., Any], *settings: Any) -> Callable[[], Any]:
        return lambda: [function(*pair, CLASSES, *settings) for pair in pairs]

    def tensors(function: Callable[..., Any], *settings: Any) -> Callable[[], Any]:
        batches = list(zip(*(maps.split(PREDICT_BATCH) for maps in there), strict=True))
        return lambda: [function(*batch, CLASSES, *settings) for batch in batches]

    return {
        "confusion, host": host(confusion.confusion),
        "confusion, tensors": tensors(device.confusion),
        "distance, host": host(boundary.boundary_counts, "distance", TOLERANCE_SQ),
        "distance, tensors": tensors(device.distance_counts, TOLERANCE_SQ),
        "bands, host": host(boundary_iou.band_counts, BAND_PX),
        "bands, tensors": tensors(device.band_counts, BAND_PX),
        "bsds, host": host(boundary.boundary_counts, "bsds", TOLERANCE_SQ),
    }


def ms_an_image(ways: Ways, images: int, rounds: int, where: torch.device) -> dict[str, float]:
    """Median over rounds in which all ways take turns; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * median(found[1:]) / images for name, found in seconds.items()}


def network_table(name: str, found: dict[str, float]) -> list[str]:
    alone = found["predict"]
    rows = [f"| {way} | {ms:.1f} | {ms / alone:.3f} |" for way, ms in found.items()]
    return [f"## {name}", "", "| | ms an image | x predict |", "|---|---|---|", *rows, ""]


def counter_table(found: dict[str, float], where: torch.device) -> list[str]:
    rows = []
    for what in dict.fromkeys(name.partition(",")[0] for name in found):
        host, there = found[f"{what}, host"], found.get(f"{what}, tensors")
        rows.append(
            f"| {what} | {host:.2f} | "
            + ("on the host alone | |" if there is None else f"{there:.2f} | {there / host:.1f} |")
        )
    return [
        "## The counters alone",
        "",
        f"| ms an image | host | tensors, {where.type} | tensors / host |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a Markdown file; the terminal otherwise")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="*", default=["segnet-basic", "segnet"])
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    assert kernels(), "numba did not load: these would be the times of the fallback"
    where = resolve_device(given.device)
    frames = Frames(Synthetic("test", size=SIZE, test=given.images))
    truth = frames.batch(range(given.images)).labels
    logits = torch.stack([logits_of(labels) for labels in truth.numpy()]).to(where)
    tables: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.networks:
            ways = evaluations(name, frames, logits, where, Path(folder))
            tables += network_table(name, ms_an_image(ways, given.images, given.rounds, where))
    tables += counter_table(
        ms_an_image(counters(truth, largest(logits).cpu(), where), given.images, 2 * given.rounds + 1, where), where
    )
    choices = {"argmax": lambda: logits.argmax(1).to(torch.uint8), "largest": lambda: largest(logits)}
    label = ms_an_image(choices, given.images, 2 * given.rounds + 1, where)
    text = "\n".join(
        [
            "# Evaluation beside prediction",
            "",
            f"360x480, {CLASSES} classes, {given.images} synthetic scenes, batches of {PREDICT_BATCH}; confusion "
            "counts and boundary counts by `distance` and by `bsds` at 0.75 % of the diagonal.",
            f"Medians of {given.rounds} rounds, all ways in turns; load of the machine meanwhile, other work included: "
            f"{os.getloadavg()[1]:.1f}.",
            f"{described(where)}, Python {platform.python_version()}, torch {torch.__version__}, {date.today()}. "
            "Made by `python -m benchmarks.evaluation`.",
            "",
            *tables,
            f"From logits to label maps: {label['largest']:.2f} ms an image; torch's argmax {label['argmax']:.2f} ms.",
            "",
        ]
    )
    given.out.write_text(text) if given.out else print(text)


if __name__ == "__main__":
    main()
