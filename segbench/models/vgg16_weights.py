"""VGG16's ImageNet weights in torchvision's layout, for the networks that begin with VGG16.

Layout: `features.N` are convolutions (in `vgg16_bn` each with its normalisation at N + 1), `classifier.0` and
`classifier.3` are fc6 and fc7; names and shapes of torchvision's `vgg16` and `vgg16_bn`.

    conv1_1 to conv5_3   the convolutions in order; holes (DeepLab's stage 5) change no weight
    normalisation        from vgg16_bn: scale, shift and running statistics, or folded into the convolution where the
                         network has none; from vgg16: left at its start, as when caffe-segnet loads VGG16
    fc6, fc7             FCN and the released DeconvNet: the classifier, unrolled to 512x7x7 (Long et al., section 3.1);
                         DeepLab: decimated to every 4th channel and every 3rd row and column; else not filled

conv1_1 is rewritten for what the network is fed. A pixel p reached VGG16 as u = (p S - M) / D and reaches the network
as v = (p s - m) / d, its channels perhaps in another order, so u = a v + o with a = d S / (s D) and
o = (m S / s - M) / D: the filters are multiplied by a, and the bias gains the filters' sums over o. That is exact but
at the image's border, where the padding's zeros now stand for p = m / s instead of M / S.

For values of 0..255 torchvision's filters come out some 58 times shorter, and below batch normalisation a gradient
grows as its filters shrink, so that one step would be longer than the filters that it changes. Normalisation takes any
length away, so below it conv1_1, with its bias and running statistics, is stretched back to the length that it had.
Without normalisation there is no such way; such a network is better fed torchvision's input, by the
recipe's `input`.

Choices: DeepLab's paper says that fc6 was subsampled to 3x3 and the layers thinned to 1024 channels. Which rows and
channels the released `vgg16_20M` kept is in none of its files; the regular grid here, 0, 3 and 6 of the 7 rows and
every 4th of the 4096 channels, is the customary reading. The Caffe release of SegNet loads VGG16's filters as they are,
though it subtracts no mean; the difference is a shift, which normalisation takes away again.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Size, Tensor

from segbench.errors import ModelError
from segbench.models.input import Input
from segbench.models.vgg import CHANNELS, DEPTHS

FIRST = "encoder.0.conv1_1"
NORMALISATION = ("weight", "bias", "running_mean", "running_var")
# torchvision's, which is PyTorch's default.
EPS = 1e-5
# fc6 of a network -> it takes every n-th channel, and every m-th row and column, of VGG16's.
STEPS: dict[tuple[int, ...], tuple[int, int]] = {(4096, 512, 7, 7): (1, 1), (1024, 512, 3, 3): (4, 3)}


def is_vgg(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the layout of torchvision's VGG networks."""
    return "features.0.weight" in state


def has_normalisation(state: Mapping[str, Tensor]) -> bool:
    """Whether a VGG state dict is one with batch normalisation (`vgg16_bn`)."""
    return "features.1.running_mean" in state


def check_network(source: str, wanted: Mapping[str, Tensor], fed: Input) -> None:
    """Raises `ModelError`, which begins with `source`, unless VGG16's weights can go into a network with the state dict
    `wanted` that is fed `fed`."""
    units = [f"{unit}.conv.weight" for unit in places(batch_norm=False)]
    full = [channels for channels, depth in zip(CHANNELS, DEPTHS, strict=True) for _ in range(depth)]
    if not all(unit in wanted for unit in units):
        raise ModelError(f"{source} holds VGG16's weights, and the model has no encoder of VGG16 to put them into")
    if [wanted[unit].shape[0] for unit in units] != full:
        raise ModelError(
            f"{source} holds VGG16's weights, whose conv1_1 has {full[0]} channels, and the model's has"
            f" {wanted[units[0]].shape[0]}; build it with width 1"
        )
    if fed.local_normalisation != "none":
        raise ModelError(
            f"{source} holds VGG16's weights, which can be rewritten for linear inputs only, and the model's input has"
            f" local_normalisation {fed.local_normalisation}; allowed: none"
        )


def places(batch_norm: bool) -> dict[str, int]:
    """The thirteen convolutions: unit of our encoders -> place in torchvision's `features`."""
    found: dict[str, int] = {}
    place = 0
    for stage, depth in enumerate(DEPTHS, start=1):
        for layer in range(1, depth + 1):
            found[f"encoder.{stage - 1}.conv{stage}_{layer}"] = place
            place += 3 if batch_norm else 2  # the convolution, its normalisation, its ReLU
        place += 1  # the pooling
    return found


def needed(wanted: Mapping[str, Tensor], batch_norm: bool) -> dict[str, Size]:
    """Names and shapes of what a network with the state dict `wanted` takes from a VGG16 state dict."""
    found: dict[str, Size] = {}
    for unit, place in places(batch_norm).items():
        weight = wanted[f"{unit}.conv.weight"].shape
        found |= {f"features.{place}.weight": weight, f"features.{place}.bias": weight[:1]}
        if batch_norm:
            found |= {f"features.{place + 1}.{part}": weight[:1] for part in NORMALISATION}
    if _steps(wanted):
        found |= {"classifier.0.weight": Size((4096, 512 * 7 * 7)), "classifier.0.bias": Size((4096,))}
        found |= {"classifier.3.weight": Size((4096, 4096)), "classifier.3.bias": Size((4096,))}
    return found


def translated(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], trained_on: Input, fed: Input
) -> dict[str, Tensor]:
    """A VGG16 state dict, trained on one input, as part of the state dict of a network that is fed another.

    `state` must hold what `needed` names; `wanted` is the network's state dict, of which names and shapes count.
    """
    batch_norm = has_normalisation(state)
    found: dict[str, Tensor] = {}
    for unit, place in places(batch_norm).items():
        layer = _layer(state, place, batch_norm)
        normalised = f"{unit}.bn.weight" in wanted
        if unit == FIRST:
            layer = rewritten(layer, trained_on, fed, keep_length=normalised)
        if not normalised:
            layer = folded(layer)
        found |= {f"{unit}.{part}": value for part, value in layer.items()}
    return found | _classifier(state, wanted)


def for_input(
    weight: Float[Tensor, "out 3 k k"], bias: Float[Tensor, " out"], trained_on: Input, fed: Input
) -> tuple[Float[Tensor, "out 3 k k"], Float[Tensor, " out"]]:
    """A first convolution that gives on `fed(image)` what the given one gives on `trained_on(image)`, away from zero
    padding. Neither input may be normalised locally."""
    weight = weight.double()
    mean, std = weight.new_tensor([trained_on.mean, trained_on.std])
    if fed.order != trained_on.order:
        mean, std, weight = mean.flip(0), std.flip(0), weight.flip(1)
    own_mean, own_std = weight.new_tensor([fed.mean, fed.std])
    scale = trained_on.scale / fed.scale
    offset = (own_mean * scale - mean) / std
    shifted = bias.double() + (weight.sum(dim=(2, 3)) * offset).sum(dim=1)
    return (weight * (own_std * scale / std).view(3, 1, 1)).float(), shifted.float()


def rewritten(layer: dict[str, Tensor], trained_on: Input, fed: Input, keep_length: bool) -> dict[str, Tensor]:
    """The first layer for another input; with `keep_length` its filters are as long as they were."""
    weight, bias = for_input(layer["conv.weight"], layer["conv.bias"], trained_on, fed)
    exact = layer | {"conv.weight": weight, "conv.bias": bias}
    return stretched(exact, layer["conv.weight"].norm() / weight.norm()) if keep_length else exact


def stretched(layer: Mapping[str, Tensor], factor: Float[Tensor, ""]) -> dict[str, Tensor]:
    """A layer whose convolution gives `factor` times as much, with running statistics to fit."""
    powers = {"conv.weight": 1, "conv.bias": 1, "bn.running_mean": 1, "bn.running_var": 2}
    return {part: value * factor ** powers.get(part, 0) for part, value in layer.items()}


def folded(layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One convolution that gives what a layer's convolution and its normalisation by running statistics give."""
    if "bn.weight" not in layer:
        return dict(layer)
    exact = {part: value.double() for part, value in layer.items()}
    gain = exact["bn.weight"] / (exact["bn.running_var"] + EPS).sqrt()
    return {
        "conv.weight": (exact["conv.weight"] * gain.view(-1, 1, 1, 1)).float(),
        "conv.bias": ((exact["conv.bias"] - exact["bn.running_mean"]) * gain + exact["bn.bias"]).float(),
    }


def unrolled(
    fc6: Float[Tensor, "channels 25088"], fc7: Float[Tensor, "channels channels"], step: int, stride: int
) -> tuple[Float[Tensor, "kept 512 side side"], Float[Tensor, "kept kept 1 1"]]:
    """Fully connected layers on 512x7x7 features as convolutions, with every `step`-th channel and every `stride`-th
    row and column kept."""
    return fc6.unflatten(1, (512, 7, 7))[::step, :, ::stride, ::stride], fc7[::step, ::step, None, None]


def _layer(state: Mapping[str, Tensor], place: int, batch_norm: bool) -> dict[str, Tensor]:
    """A convolution and its normalisation, named as in our units."""
    layer = {f"conv.{part}": state[f"features.{place}.{part}"] for part in ("weight", "bias")}
    if batch_norm:
        layer |= {f"bn.{part}": state[f"features.{place + 1}.{part}"] for part in NORMALISATION}
    return layer


def _classifier(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    steps = _steps(wanted)
    if not steps:
        return {}
    fc6, fc7 = unrolled(state["classifier.0.weight"], state["classifier.3.weight"], *steps)
    return {
        "fc.fc6.conv.weight": fc6,
        "fc.fc6.conv.bias": state["classifier.0.bias"][:: steps[0]],
        "fc.fc7.conv.weight": fc7,
        "fc.fc7.conv.bias": state["classifier.3.bias"][:: steps[0]],
    }


def _steps(wanted: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """How a network thins VGG16's fc6 and fc7; None where its own are no thinned form of them."""
    fc6 = wanted.get("fc.fc6.conv.weight")
    return None if fc6 is None else STEPS.get(tuple(fc6.shape))
