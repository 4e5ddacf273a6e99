"""What test_distributed.py does on one process and on two, to compare: `torchrun distributed_cases.py FOLDER`.

Each case returns plain values; every process writes its own to FOLDER/<rank>.pt.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segbench.data.batches import Frames
from segbench.data.synthetic import Synthetic
from segbench.engine import distributed
from segbench.engine.batchnorm import use_training_set
from segbench.engine.data_parallel import batch_loss, nothing_to_learn, parallel
from segbench.engine.evaluate import evaluate
from segbench.engine.inference import PLAIN, MonteCarlo
from segbench.engine.recipe import Recipe
from segbench.models.input import Input
from segbench.scoring.counts import Counts
from segbench.scoring.spec import BoundarySpec, ScoreSpec

CPU = torch.device("cpu")
CLASSES, VOID = 3, 3
IMAGES, BATCH = 10, 6
RECIPE = Recipe.model_validate({"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": BATCH, "iterations": 1})


class Convolutions(nn.Module):
    """Three layers in float64, one of which every other pass leaves out; nothing random, no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.sometimes, self.last = (nn.Conv2d(c, k, 3) for c, k in ((3, 4), (4, 4), (4, CLASSES)))
        self.double()
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images).tanh()
        self.passes += 1
        return self.last(self.sometimes(features) if self.passes % 2 else features[:, :, 1:-1, 1:-1])


def picture(index: int) -> tuple[Tensor, Tensor]:
    """An image and labels of the size of the logits of both ways; the share of void differs much between images."""
    drawn = torch.Generator().manual_seed(index)
    labels = torch.randint(0, CLASSES, (6, 7), generator=drawn)
    labels[torch.rand(6, 7, generator=drawn) < index / IMAGES] = VOID
    return torch.randn(3, 12, 13, generator=drawn, dtype=torch.float64), labels


def learn(normaliser: str, weights: Tensor | None, accumulate: int, sizes: list[int], lr: float) -> dict[str, Any]:
    """Ten updates by momentum, whose batches have these sizes in turn."""
    model = Convolutions()
    network = parallel(model, RECIPE, CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses, first = [], 0
    for _ in range(10):
        optimizer.zero_grad()
        for number in range(accumulate):
            size = sizes[number % len(sizes)]
            images = [picture(i % IMAGES) for i in range(first, first + size)]
            first += size
            logits, labels = through(network, images, last=number == accumulate - 1)
            loss = batch_loss(logits, labels.byte(), VOID, weights, normaliser)
            (loss / accumulate).backward()
            losses.append(float(distributed.averaged(loss.detach())))
        network.require_backward_grad_sync = True  # type: ignore[assignment]
        optimizer.step()
    return {"losses": losses, "state": model.state_dict()}


def through(network: nn.Module, images: list[tuple[Tensor, Tensor]], last: bool) -> tuple[Tensor, Tensor]:
    """Logits and labels of this process's part of a batch; gradients are brought together in the last pass."""
    network.require_backward_grad_sync = last  # type: ignore[assignment]
    own = distributed.share(images)
    frames, labels = (torch.stack(each) for each in zip(*(own or images[:1]), strict=True))
    logits = network(frames)
    labels = labels[:, : logits.shape[2], : logits.shape[3]]
    return logits, labels if own else torch.full_like(labels, VOID)


class Guess(nn.Module):
    """Three classes by colour, through normalisation and a dropout that only samples see."""

    input = Input(scale=1 / 255)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.norm, self.drop, self.classify = nn.BatchNorm2d(3), nn.Dropout(0.3), nn.Conv2d(3, 11, 5, padding=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.drop(self.norm(images)))


SCORE = ScoreSpec(boundary=BoundarySpec(rules=("bsds", "distance"), tolerances=("0.75%", "2px"), iou=("2%",)))


def score(folder: Path, images: int, inference: Any) -> dict[str, Any]:
    """Everything that an evaluation leaves, files and all."""
    frames = Frames(Synthetic("test", size=(24, 32), test=images))
    steps = evaluate(Guess(), frames, 11, SCORE, CPU, folder, inference)
    seen = []
    while True:
        try:
            seen.append(tuple(next(steps)))
        except StopIteration as end:
            found = end.value._asdict()
            break
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    if not distributed.is_first():
        return {"seen": seen, "found": found}
    counts = Counts.load(folder / "counts.npz")
    arrays = {"confusion": counts.confusion, **counts.boundary, **counts.bands}
    return {"seen": seen, "found": found, "files": files, "names": counts.names, "counts": arrays}


def statistics() -> dict[str, Tensor]:
    """Those of the training set, of a layer that a training on GPUs would have brought together."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Guess())
    use_training_set(model, Frames(Synthetic("train", size=(24, 32), train=7)), 4, CPU)
    assert not any("forward" in vars(module) for module in model.modules())
    return model.state_dict()


WEIGHTS = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
CASES: dict[str, Callable[[Path], Any]] = {
    "plain": lambda _: learn("valid-pixels", None, 1, [BATCH], 0.1),
    "weighted": lambda _: learn("valid-pixels", WEIGHTS, 1, [BATCH], 0.1),
    "by weights": lambda _: learn("weights", WEIGHTS, 1, [BATCH], 0.1),
    "by nothing": lambda _: learn("none", WEIGHTS, 1, [BATCH], 1e-4),
    "accumulated": lambda _: learn("valid-pixels", WEIGHTS, 3, [BATCH], 0.1),
    "short": lambda _: learn("valid-pixels", WEIGHTS, 2, [BATCH, 3], 0.1),
    "one image": lambda _: learn("weights", WEIGHTS, 2, [1, BATCH], 0.1),
    "scores": lambda folder: score(folder / "scores", 23, PLAIN),
    "scores of one": lambda folder: score(folder / "one", 1, PLAIN),
    "scores of whole batches": lambda folder: score(folder / "whole", 8, PLAIN),
    "samples": lambda folder: score(folder / "samples", 11, MonteCarlo(name="monte-carlo", samples=3)),
    "statistics": lambda _: statistics(),
    "share": lambda _: [distributed.share(range(n)) for n in range(6)],
    "sum": lambda _: distributed.summed(torch.tensor(2**40 + distributed.rank() + 1)).item(),
    "mean": lambda _: distributed.averaged(torch.tensor(3.0 - 2 * distributed.rank())).item(),
    "gathered": lambda _: distributed.gathered(f"of {distributed.rank()}"),
    "told": lambda _: distributed.told([distributed.rank(), "says"]),
    "agreed": lambda _: [distributed.agreed(bool(distributed.rank()) != yes) for yes in (True, False)],
    "spread": lambda _: spread(),
    "nothing to learn": lambda _: nothing_to_learn_of(),
    "processes": lambda _: (distributed.rank(), distributed.processes(), distributed.is_first()),
}


def spread() -> list[Any]:
    """A tensor whose memory has gaps is overwritten in place, and a weight that takes gradients too."""
    whole = torch.full((2, 3), float(distributed.rank()))
    weight = nn.Parameter(torch.full((2,), 5.0 + distributed.rank()))
    distributed.spread([whole[:, ::2], weight])
    return [whole.tolist(), weight.tolist()]


def nothing_to_learn_of() -> list[Any]:
    batch = Frames(Synthetic("test", size=(24, 32), test=2)).batch([1])
    return [tensor.unique().tolist() for tensor in nothing_to_learn(batch, 11)]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with distributed.started(CPU):
        found = {name: case(folder) for name, case in CASES.items()}
        torch.save(found, folder / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
