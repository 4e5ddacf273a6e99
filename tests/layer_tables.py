"""A network's layers beside a table of them: what each puts out, its parameters and its work, without memory.

A table has a line a layer, in the order in which they run: a name for the reader, the size put out and, of
convolutions, the parameters (batch normalisation is not counted) and the GMAC. Poolings, unpoolings, joins and a last
crop have a size alone: what the next convolution must be fed, or what the network must put out.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Row(NamedTuple):
    name: str
    size: tuple[int, int]
    parameters: int | None = None
    gmac: float | None = None


class Layer(NamedTuple):
    path: str
    fed: tuple[int, int]
    size: tuple[int, int]
    parameters: int
    gmac: float


def rows(table: str) -> Iterator[Row]:
    for line in table.strip().splitlines():
        name, size, *numbers = line.split()
        height, width = size.split("x")
        parameters, gmac = (int(numbers[0].replace(",", "")), float(numbers[1])) if numbers else (None, None)
        yield Row(name, (int(height), int(width)), parameters, gmac)


def layers_run(model: nn.Module, images: Tensor) -> tuple[list[Layer], tuple[int, int]]:
    """The convolutions and deconvolutions in the order in which they run, and the size of what comes out."""
    found: list[Layer] = []

    def seen(path: str, module: nn.Module, fed: Tensor, out: Tensor) -> None:
        parameters = sum(parameter.numel() for parameter in module.parameters())
        # The counter counts a multiply-accumulate as two operations.
        gmac = sum(counter.get_flop_counts()[f"{type(model).__name__}.{path}"].values()) / 2e9
        found.append(Layer(path, size_of(fed), size_of(out), parameters, gmac))

    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(lambda layer, fed, out, path=path: seen(path, layer, fed[0], out))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model(images)
    return found, size_of(output)


def size_of(features: Tensor) -> tuple[int, int]:
    return features.shape[-2], features.shape[-1]


def assert_layers_are(table: str, model: nn.Module, images: Tensor) -> None:
    """Every line of the table and no convolution besides; GMAC to its three decimals."""
    layers, output = layers_run(model, images)
    following = [*layers, Layer("the output", output, output, 0, 0.0)]
    for row in rows(table):
        if row.gmac is None:
            assert following[0].fed == row.size, (row, following[0])
            continue
        layer = following.pop(0)
        assert (layer.size, layer.parameters) == (row.size, row.parameters), (row, layer)
        assert abs(layer.gmac - row.gmac) < 0.00051, (row, layer)
    assert [layer.path for layer in following] == ["the output"]


def caffe_pooled(side: int, kernel: int, stride: int, padding: int) -> int:
    """How long a side is after Caffe's pooling: rounded up, without a window that begins beyond the padded side."""
    out = -(-(side + 2 * padding - kernel) // stride) + 1
    return out - 1 if padding and (out - 1) * stride >= side + padding else out
