"""SegNet, SegNet-Basic and the rows of Table 1 layer by layer: sizes, parameters and work, at every size asked for."""

from typing import Any

import pytest
import torch
from layer_tables import assert_layers_are, caffe_pooled, layers_run
from torch import Tensor, nn

from segbench.models.build import build

SEGNET = """
conv1_1 360x480 1,792 0.299
conv1_2 360x480 36,928 6.370
pool1 180x240
conv2_1 180x240 73,856 3.185
conv2_2 180x240 147,584 6.370
pool2 90x120
conv3_1 90x120 295,168 3.185
conv3_2 90x120 590,080 6.370
conv3_3 90x120 590,080 6.370
pool3 45x60
conv4_1 45x60 1,180,160 3.185
conv4_2 45x60 2,359,808 6.370
conv4_3 45x60 2,359,808 6.370
pool4 23x30
conv5_1 23x30 2,359,808 1.628
conv5_2 23x30 2,359,808 1.628
conv5_3 23x30 2,359,808 1.628
upsample5 23x30
conv5_3_D 23x30 2,359,808 1.628
conv5_2_D 23x30 2,359,808 1.628
conv5_1_D 23x30 2,359,808 1.628
upsample4 45x60
conv4_3_D 45x60 2,359,808 6.370
conv4_2_D 45x60 2,359,808 6.370
conv4_1_D 45x60 1,179,904 3.185
upsample3 90x120
conv3_3_D 90x120 590,080 6.370
conv3_2_D 90x120 590,080 6.370
conv3_1_D 90x120 295,040 3.185
upsample2 180x240
conv2_2_D 180x240 147,584 6.370
conv2_1_D 180x240 73,792 3.185
upsample1 360x480
conv1_2_D 360x480 36,928 6.370
conv1_1_D 360x480 6,347 1.095
"""
# With the biases of the released file.
SEGNET_BASIC = """
conv1 360x480 9,472 1.626
pool1 180x240
conv2 180x240 200,768 8.670
pool2 90x120
conv3 90x120 200,768 2.168
pool3 45x60
conv4 45x60 200,768 0.542
upsample4 45x60
conv_decode4 45x60 200,768 0.542
upsample3 90x120
conv_decode3 90x120 200,768 2.168
upsample2 180x240
conv_decode2 180x240 200,768 8.670
upsample1 360x480
conv_decode1 360x480 200,768 34.682
conv_classifier 360x480 715 0.122
"""
# The encoder without biases, which all rows of Table 1 share.
ENCODER = """
conv1 360x480 9,408 1.626
pool1 180x240
conv2 180x240 200,704 8.670
pool2 90x120
conv3 90x120 200,704 2.168
pool3 45x60
conv4 45x60 200,704 0.542
"""
DECODERS = {
    "bilinear-interpolation": """
pool4 23x30
score 23x30 704 0.000
""",
    "segnet-basic-encoder-addition": """
conv_decode4 45x60 200,704 0.542
upsample3 90x120
conv_decode3 90x120 200,704 2.168
upsample2 180x240
conv_decode2 180x240 200,704 8.670
upsample1 360x480
conv_decode1 360x480 200,704 34.682
conv_classifier 360x480 704 0.122
""",
    "segnet-basic-single-channel-decoder": """
conv_decode4 45x60 3,136 0.008
upsample3 90x120
conv_decode3 90x120 3,136 0.034
upsample2 180x240
conv_decode2 180x240 3,136 0.135
upsample1 360x480
conv_decode1 360x480 3,136 0.542
conv_classifier 360x480 704 0.122
""",
    "fcn-basic": """
pool4 23x30
score4 23x30 704 0.000
deconv4 46x60 7,744 0.005
score3 45x60 704 0.002
deconv3 90x120 7,744 0.021
score2 90x120 704 0.008
deconv2 180x240 7,744 0.084
score1 180x240 704 0.030
deconv1 360x480 7,744 0.335
""",
    "fcn-basic-no-addition": """
score4 23x30 704 0.000
deconv4 46x60 7,744 0.005
crop 45x60
deconv3 90x120 7,744 0.021
deconv2 180x240 7,744 0.084
deconv1 360x480 7,744 0.335
""",
    "fcn-basic-no-dim-reduction": """
pool4 23x30
deconv4 46x60 262,144 0.181
crop 45x60
deconv3 90x120 262,144 0.708
deconv2 180x240 262,144 2.831
deconv1 360x480 262,144 11.325
classifier 360x480 704 0.122
""",
    "fcn-basic-no-addition-no-dim-reduction": """
pool4 23x30
deconv4 46x60 262,144 0.181
crop 45x60
deconv3 90x120 262,144 0.708
deconv2 180x240 262,144 2.831
deconv1 360x480 262,144 11.325
classifier 360x480 704 0.122
""",
}


def on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build(name, 11, options).eval()


def empty(height: int, width: int) -> Tensor:
    return torch.empty(1, 3, height, width, device="meta")


def test_every_layer_of_segnet() -> None:
    assert_layers_are(SEGNET, on_meta("segnet"), empty(360, 480))


def test_every_layer_of_segnet_basic() -> None:
    assert_layers_are(SEGNET_BASIC, on_meta("segnet-basic", bias=True), empty(360, 480))


@pytest.mark.parametrize("name", DECODERS)
def test_every_layer_of_the_other_rows_of_table_1(name: str) -> None:
    assert_layers_are(ENCODER + DECODERS[name].lstrip(), on_meta(name), empty(360, 480))


SIZES = [(360, 480), (224, 224), (45, 60), (361, 481), (97, 131), (1, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "stages"), [("segnet", 5), *((name, 4) for name in ("segnet-basic", *DECODERS))])
def test_pooling_rounds_up_as_caffe_does_and_the_output_has_the_images_size(
    name: str, stages: int, size: tuple[int, int]
) -> None:
    layers, output = layers_run(on_meta(name), empty(*size))
    assert output == size
    found = list(dict.fromkeys(layer.size for layer in layers if layer.path.startswith("encoder.")))
    expected = [size]
    for _ in range(stages - 1):
        expected.append((caffe_pooled(expected[-1][0], 2, 2, 0), caffe_pooled(expected[-1][1], 2, 2, 0)))
    assert found == list(dict.fromkeys(expected))
