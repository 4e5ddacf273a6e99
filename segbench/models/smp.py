"""`smp:Unet`: the networks of segmentation-models-pytorch, with that library's own options.

Nothing is downloaded unless it is asked for: without `encoder_weights`, weights start as the library initialises them.

Input: RGB with ImageNet's mean and deviation, which its encoders were made for; with `encoder_weights`, what those
weights were fed.

Departures: those of external.py. Some networks build encoder stages that they do not use (PSPNet): parameters without a
gradient. DPT's encoders take one image size only.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segbench.errors import ModelError
from segbench.models.build import checked_options
from segbench.models.external import External, member_of, options_of
from segbench.models.input import IMAGENET, Input
from segbench.registry import did_you_mean

# Ours to set: the number of classes and channels, and heads whose outputs are not logits of pixels.
SET_HERE = {"self", "in_channels", "classes", "activation", "aux_params", "kwargs"}


def smp(architecture: str, num_classes: int, /, **options: Any) -> External:
    """A network of segmentation-models-pytorch by its class name, with `encoder_weights` None unless given.

    Raises `ModelError` for an architecture or option that it does not have.
    """
    import segmentation_models_pytorch as library

    classes = {found.__name__: found for found in library.MODEL_ARCHITECTURES_MAPPING.values()}
    found = member_of("smp", architecture, classes)
    given = checked_options(f"smp:{architecture}", options_of(found, SET_HERE), options)
    if "encoder_name" in given:
        _check_encoder(given["encoder_name"], library.encoders.get_encoder_names())
    network = found(**{"encoder_weights": None, **given}, in_channels=3, classes=num_classes)
    # Networks that take any size (Unet) say so; the others raise unless their encoder's stride divides it.
    multiple = network.encoder.output_stride if network.requires_divisible_input_shape else 1
    return External(network, _input(given, found), multiple=multiple)


def _check_encoder(name: Any, known: Sequence[str]) -> None:
    """smp's own error lists all its hundreds of encoders; those of timm (`tu-`) it looks up itself."""
    if not isinstance(name, str):
        raise ModelError(f"smp: option encoder_name is {name!r}; it must be the name of an encoder, such as resnet34")
    # Before a colon stands a source (hf-hub:, local-dir:): somebody's file, which some versions of timm unpickle whole.
    if name not in known and not (name.startswith("tu-") and ":" not in name):
        raise ModelError(f'"{name}" is not an encoder of smp{did_you_mean(name, known)} (or tu-NAME, one of timm\'s)')


def _input(given: Mapping[str, Any], found: Callable[..., Any]) -> Input:
    """What the encoder's pretrained weights were fed; ImageNet's where there are none."""
    weights = given.get("encoder_weights")
    if weights is None:
        return IMAGENET
    from segmentation_models_pytorch.encoders import get_preprocessing_params

    encoder = given.get("encoder_name", inspect.signature(found).parameters["encoder_name"].default)
    fed = get_preprocessing_params(encoder, pretrained=weights)
    scale = 1 / 255 if fed["input_range"][1] == 1 else 1.0
    return Input(order=fed["input_space"].lower(), scale=scale, mean=tuple(fed["mean"]), std=tuple(fed["std"]))
