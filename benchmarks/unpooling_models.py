"""What two bits a window save in whole networks: SegNet and SegNet-Basic at 360x480, against `F.max_unpool2d` in them.

    python -m benchmarks.unpooling_models > benchmarks/unpooling_models.md

Times and memory are `segbench profile`'s: mean of the passes at batch 1 after one to warm up, training memory at batch
4 and inference memory at batch 1 in fresh processes. The peer is the same network with `F.max_pool2d`'s 64-bit indices
and `F.max_unpool2d` in place of ours. The candidates are measured in turn, on a machine that should do little
else.
"""

import argparse
import platform
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from unittest import mock

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.unpooling import max_unpooled, with_indices
from segbench.models.build import build
from segbench.profiling.profile import profile
from segbench.profiling.spec import ProfileSpec
from segbench.report.tables import costs

CLASSES, PEER = 11, "max_unpool2d"
CANDIDATES = (PEER, "byte", "two-bit")
MODULES = {"segnet": "segbench.models.segnet", "segnet-basic": "segbench.models.segnet_basic"}
COLUMNS = {"infer_ms": 1, "forward_ms": 1, "backward_ms": 1, "train_mib": 0, "infer_mib": 0}


class WithIndices(nn.Module):
    """A network whose pooling and unpooling are PyTorch's while it runs forward."""

    def __init__(self, network: nn.Module, module: str) -> None:
        super().__init__()
        self.network, self.module = network, module

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        there = import_module(self.module)
        pool, unpool = lambda features, _: with_indices(features), max_unpooled
        with mock.patch.object(there, "pool_with_places", pool), mock.patch.object(there, "unpool", unpool):
            return self.network(images)


def candidate(name: str, form: str) -> nn.Module:
    if form != PEER:
        return build(name, CLASSES, {"places": form})
    return WithIndices(build(name, CLASSES), MODULES[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--network", choices=MODULES, action="append", help="only this one; may be repeated")
    given = parser.parse_args()
    device, spec = given.device, ProfileSpec(repetitions=given.repetitions)
    # By its own name, for memory is measured in processes that know this file by no other.
    make = import_module("benchmarks.unpooling_models").candidate
    print("# Unpooling in whole networks, against `F.max_pool2d` and `F.max_unpool2d`\n")
    print("`python -m benchmarks.unpooling_models`; in brackets the ratio to `max_unpool2d`.\n")
    on = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    versions = f"threads: {torch.get_num_threads()}; torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d}"
    print(f"Device: {device}, {on}; {versions}; 360x480, times: mean of {given.repetitions} at")
    print("batch 1; memory (training at batch 4, inference at batch 1): peak resident set above the warm process.\n")
    print("| network | places | Infer ms | Fwd ms | Bwd ms | Train MiB | Infer MiB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name in given.network or MODULES:
        peer: dict[str, int | float | None] = {}
        for form in CANDIDATES:
            found = costs(profile(partial(make, name, form), CLASSES, spec, device))
            peer = peer or found
            cells = []
            for key, digits in COLUMNS.items():
                value, reference = found[key], peer[key]
                ratio = f" ({value / reference:.2f})" if value and reference else ""
                cells.append("n/a" if value is None else f"{value:.{digits}f}{ratio}")
            print(f"| {name} | {form} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
