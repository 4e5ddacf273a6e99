"""Pooling with places and unpooling against PyTorch's own, at SegNet's five stages: time, and what is kept.

    python -m benchmarks.unpooling > benchmarks/unpooling.md

One repetition is a round over all candidates, so that whatever else the machine does meets them alike; the median of
the rounds counts. On a CPU the process's own processor time is taken (other programs and waiting do not count, and
several threads add up), on CUDA the time on the wall. Values are random float32 of SegNet's maps at 360x480.

"Kept" is what lives from the pooling of a stage to its unpooling: in inference the places; in training what autograd
saves, without the map that is pooled, because the ReLU before it keeps that anyway. On CUDA the highest memory in use
during a step is measured as well.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from statistics import geometric_mean, median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import processor
from segbench.models.unpooling import pool_with_places, unpool

MIB = 2**20
# channels, height and width of the maps that SegNet pools
STAGES = ((64, 360, 480), (128, 180, 240), (256, 90, 120), (512, 45, 60), (512, 23, 30))

Pool = Callable[[Tensor], tuple[Tensor, Tensor]]
Unpool = Callable[[Tensor, Tensor, torch.Size], Tensor]


def with_indices(features: Tensor) -> tuple[Tensor, Tensor]:
    pooled, indices = F.max_pool2d(features, 2, 2, ceil_mode=True, return_indices=True)
    return pooled, indices


def max_unpooled(values: Tensor, indices: Tensor, size: torch.Size) -> Tensor:
    return F.max_unpool2d(values, indices, 2, output_size=size)


def scattered(values: Tensor, indices: Tensor, size: torch.Size) -> Tensor:
    flat = values.new_zeros(*values.shape[:2], size[0] * size[1])
    return flat.scatter(2, indices.flatten(2), values.flatten(2)).unflatten(2, size)


PEER = "max_unpool2d"
CANDIDATES: dict[str, tuple[Pool, Unpool]] = {
    PEER: (with_indices, max_unpooled),
    "int64 scatter": (with_indices, scattered),
    "byte": (lambda features: pool_with_places(features, "byte"), unpool),
    "two-bit": (lambda features: pool_with_places(features, "two-bit"), unpool),
}


def forward(features: Tensor, pool: Pool, unpooling: Unpool) -> tuple[Tensor, Tensor]:
    pooled, places = pool(features)
    return unpooling(pooled, places, features.shape[-2:]), places


def step(features: Tensor, gradient: Tensor, pool: Pool, unpooling: Unpool) -> None:
    restored, _ = forward(features, pool, unpooling)
    torch.autograd.grad(restored, features, gradient)


def kept_in_training(features: Tensor, pool: Pool, unpooling: Unpool) -> int:
    """Bytes that autograd saves, each memory once, without that of `features`."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Alive until the count, or an address could serve twice.
        _alive = forward(features, pool, unpooling)
    kept.pop(features.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def seconds(work: Callable[[], object], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronise(device)
    start = clock()
    work()
    synchronise(device)
    return clock() - start


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before


def medians(works: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, after one round to warm up (and, on CUDA, to compile)."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            taken[name].append(seconds(work, device))
    return {name: median(samples[1:]) for name, samples in taken.items()}


def measured(shape: tuple[int, ...], rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """By candidate: seconds forward and of a step, bytes kept in inference and in training, peak bytes on CUDA."""
    features = torch.randn(shape, device=device)
    leaf, gradient = features.clone().requires_grad_(), torch.randn(shape, device=device)
    with torch.inference_mode():
        infer = {name: (lambda pair=pair: forward(features, *pair)) for name, pair in CANDIDATES.items()}
        forwards = medians(infer, rounds, device)
        kept = {name: work()[1].nbytes for name, work in infer.items()}
    train = {name: (lambda pair=pair: step(leaf, gradient, *pair)) for name, pair in CANDIDATES.items()}
    steps = medians(train, rounds, device)
    found = {
        name: {"forward": forwards[name], "step": steps[name], "inference": kept[name]}
        | {"training": kept_in_training(leaf, *CANDIDATES[name])}
        for name in CANDIDATES
    }
    if device.type == "cuda":
        for name, work in train.items():
            found[name]["peak"] = peak_bytes(work, device)
    return found


def report(batch: int, stages: list[dict[str, dict[str, float]]]) -> Iterator[str]:
    peak = "peak" in stages[0][PEER]
    yield f"\n## Batch {batch}\n"
    yield "| stage | candidate | forward, ms | ratio | forward and backward, ms | ratio | kept in inference, MiB |" + (
        " kept in training, MiB | ratio |" + (" peak of a step, MiB |" if peak else "")
    )
    yield "|---|---|" + "---:|" * (7 + peak)
    for number, stage in enumerate(stages, start=1):
        for name in CANDIDATES:
            yield row(str(number), name, stage)
    total = {
        name: {key: sum(stage[name][key] for stage in stages) for key in stages[0][name] if key != "peak"}
        for name in CANDIDATES
    }
    for name in CANDIDATES:
        yield row("all", name, total) + (" |" if peak else "")
    yield "\nGeometric mean of the five ratios of time, forward / forward and backward: " + "; ".join(
        f"{name} {mean_ratio(stages, name, 'forward'):.2f} / {mean_ratio(stages, name, 'step'):.2f}"
        for name in CANDIDATES
        if name != PEER
    )


def row(stage: str, name: str, found: dict[str, dict[str, float]]) -> str:
    own, peer = found[name], found[PEER]
    cells = [stage, name]
    for key in ("forward", "step"):
        cells += [f"{own[key] * 1e3:.2f}", f"{own[key] / peer[key]:.2f}"]
    cells += [f"{own['inference'] / MIB:.3f}", f"{own['training'] / MIB:.3f}"]
    cells += [f"1/{peer['training'] / own['training']:.0f}"]
    if "peak" in own:
        cells.append(f"{own['peak'] / MIB:.1f}")
    return f"| {' | '.join(cells)} |"


def mean_ratio(stages: list[dict[str, dict[str, float]]], name: str, key: str) -> float:
    return geometric_mean([stage[name][key] / stage[PEER][key] for stage in stages])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    clock = "processor" if device.type == "cpu" else "wall"
    print("# Unpooling against `F.max_pool2d` and `F.max_unpool2d`\n")
    print("`python -m benchmarks.unpooling`; ratios are to `F.max_pool2d` with indices and `F.max_unpool2d`.\n")
    print(f"Device: {device.type}, {name}; threads: {torch.get_num_threads()}; torch {torch.__version__};", end=" ")
    print(f"median of {arguments.rounds} rounds of {clock} time; {datetime.now(UTC):%Y-%m-%d}.")
    for batch in (1, 4):
        stages = [measured((batch, *shape), arguments.rounds, device) for shape in STAGES]
        print(*report(batch, stages), sep="\n")


if __name__ == "__main__":
    main()
