"""What the Caffe networks share: a convolution unit, pooling, fillers and learning rates.

Conventions: pooling rounds sizes up (45 rows pool to 23), as Caffe does. Departures from Caffe's layers are stated
where they are made.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

Convolution = nn.Conv2d | nn.ConvTranspose2d

# The types of options, as build.py has pydantic check them.
Multiplier = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


def scaled(channels: int, width: float) -> int:
    """A layer's channel count at a width multiplier; never below one. Raises `ValueError` unless width > 0."""
    if width <= 0:
        raise ValueError(f"width is {width}; it multiplies the channels and must be above 0")
    return max(1, round(channels * width))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation with caffe-segnet's filler, defined for a single value per channel as well.

    One value is its own mean, so what is left is the shift; PyTorch raises instead, and DeconvNet's 1x1 maps at batch
    size 1 could not be trained. The running statistics stay as they are then: one value tells no variance.

    Departures: eps is PyTorch's 1e-5, not Caffe's 1e-9, which in float32 blows up channels that are almost constant (a
    recipe's `norm_eps` sets it).
    Running statistics are kept, where Caffe has none and averages over the training set afterwards.
    """

    # segnet_train, both segnet_basic files and DeconvNet's start the shift just above zero, so that a ReLU on an
    # all-constant map is alive; bayesian_segnet_train and train_segnet_sun start it at zero (`shifts_started_at`).
    INITIAL_SHIFT = 0.001

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.bias, self.INITIAL_SHIFT)

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if not self.training or input.numel() > input.shape[1]:
            return super().forward(input)
        # Written out, so that the scale and what lies below still receive their (zero) gradients.
        deviation = input - input.mean(dim=(0, 2, 3), keepdim=True)
        return (deviation * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(input.dtype)


def use_norm_eps(model: nn.Module, eps: float) -> None:
    """What every batch normalisation in the model adds to a variance, also those of other libraries' networks."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = eps


def shifts_started_at(model: nn.Module, shift: float) -> None:
    """Every shift of batch normalisation in the model at one value."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            nn.init.constant_(module.bias, shift)


def unit(convolution: Convolution, *, batch_norm: bool = True, relu: bool = True) -> nn.Sequential:
    """A convolution (or deconvolution), then batch normalisation, then ReLU."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=convolution)
    if batch_norm:
        parts["bn"] = BatchNorm(convolution.out_channels)
    if relu:
        parts["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)


def pool(features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c ph pw"]:
    """2x2 max pooling with stride 2; a last odd row or column keeps a window of its own (45 -> 23 -> 12)."""
    return F.max_pool2d(features, 2, 2, ceil_mode=True)


def cropped(features: Float[Tensor, "n c h w"], size: Sequence[int], offset: int = 0) -> Float[Tensor, "n c ch cw"]:
    """The window of `size` (height, width) whose corner lies `offset` rows and columns in: Caffe's Crop layer."""
    return features[..., offset : offset + size[0], offset : offset + size[1]]


def he_initialised(model: nn.Module) -> None:
    """Weights of all (de)convolutions from N(0, 2 / fan-in), biases zero: Caffe's `msra` filler (He et al., 2015)."""
    for module in model.modules():
        if isinstance(module, Convolution):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def bilinear_initialised(deconvolution: nn.ConvTranspose2d, gain: float = 1.0) -> None:
    """Each class interpolates itself bilinearly and no other class; at gain 1 constants stay constants.

    FCN's kernel of size k has factor f = ceil(k / 2). For k = 2 * stride the gain is 1 as it stands; a larger kernel
    would multiply by (f / stride)² at each layer, so it is divided by that.
    """
    size, stride = deconvolution.kernel_size[0], deconvolution.stride[0]
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    taps = [(1 - abs(place - centre) / factor) * stride / factor for place in range(size)]
    line = torch.tensor(taps, dtype=deconvolution.weight.dtype, device=deconvolution.weight.device)
    own = torch.arange(deconvolution.out_channels, device=deconvolution.weight.device)
    deconvolution.weight.zero_()
    deconvolution.weight[own, own] = gain * torch.outer(line, line)


def split_parameters(
    model: nn.Module, *, shift_decay: float, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """A model's trainable parameters by their multipliers of learning rate and weight decay, as Caffe files set them.

    Convolutions: weight 1/1, bias 2/0. Batch normalisation: scale 1/1, shift 1/`shift_decay`. `rates` multiplies
    the learning rates of whole layers by name (`{"fc8": 10.0}`).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        rate = (rates or {}).get(path, 1.0)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                lr, decay = _multipliers(module, name, shift_decay)
                groups.setdefault((rate * lr, decay), []).append(parameter)
    return [
        {"params": parameters, "lr_multiplier": lr, "decay_multiplier": decay}
        for (lr, decay), parameters in groups.items()
    ]


def _multipliers(module: nn.Module, name: str, shift_decay: float) -> tuple[float, float]:
    if name != "bias":
        return 1.0, 1.0
    # The engine may have swapped in SyncBatchNorm, which is no BatchNorm2d; only convolutions have double rates.
    return (2.0, 0.0) if isinstance(module, Convolution) else (1.0, shift_decay)
