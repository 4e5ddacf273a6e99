"""`torchvision:deeplabv3_resnet50`: the networks of torchvision.models.segmentation, with that library's own options.

Nothing is downloaded unless it is asked for: without `weights` or `weights_backbone`, weights start as the library
initialises them.

Input: RGB with ImageNet's mean and deviation, which its backbones were made for.

Departures: those of external.py.
"""

from typing import Any

from segbench.models.build import checked_options
from segbench.models.external import External, member_of, options_of
from segbench.models.input import IMAGENET

# Ours to set: the number of classes, and the auxiliary head.
SET_HERE = {"num_classes", "aux_loss", "progress", "kwargs"}


def torchvision(architecture: str, num_classes: int, /, **options: Any) -> External:
    """A network of torchvision.models.segmentation, with `weights` and `weights_backbone` None unless given.

    Raises `ModelError` for an architecture or option that it does not have.
    """
    from torchvision.models import get_model_builder, list_models, segmentation

    builders = {name: get_model_builder(name) for name in list_models(module=segmentation)}
    builder = member_of("torchvision", architecture, builders)
    given = checked_options(f"torchvision:{architecture}", options_of(builder, SET_HERE), options)
    network = builder(**{"weights": None, "weights_backbone": None, **given}, num_classes=num_classes)
    return External(network, IMAGENET)
