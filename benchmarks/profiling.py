"""Whether segbench's times are those of other people's timers, and whether they come out the same again.

    python benchmarks/profiling.py [--out benchmarks/profiling.md] [--rounds 5] [--device auto] [--threads N]

The same callable, a forward in inference mode, is timed by the protocol `steady` and by a named peer: on a CPU
`torch.utils.benchmark.Timer` (`blocked_autorange`), on a GPU Triton's `do_bench`, which clears the cache between runs
where `steady` waits for an idle device. The two take turns. What is asked: medians within 2 % of the peer's, and
repetitions within 3 % of each other, or the word unstable. Waiting for the clock to pass 5 ms takes the same time on
every machine, quiet or not: it shows what the timers themselves add.
"""

import argparse
import os
import platform
import sys
import time
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
from segbench.spec import write_size

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


def waiting(ms: float = 5.0) -> None:
    """Busy, not asleep: a sleep ends when the system pleases."""
    end = time.perf_counter_ns() + round(ms * 1e6)
    while time.perf_counter_ns() < end:
        pass


def forward_of(name: str, device: torch.device) -> Callable[[], object]:
    size = SIZES[name]
    model = seeded(lambda: build(name, CLASSES, NETWORKS[name], size), device).eval()
    images = random_images(1, size, device)
    return lambda: model(images)


@torch.inference_mode()
def compared(forward: Callable[[], object], device: torch.device, rounds: int) -> tuple[list[Samples], list[float]]:
    """Samples of each round by segbench, and the peer's median of each."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(time_inference(forward, device, ProfileSpec(), None)[0])
        theirs.append(peer_ms(forward, device))
    return ours, theirs


def row(name: str, ours: list[Samples], theirs: list[float]) -> str:
    medians = [s.median for s in ours]
    # Of the two in one round: what lasts longer than a round is no difference of timers.
    difference = 100 * (median(own / peer for own, peer in zip(medians, theirs, strict=True)) - 1)
    stable = [s.median for s in ours if s.stable is True]
    return (
        f"| {name} | {median(medians):.3f} | {median(theirs):.3f} | {difference:+.1f} | {spread(medians)} | "
        f"{spread(stable)} | {spread(theirs)} | {len(ours) - len(stable)} of {len(ours)} |"
    )


def spread(medians: list[float]) -> str:
    """Of repeated medians the largest over the smallest, less one, in percent; one alone repeats nothing."""
    return f"{100 * (max(medians) / min(medians) - 1):.1f}" if len(medians) > 1 else "n/a"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a Markdown file; the terminal otherwise")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of a CPU; without it PyTorch's own choice")
    given = parser.parse_args()
    device = resolve_device(given.device)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    rows = []
    if device.type == "cpu":
        rows.append(row("waiting for 5 ms to pass", *compared(waiting, device, given.rounds)))
    for name in NETWORKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows.append(row(f"{name} {write_size(SIZES[name])}", *compared(forward_of(name, device), device, given.rounds)))
    text = "\n".join(
        [
            "# Times beside another timer's, and repeated",
            "",
            f"{device_name(device)}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch "
            f"{torch.__version__}, {date.today()}; load of the machine meanwhile, this work included: "
            f"{os.getloadavg()[1]:.1f}. Made by `python benchmarks/profiling.py`.",
            "",
            f"Forward at batch 1, {given.rounds} rounds in turns; medians of rounds. Difference: segbench against the "
            "peer, median of the rounds. Spread: the largest median of a round over the smallest; stable: of those "
            "rounds alone that were not called unstable. Asked for: 2 %, and 3 % of the stable.",
            "",
            "| | segbench ms | peer ms | difference % | spread % | stable % | the peer's spread % | unstable |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
        ]
    )
    given.out.write_text(text) if given.out else print(text)


if __name__ == "__main__":
    main()
