"""Other libraries' networks under this package's contract: `smp:Unet`, `torchvision:deeplabv3_resnet50`.

segmentation-models-pytorch and torchvision.models.segmentation. Options are those libraries' own. Nothing is downloaded
unless it is asked for: without `encoder_weights` (smp) or `weights` or `weights_backbone` (torchvision), weights start
as the library initialises them.

Input: RGB with ImageNet's mean and deviation, which both libraries' backbones were made for; an smp encoder with
`encoder_weights` is fed as those weights were.

Departures: where a network wants sizes that its stride divides, the image is padded below and right with zeros (the
mean colour, after normalisation) and the logits are cropped back. Auxiliary heads are left off, for they change what is
trained and not what is predicted. Batch normalisation is the libraries' own: it cannot train at batch size 1 where it
follows a pooling of the whole image, as in DeepLabV3. Some smp networks build encoder stages that they do not use
(PSPNet): parameters without a gradient. DPT's encoders take one image size only.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from segbench.errors import ModelError
from segbench.models.build import checked_options
from segbench.models.input import IMAGENET, Input
from segbench.models.layers import cropped
from segbench.registry import did_you_mean

# Ours to set: the number of classes and channels, and heads whose outputs are not logits of pixels.
SMP_SET_HERE = {"self", "in_channels", "classes", "activation", "aux_params", "kwargs"}
TORCHVISION_SET_HERE = {"num_classes", "aux_loss", "progress", "kwargs"}


class External(nn.Module):
    """Another library's network, its logits of the input's size.

    multiple: what heights and widths must be a multiple of. output: the key of the logits where it returns a dict.
    """

    def __init__(self, network: nn.Module, input: Input, *, multiple: int = 1, output: str | None = None) -> None:
        super().__init__()
        self.network = network
        self.input = input
        self.multiple = multiple
        self.output = output

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        size = images.shape[-2:]
        below, right = (-side % self.multiple for side in size)
        found = self.network(F.pad(images, (0, right, 0, below)) if below or right else images)
        return cropped(found[self.output] if self.output else found, size)


def smp(architecture: str, num_classes: int, /, **options: Any) -> External:
    """A network of segmentation-models-pytorch by its class name, with `encoder_weights` None unless given.

    Raises `ModelError` for an architecture or option that it does not have.
    """
    import segmentation_models_pytorch as library

    classes = {found.__name__: found for found in library.MODEL_ARCHITECTURES_MAPPING.values()}
    found = _known("smp", architecture, classes)
    given = checked_options(f"smp:{architecture}", _allowed(found, SMP_SET_HERE), options)
    if "encoder_name" in given:
        _check_encoder(given["encoder_name"], library.encoders.get_encoder_names())
    network = found(**{"encoder_weights": None, **given}, in_channels=3, classes=num_classes)
    # Networks that take any size (Unet) say so; the others raise unless their encoder's stride divides it.
    multiple = network.encoder.output_stride if network.requires_divisible_input_shape else 1
    return External(network, _smp_input(given, found), multiple=multiple)


def _check_encoder(name: Any, known: Sequence[str]) -> None:
    """smp's own error lists all its hundreds of encoders; those of timm (`tu-`) it looks up itself."""
    if not isinstance(name, str):
        raise ModelError(f"smp: option encoder_name is {name!r}; it must be the name of an encoder, such as resnet34")
    if name not in known and not name.startswith("tu-"):
        raise ModelError(f'"{name}" is not an encoder of smp{did_you_mean(name, known)} (or tu-NAME, one of timm\'s)')


def _smp_input(given: Mapping[str, Any], found: Callable[..., Any]) -> Input:
    """What the encoder's pretrained weights were fed; ImageNet's where there are none."""
    weights = given.get("encoder_weights")
    if weights is None:
        return IMAGENET
    from segmentation_models_pytorch.encoders import get_preprocessing_params

    encoder = given.get("encoder_name", inspect.signature(found).parameters["encoder_name"].default)
    fed = get_preprocessing_params(encoder, pretrained=weights)
    scale = 1 / 255 if fed["input_range"][1] == 1 else 1.0
    return Input(order=fed["input_space"].lower(), scale=scale, mean=tuple(fed["mean"]), std=tuple(fed["std"]))


def torchvision(architecture: str, num_classes: int, /, **options: Any) -> External:
    """A network of torchvision.models.segmentation, with `weights` and `weights_backbone` None unless given.

    Raises `ModelError` for an architecture or option that it does not have.
    """
    from torchvision.models import get_model_builder, list_models, segmentation

    builders = {name: get_model_builder(name) for name in list_models(module=segmentation)}
    builder = _known("torchvision", architecture, builders)
    given = checked_options(f"torchvision:{architecture}", _allowed(builder, TORCHVISION_SET_HERE), options)
    # These resize their logits to the input themselves, whatever its size.
    network = builder(**{"weights": None, "weights_backbone": None, **given}, num_classes=num_classes)
    return External(network, IMAGENET, output="out")


def _known(family: str, architecture: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if architecture not in known:
        near = did_you_mean(architecture, known)
        raise ModelError(f'"{architecture}" is not a network of {family}{near} (known: {", ".join(sorted(known))})')
    return known[architecture]


def _allowed(builder: Callable[..., Any], set_here: set[str]) -> dict[str, Any]:
    """Options of another library's builder, of any type: its annotations are its own affair."""
    return {name: Any for name in inspect.signature(builder).parameters if name not in set_here}
