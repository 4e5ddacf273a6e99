"""What feeding a network costs: frames kept in memory and made ahead, against torch's DataLoader that decodes anew.

    python -m benchmarks.loading [--data data] [--out benchmarks/loading.md] [--rounds 5] [--images 120]

Both give batches of 12 uint8 frames and labels of the real CamVid at 360x480, in one shuffled order, on the device.
The DataLoader has two workers, kept between epochs, pinned memory on a GPU, and a dataset as torchvision's are
written: it opens both files of a sample with Pillow each time. Ways take turns; medians. The first epoch of ours
decodes with a thread for each processor; files are in the system's cache for both.

Waiting is the share of a training epoch's time that `next` takes, for a network of two convolutions, which leaves less
time to hide loading behind than any that is benchmarked, and for SegNet-Basic. A step ends with its loss on the host.
The first batch, which nothing hides, is left out.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.machine import described
from segbench.data.batches import Frames
from segbench.data.camvid import CamVid
from segbench.data.prefetch import prefetched
from segbench.engine.device import resolve_device
from segbench.models.build import build

BATCH, WORKERS, CLASSES = 12, 2, 11
Epoch = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class Decoding(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A sample of CamVid as torchvision's datasets give one."""

    def __init__(self, dataset: CamVid) -> None:
        self.files = [(frame.image, frame.annotation) for frame in dataset.frames]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, annotation = self.files[index]
        pixels, ids = np.array(Image.open(image).convert("RGB")), np.array(Image.open(annotation))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), torch.from_numpy(ids)


class Convolutions(nn.Module):
    """Two of them, after the division by 255."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))

    def input(self, images: Tensor) -> Tensor:
        return images / 255

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def ways(dataset: CamVid, orders: list[list[int]], where: torch.device) -> dict[str, Epoch]:
    """The same batches, fed in each way; `Frames` here have been decoded before, but for the first."""
    warm = Frames(dataset)
    assert warm.fits, "the frames do not fit into memory: there would be nothing to compare"
    warm.batch(range(len(dataset)))
    loader = DataLoader(
        Decoding(dataset),
        batch_sampler=orders,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=where.type == "cuda",
    )

    def loaded() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            yield images.to(where, non_blocking=True), labels.to(where, non_blocking=True)

    return {
        "DataLoader, two workers": loaded,
        "ours, first epoch": lambda: prefetched(Frames(dataset), orders, where),
        "ours, later epochs": lambda: prefetched(warm, orders, where),
        "ours, later epochs, none ahead": lambda: (warm.batch(order, where) for order in orders),
    }


def settle(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def seconds_alone(epoch: Epoch, where: torch.device) -> float:
    """What an epoch takes when nothing is done with its batches."""
    began = time.perf_counter()
    for _ in epoch():
        pass
    settle(where)
    return time.perf_counter() - began


def waiting(epoch: Epoch, network: nn.Module, where: torch.device) -> float:
    """The share of an epoch's time that its steps wait for their batches."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    batches = epoch()
    batch: tuple[Tensor, Tensor] | None = next(batches)
    waited, began = 0.0, time.perf_counter()
    while batch is not None:
        images, labels = batch
        loss = F.cross_entropy(network(network.input(images)), labels.long(), ignore_index=CLASSES)  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
    return waited / (time.perf_counter() - began)


def in_turn(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median over rounds in which all take turns; the first round warms up and does not count."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds + 1):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: median(values[1:]) for name, values in found.items()}


def rates(epochs: dict[str, Epoch], images: int, rounds: int, where: torch.device) -> Iterable[str]:
    measures = {name: (lambda epoch=epoch: seconds_alone(epoch, where)) for name, epoch in epochs.items()}
    found = {name: images / seconds for name, seconds in in_turn(measures, rounds).items()}
    peer = next(iter(found.values()))
    yield from ["## Images a second", "", "| | images a second | x DataLoader |", "|---|---:|---:|"]
    yield from (f"| {name} | {rate:.0f} | {rate / peer:.2f} |" for name, rate in found.items())


def shares(epochs: dict[str, Epoch], names: list[str], rounds: int, where: torch.device) -> Iterable[str]:
    networks = {name: Convolutions() if name == "two convolutions" else build(name, CLASSES) for name in names}
    yield from ["", "## Share of a training loop that waits for data", ""]
    yield from [f"| % | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    rows: dict[str, list[str]] = {name: [] for name in epochs}
    for network in networks.values():
        there = network.to(where).train()
        measures = {n: (lambda epoch=e, net=there: waiting(epoch, net, where)) for n, e in epochs.items()}
        for name, share in in_turn(measures, rounds).items():
            rows[name].append(f"{100 * share:.2f}")
    yield from (f"| {name} | {' | '.join(row)} |" for name, row in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SEGBENCH_DATA", "data")))
    parser.add_argument("--out", type=Path, help="a Markdown file; the terminal otherwise")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=120, help="an epoch's; whole batches of them are used")
    parser.add_argument("--networks", nargs="*", default=["two convolutions", "segnet-basic"])
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    where = resolve_device(given.device)
    dataset = CamVid("train", root=given.data)
    number = min(given.images, len(dataset)) // BATCH
    order = np.random.RandomState(0).permutation(len(dataset))[: number * BATCH]
    orders = order.reshape(number, BATCH).tolist()
    epochs = ways(dataset, orders, where)
    tables = [*rates(epochs, number * BATCH, given.rounds, where)]
    tables += shares(epochs, given.networks, given.rounds, where)
    text = "\n".join(
        [
            "# Feeding a network",
            "",
            f"CamVid's training frames at 360x480, {number} batches of {BATCH} on {where.type}; {WORKERS} workers.",
            f"Medians of {given.rounds} rounds, all ways in turns; load of the machine meanwhile, other work included: "
            f"{os.getloadavg()[1]:.1f}.",
            f"{described(where)}, Python {platform.python_version()}, torch {torch.__version__}, {date.today()}. "
            "Made by `python -m benchmarks.loading`.",
            "",
            *tables,
            "",
        ]
    )
    given.out.write_text(text) if given.out else print(text)


if __name__ == "__main__":
    main()
