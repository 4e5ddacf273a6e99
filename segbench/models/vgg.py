"""The thirteen convolutions of VGG16, from which SegNet, FCN, DeepLab and DeconvNet all start.

Simonyan & Zisserman, arXiv:1409.1556, configuration D, without its three fully connected layers. Layers keep their
Caffe names (conv1_1 to conv5_3). The stages stop before pooling, which each network does in its own way.

Departures: batch normalisation after each convolution, as in SegNet's benchmark, unless `batch_norm` is False.
Initialisation is left to the network; vgg16_weights.py loads the ImageNet weights from which the papers start.
"""

from collections import OrderedDict

from torch import nn

from segbench.models.layers import scaled, unit

CHANNELS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)
# BGR means of the ImageNet training images that VGG16 was trained with.
IMAGENET_MEAN_BGR = (104.008, 116.669, 122.675)


def stages(
    width: float = 1.0, *, batch_norm: bool = True, image_padding: int = 1, last_dilation: int = 1
) -> nn.ModuleList:
    """Five stages of 3x3 convolutions, each keeping its input's size (but for `image_padding`).

    image_padding: zeros around the image, in pixels (FCN: 100). last_dilation: of stage 5 (DeepLab: 2).
    """
    found, channels = nn.ModuleList(), 3
    for number, (out, depth) in enumerate(zip(CHANNELS, DEPTHS, strict=True), start=1):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for place in range(1, depth + 1):
            dilation = last_dilation if number == 5 else 1
            padding = image_padding if (number, place) == (1, 1) else dilation
            convolution = nn.Conv2d(channels, scaled(out, width), 3, padding=padding, dilation=dilation)
            layers[f"conv{number}_{place}"] = unit(convolution, batch_norm=batch_norm)
            channels = scaled(out, width)
        found.append(nn.Sequential(layers))
    return found


def fully_connected(fc6: nn.Conv2d, dropout: float, batch_norm: bool) -> nn.Sequential:
    """VGG16's fc6 and fc7 as convolutions, each followed by dropout; fc7 is 1x1 and as wide as fc6."""
    channels = fc6.out_channels
    layers = OrderedDict[str, nn.Module](
        fc6=unit(fc6, batch_norm=batch_norm),
        drop6=nn.Dropout(dropout),
        fc7=unit(nn.Conv2d(channels, channels, 1), batch_norm=batch_norm),
        drop7=nn.Dropout(dropout),
    )
    return nn.Sequential(layers)


def channels_below(number: int, width: float = 1.0) -> int:
    """Channels that a decoder's stage `number` (5 to 1) hands to the next one down; stage 1 keeps its own."""
    return scaled(CHANNELS[max(number - 2, 0)], width)
