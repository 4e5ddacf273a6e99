"""Whether segbench's times are those of other people's timers, and whether they come out the same again.

    python benchmarks/profiling.py [--out benchmarks/profiling.md] [--rounds 5] [--device auto]

The same callable, a forward in inference mode, is timed by the protocol `steady` and by a named peer: on a CPU
`torch.utils.benchmark.Timer` (`blocked_autorange`), on a GPU Triton's `do_bench`, which clears the cache between runs
where `steady` waits for an idle device. The two take turns. What is asked: medians within 2 % of the peer's, and
repetitions within 3 % of each other, or the word unstable.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import torch
from torch.utils.benchmark import Timer

from segbench.engine.device import resolve_device
from segbench.models.build import build
from segbench.profiling.device import device_name
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.timing import time_inference
from segbench.profiling.usage import Samples
from segbench.profiling.workload import random_images, seeded

CLASSES = 11
NETWORKS = {"fcn-basic": {"width": 0.5}, "segnet-basic": {"width": 0.5}, "unet": {}, "segnet": {}}
SIZES = {"fcn-basic": (90, 120), "segnet-basic": (90, 120), "unet": (96, 128), "segnet": (96, 128)}


def peer_ms(forward: Callable[[], object], device: torch.device) -> float:
    """The median by a timer that is not ours, ms."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(forward, warmup=200, rep=1000, return_mode="median"))
    timer = Timer("forward()", globals={"forward": forward}, num_threads=torch.get_num_threads())
    return 1e3 * float(timer.blocked_autorange(min_run_time=1.0).median)


@torch.inference_mode()
def compared(name: str, device: torch.device, rounds: int) -> tuple[list[Samples], list[float]]:
    """Samples of each round by segbench, and the peer's median of each."""
    size = SIZES[name]
    model = seeded(lambda: build(name, CLASSES, NETWORKS[name], size), device).eval()
    images = random_images(1, size, device)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(time_inference(lambda: model(images), device, ProfileSpec(res=size), None)[0])
        theirs.append(peer_ms(lambda: model(images), device))
    return ours, theirs


def row(name: str, ours: list[Samples], theirs: list[float]) -> str:
    own, peer = median(s.median for s in ours), median(theirs)
    medians = [s.median for s in ours]
    spread = 100 * (max(medians) / min(medians) - 1)
    unstable = sum(s.stable is not True for s in ours)
    peers_spread = 100 * (max(theirs) / min(theirs) - 1)
    return (
        f"| {name} {'x'.join(map(str, SIZES[name]))} | {own:.3f} | {peer:.3f} | {100 * (own / peer - 1):+.1f} | "
        f"{spread:.1f} | {peers_spread:.1f} | {unstable} of {len(ours)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a Markdown file; the terminal otherwise")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = resolve_device(given.device)
    rows = []
    for name in NETWORKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows.append(row(name, *compared(name, device, given.rounds)))
    text = "\n".join(
        [
            "# Times beside another timer's, and repeated",
            "",
            f"{device_name(device)}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch "
            f"{torch.__version__}, {date.today()}; load of the machine meanwhile, this work included: "
            f"{os.getloadavg()[1]:.1f}. Made by `python benchmarks/profiling.py`.",
            "",
            f"Forward at batch 1, {given.rounds} rounds in turns; medians of rounds. Difference: segbench against the "
            "peer. Spread: the largest median of a round over the smallest. Asked for: 2 % and 3 %, or unstable.",
            "",
            "| | segbench ms | peer ms | difference % | spread % | the peer's spread % | unstable |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
        ]
    )
    given.out.write_text(text) if given.out else print(text)


if __name__ == "__main__":
    main()
