"""Seconds an image of the dense CRF: pydensecrf in a plain loop, against `refine_all` in one and in two processes.

    python -m benchmarks.dense_crf [--out benchmarks/dense_crf.md]

Images are 360x480 scenes of the synthetic set; logits lean to the truth, coarsely and with noise. The time depends on
the image: the more colours, the more cells the lattice has. Ways take turns, so that other work on the machine weighs
on all alike, and the best round counts; the load is told. Starting the processes, paid once a split, is part of the
two-process time: over more images it weighs less.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydensecrf.densecrf import NORMALIZE_AFTER, DenseCRF2D
from scipy.ndimage import gaussian_filter

from benchmarks.machine import processor
from segbench.data.synthetic import Synthetic
from segbench.engine.dense_crf import DenseCrf, refine_all

IMAGES, ROUNDS = 4, 2
SPEC = DenseCrf(name="dense-crf")
Items = list[tuple[np.ndarray, np.ndarray]]


def items(classes: int, size: tuple[int, int], images: int) -> Items:
    scenes = Synthetic("test", size=size, test=images)
    return [(image, logits(labels, classes)) for image, labels in map(scenes.scene, range(images))]


def logits(labels: np.ndarray, classes: int) -> np.ndarray:
    """4 for the class of the label map, blurred by 4 pixels, under noise of 8 pixels' grain."""
    noise = np.random.RandomState(0).normal(0, 8, (classes, *labels.shape))
    near = 4.0 * (labels == np.arange(classes)[:, None, None])
    return (gaussian_filter(near, (0, 4, 4)) + gaussian_filter(noise, (0, 4, 4))).astype(np.float32)


def plain_loop(given: Items) -> list[np.ndarray]:
    """What one writes by hand after reading pydensecrf's page."""
    found = []
    for image, scores in given:
        classes, height, width = scores.shape
        crf = DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(np.ascontiguousarray(-scores.reshape(classes, -1)))
        crf.addPairwiseGaussian(sxy=3, compat=3, normalization=NORMALIZE_AFTER)
        crf.addPairwiseBilateral(sxy=121, srgb=5, rgbim=image, compat=4, normalization=NORMALIZE_AFTER)
        found.append(np.argmax(crf.inference(10), 0).reshape(height, width))
    return found


def ours(given: Items, processes: int) -> list[np.ndarray]:
    return list(refine_all(given, SPEC, processes))


WAYS: dict[str, Callable[[Items], list[np.ndarray]]] = {
    "pydensecrf, plain loop": plain_loop,
    "refine_all, 1 process": partial(ours, processes=1),
    "refine_all, 2 processes": partial(ours, processes=2),
}


def seconds(way: Callable[[Items], list[np.ndarray]], given: Items) -> float:
    began = time.perf_counter()
    way(given)
    return time.perf_counter() - began


def row(name: str, best: dict[tuple[str, int], float]) -> str:
    cells = [best[name, classes] / IMAGES for classes in (11, 37)]
    return f"| {name} | {cells[0]:.2f} | {cells[1]:.2f} |"


def measured() -> dict[tuple[str, int], float]:
    """The best seconds for all images of each way and number of classes."""
    best: dict[tuple[str, int], float] = {}
    for classes in (11, 37):
        given = items(classes, (360, 480), IMAGES)
        for _ in range(ROUNDS):
            for name, way in WAYS.items():
                best[name, classes] = min(best.get((name, classes), np.inf), seconds(way, given))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a Markdown file; the terminal otherwise")
    out = parser.parse_args().out
    best = measured()
    text = "\n".join(
        [
            "# Dense CRF: seconds an image",
            "",
            f"360x480, 10 iterations, DeepLab-LargeFOV's settings; best of {ROUNDS} rounds over {IMAGES} synthetic "
            "scenes, the start of the processes included.",
            f"Load of the machine while this ran, other work included: {os.getloadavg()[2]:.1f} (an idle one: 1 to 2).",
            f"{processor()}, {os.cpu_count()} processors, one thread a process, Python {platform.python_version()}, "
            f"pydensecrf2 {version('pydensecrf2')}, {date.today()}. Made by `python -m benchmarks.dense_crf`.",
            "",
            "| | 11 classes | 37 classes |",
            "|---|---|---|",
            *(row(name, best) for name in WAYS),
            "",
        ]
    )
    out.write_text(text) if out else print(text)


if __name__ == "__main__":
    main()
