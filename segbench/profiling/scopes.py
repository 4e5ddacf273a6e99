"""What is timed beside the network: how images come to it and labels leave it, by the parts that a scope names.

A scope's parts are steps before and behind the network, each what its users write in PyTorch:

    part        before the network                              behind it
    +loader     PNG files read and decoded by Pillow, one by
                one in this thread, then copied to the device
    +transfer   host memory (pinned for CUDA) copied to the     the result copied to the host
                device
    +resize     frames to the network's size                    logits to the frames' size
    +input      the model's own `input`, from 8-bit RGB
    +argmax                                                     label maps of logits

Frames are resized by torchvision, bilinearly with antialiasing, before anything else is done to them; logits
bilinearly with pixel centres aligned (`align_corners=False`). A label map is 8-bit, 64-bit beyond 255 classes. On a
CPU `+transfer` has nothing to copy.

The files hold random pixels, which no PNG compresses: they are larger than photographs, and from their second reading
on they come from the system's cache. So `+loader` is the cost of decoding on a machine whose disk keeps up.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from segbench.data.labels import read_image
from segbench.precision import arranged
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.workload import Images, checked, declared_input, random_images

FILES = 8
"""Image files that `+loader` goes through, over and over."""

Step = Callable[[Tensor], Tensor]
Source = Callable[[], Images]


class Pipeline(NamedTuple):
    """What a scope sets around a network: `images` makes what it is fed, anew each time, `result` of its logits what
    the scope ends with. Training passes take `images` and leave `result` out."""

    images: Source
    result: Step

    def through(self, network: Callable[[Images], Tensor], num_classes: int) -> Callable[[], Tensor]:
        """The region that is timed; its first run raises `ModelError` when the network gives no map of logits."""
        logits = checked(network, num_classes)
        return lambda: self.result(logits(self.images()))


@contextmanager
def pipeline(model: nn.Module, spec: ProfileSpec, num_classes: int, device: torch.device) -> Iterator[Pipeline]:
    """The pipeline of `spec.scope` at `spec.time_batch`; what it needs is made here, and its files are gone afterwards.

    `model` is the network itself, not one behind its `input` (`Fed`). Raises `ModelError` when the scope includes
    `+input` and the model declares none.
    """
    parts = spec.scope.split("+")
    before, behind = steps_before(parts, model, spec, device), steps_behind(parts, spec, num_classes)
    with ExitStack() as stack:
        if "loader" in parts:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="segbench-frames-"))
            source = loader(write_frames(Path(folder), spec.frame or spec.res), spec.time_batch)
        else:
            frames = first_frames(parts, spec, device)
            source = lambda: frames  # noqa: E731 - a source like the other
        # Frames that begin on the device are in the network's layout beforehand, others are brought into it each time.
        before.append(lambda images: arranged(images, spec.channels_last))
        yield Pipeline(lambda: composed(before)(source()), composed(behind))


def first_frames(parts: Sequence[str], spec: ProfileSpec, device: torch.device) -> Images:
    """Random frames where the scope begins: on the device, or on the host, pinned if they go to CUDA."""
    start = torch.device("cpu") if "transfer" in parts else device
    frames = random_images(spec.time_batch, spec.frame or spec.res, start, spec.scope)
    frames = arranged(frames, spec.channels_last)
    return frames.pin_memory() if start.type == "cpu" and device.type == "cuda" else frames


def steps_before(parts: Sequence[str], model: nn.Module, spec: ProfileSpec, device: torch.device) -> list[Step]:
    steps: list[Step] = []
    if "loader" in parts or "transfer" in parts:
        steps.append(lambda images: upload(images, device))
    if "resize" in parts:
        steps.append(resized_frames(spec.res))
    if "input" in parts:
        steps.append(declared_input(model))
    return steps


def steps_behind(parts: Sequence[str], spec: ProfileSpec, num_classes: int) -> list[Step]:
    steps: list[Step] = []
    if "resize" in parts and spec.frame is not None:
        frame = spec.frame
        steps.append(lambda logits: logits_resized(logits, frame))
    if "argmax" in parts:
        steps.append(lambda logits: label_maps(logits, num_classes))
    if "transfer" in parts:
        steps.append(lambda result: result.cpu())
    return steps


def composed(steps: Sequence[Step]) -> Step:
    return lambda given: reduce(lambda value, step: step(value), steps, given)


def write_frames(folder: Path, size: tuple[int, int]) -> list[Path]:
    """`FILES` PNG files of random 8-bit RGB, height x width."""
    paths = [folder / f"{index}.png" for index in range(FILES)]
    frames = random_images(FILES, size, torch.device("cpu"), "model+input")
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(path)
    return paths


def loader(paths: Sequence[Path], batch: int) -> Callable[[], UInt8[Tensor, "n 3 h w"]]:
    """A source that reads and decodes the next `batch` files each time, beginning again after the last."""
    endless = cycle(paths)
    return lambda: torch.stack([torch.from_numpy(read_image(path)).permute(2, 0, 1) for path in islice(endless, batch)])


def upload(images: Images, device: torch.device) -> Images:
    """The host's images on the device; for CUDA from pinned memory, which images that are pinned already stay in."""
    return images.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else images.to(device)


def resized_frames(size: tuple[int, int]) -> Step:
    """Frames to `size`, height x width, in the type that they have."""
    from torchvision.transforms.v2.functional import resize  # here: no other scope waits for this import

    return lambda frames: resize(frames, list(size), antialias=True)


def logits_resized(logits: Float[Tensor, "n k h w"], size: tuple[int, int]) -> Float[Tensor, "n k rows columns"]:
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def label_maps(logits: Float[Tensor, "n k h w"], num_classes: int) -> UInt8[Tensor, "n h w"] | Int[Tensor, "n h w"]:
    """The class of the largest score: uint8, int64 where the classes are more than 255."""
    labels = logits.argmax(1)
    return labels if num_classes > 255 else labels.to(torch.uint8)
