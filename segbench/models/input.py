"""What a network is fed: the step from a camera's 8 bits to the numbers that its paper trained on.

The order of the steps: channels are put in the network's order, multiplied by `scale`, then (x - mean) / std, then
normalised locally: not at all, by `lrn` (below) or by `lcn` (local_contrast.py). Mean and std are in the network's
channel order and after `scale`.

The SegNet paper (section 3.1) feeds its small networks local contrast normalisation; the released file has local
response normalisation instead, and nothing at all for the deep SegNet. A model declares its own; a recipe's `input`
replaces what it sets.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from segbench.errors import ModelError
from segbench.models.input_spec import InputSpec, LocalNormalisation, Order
from segbench.models.local_contrast import local_contrast_normalised

# Caffe's LRN layer as the released SegNet-Basic sets it: across channels, window 5, k = 1.
LRN_WINDOW, LRN_ALPHA, LRN_BETA = 5, 1e-4, 0.75


@dataclass(frozen=True)
class Input:
    """How uint8 RGB becomes a network's input; the default is raw RGB, 0..255.

    `lrn` is the local response normalisation on the image itself, of SegNet-Basic: y = x / (1 + 1e-4/5 sum x²)^0.75.
    """

    order: Order = "rgb"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    local_normalisation: LocalNormalisation = "none"

    def __call__(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """float32 on the images' device."""
        channels = images.flip(1) if self.order == "bgr" else images
        values = channels.to(torch.float32) * self.scale
        values = (values - by_channel(self.mean, values)) / by_channel(self.std, values)
        if self.local_normalisation == "lrn":
            return local_response_normalised(values)
        return local_contrast_normalised(values) if self.local_normalisation == "lcn" else values


def by_channel(numbers: tuple[float, float, float], like: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "3 1 1"]:
    """Made where they are used: a copy from the host would wait for all that the device has still to do."""
    return torch.cat([like.new_full((1, 1, 1), number) for number in numbers])


def local_response_normalised(values: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Caffe's LRN across three channels: a window of ±2 sees all three, so they share one denominator."""
    energy = values.square().sum(dim=1, keepdim=True)
    return values / (1 + LRN_ALPHA / LRN_WINDOW * energy) ** LRN_BETA


def overridden(input: Input, spec: InputSpec) -> Input:
    """`input` with what `spec` sets.

    Raises `ModelError` when the spec changes order or scale and the model has a mean or std that it does not set: those
    numbers belong to the model's own order and scale.
    """
    given = spec.model_dump(exclude_none=True)
    changed = [key for key in ("order", "scale") if given.get(key, getattr(input, key)) != getattr(input, key)]
    stale = [key for key in ("mean", "std") if key not in given and getattr(input, key) != getattr(Input(), key)]
    if changed and stale:
        numbers = " and ".join(f"{key} {getattr(input, key)}" for key in stale)
        raise ModelError(
            f"input: with another {' and '.join(changed)}, the model's own {numbers} would not fit "
            f"(order {input.order}, scale {input.scale:.6g}); set {' and '.join(stale)} too"
        )
    return replace(input, **given)


RAW_BGR = Input(order="bgr")
IMAGENET = Input(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
