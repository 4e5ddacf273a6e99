"""Augmentation on the device, by torchvision's v2 transforms: colour, mirror image, scale, crop, in this order.

Every image is changed by draws of its own seed, and that seed follows from the run's and from the image's place in the
stream of training images. So batches, processes and interruptions change nothing, and the caller's random generators
stay as they were.

Conventions:

- Colour is torchvision's `ColorJitter`: factors from [1 - x, 1 + x] (hue: a shift from [-x, x] of its circle), in a
  random order, before anything is padded.
- A scale is drawn uniformly, one for both sides. Images are resized bilinearly with antialiasing; a new pixel takes the
  label that lies under its centre. torchvision's `ScaleJitter` takes that under its upper left corner, which moves the
  labels by half a pixel against their image.
- A crop lies anywhere in the image. Where that is smaller, it lies anywhere in the crop; the rest is void, and grey 128
  in the image, the middle of the range whatever a network's input subtracts.
- Labels are only moved: no value appears that was not there, but void.

Departures: the draws are torch's on the CPU for every device, but a GPU rounds a resized pixel otherwise than a CPU, by
one level at most.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from segbench.data.batches import Batch
from segbench.engine.recipe import Augmentation

PADDING = 128


class RandomScale(v2.Transform):
    """Image and labels at a size drawn between two factors of their own."""

    def __init__(self, least: float, most: float) -> None:
        super().__init__()
        self.least, self.most = least, most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = self.least + (self.most - self.least) * float(torch.rand(()))
        return {"size": [max(1, round(side * factor)) for side in F.get_size(flat_inputs[0])]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return F.resize(inpt, params["size"], InterpolationMode.BILINEAR, antialias=True)
        # As a plain tensor: not every torchvision lets a mask choose its interpolation.
        resized = F.resize(inpt.as_subclass(Tensor)[None], params["size"], InterpolationMode.NEAREST_EXACT)
        return tv_tensors.Mask(resized[0])


def image_seeds(seed: int, places: Iterable[int]) -> list[int]:
    """A seed of 32 bits, which is what torch's generator takes in, for each place in the stream of training images."""
    return [int(np.random.SeedSequence((seed, place)).generate_state(1)[0]) for place in places]


def augmented(batch: Batch, settings: Augmentation, seeds: Sequence[int], void: int) -> Batch:
    """Each image and its labels as its seed has it, on the batch's device; the very same batch where nothing is set.

    `void` is K, the label of what is not in the image.
    """
    change = transforms(settings, void)
    if not change:
        return batch
    images, labels = [], []
    with torch.random.fork_rng(devices=[]):
        for image, ids, seed in zip(*batch, seeds, strict=True):
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the GPUs too
            image, ids = v2.Compose(change)(tv_tensors.Image(image), tv_tensors.Mask(ids))
            images.append(image)
            labels.append(ids)
        return Batch(torch.stack(images), torch.stack(labels))


def transforms(settings: Augmentation, void: int) -> list[v2.Transform]:
    """What the settings ask for, in order."""
    chosen: list[v2.Transform] = []
    colour = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    if any(colour):
        chosen.append(v2.ColorJitter(*colour))
    if settings.flip:
        chosen.append(v2.RandomHorizontalFlip(settings.flip))
    if settings.scale:
        chosen.append(RandomScale(*settings.scale))
    if settings.crop:
        fill = {tv_tensors.Image: PADDING, tv_tensors.Mask: void}
        chosen.append(v2.RandomCrop(settings.crop, pad_if_needed=True, fill=fill))
    return chosen
