"""What networks are fed: each step by hand, local contrast normalisation against a loop and SciPy, overrides."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from segbench.errors import ModelError
from segbench.models.build import build
from segbench.models.input import IMAGENET, RAW_BGR, Input, overridden
from segbench.models.input_spec import InputSpec
from segbench.models.local_contrast import local_contrast_normalised

PIXEL = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
LCN = Input(local_normalisation="lcn")
CAFFE = Input(order="bgr", mean=(104.0, 117.0, 123.0))


def photographs(count: int, size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# Order, scale, mean and deviation


@pytest.mark.parametrize(
    ("feed", "expected"),
    [
        (Input(), [10, 20, 30]),
        (Input(order="bgr"), [30, 20, 10]),
        (Input(order="bgr", mean=(1.0, 2.0, 3.0)), [29, 18, 7]),
        (Input(scale=0.1, mean=(1.0, 1.0, 1.0), std=(2.0, 1.0, 0.5)), [0, 1, 4]),
    ],
)
def test_input_by_hand(feed: Input, expected: list[float]) -> None:
    torch.testing.assert_close(feed(PIXEL).flatten(), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("segnet", [30, 20, 10]),
        ("fcn8s", [30 - 104.00699, 20 - 116.66877, 10 - 122.67892]),
        ("deeplab-largefov", [30 - 104.008, 20 - 116.669, 10 - 122.675]),
        ("deconvnet", [30 - 104.008, 20 - 116.669, 10 - 122.675]),
        ("unet", [10 / 255, 20 / 255, 30 / 255]),
        (
            "torchvision:fcn_resnet50",
            [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225],
        ),
    ],
)
def test_each_model_is_fed_as_its_paper_says(name: str, expected: list[float]) -> None:
    with torch.device("meta"):
        feed: Any = build(name, 2).input
    torch.testing.assert_close(feed(PIXEL).flatten(), torch.tensor(expected, dtype=torch.float32))


def test_input_of_imagenets_mean_colour_is_zero() -> None:
    mean = torch.tensor([[[[123.675]], [[116.28]], [[103.53]]]]).round().to(torch.uint8)
    assert IMAGENET(mean).abs().max() < 0.01


# Local response normalisation


def test_white_after_local_response_normalisation() -> None:
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    # 1 + 1e-4 / 5 * 3 * 255^2 = 4.9015, to the power 0.75: 3.2942; 255 / 3.2942 = 77.41
    fed = Input(local_normalisation="lrn")(white)
    torch.testing.assert_close(fed, torch.full((1, 3, 2, 2), 77.41), atol=0.01, rtol=0)


def test_local_response_normalisation_is_pytorchs_on_three_channels() -> None:
    images = photographs(2, (5, 7))
    expected = F.local_response_norm(images.flip(1).float(), size=5, alpha=1e-4, beta=0.75, k=1.0)
    torch.testing.assert_close(Input(order="bgr", local_normalisation="lrn")(images), expected)


# Local contrast normalisation


def slow_mean(image: np.ndarray, row: int, column: int) -> float:
    """The weighted mean over channels and a 9x9 window of deviation 2; pixels outside the image have no weight."""
    total = weight = 0.0
    for other_row, other_column in np.ndindex(image.shape[1:]):
        down, right = other_row - row, other_column - column
        if max(abs(down), abs(right)) <= 4:
            w = math.exp(-(down**2 + right**2) / (2 * 2.0**2))
            total += w * image[:, other_row, other_column].sum()
            weight += w * len(image)
    return total / weight


def slow_contrast(image: np.ndarray) -> np.ndarray:
    """The paper's formulas, a pixel at a time."""
    centred, sigma = np.zeros(image.shape), np.zeros(image.shape[1:])
    for row, column in np.ndindex(sigma.shape):
        centred[:, row, column] = image[:, row, column] - slow_mean(image, row, column)
    for row, column in np.ndindex(sigma.shape):
        sigma[row, column] = math.sqrt(slow_mean(centred**2, row, column))
    return centred / np.maximum(sigma.mean(), sigma)


def scipy_mean(planes: np.ndarray) -> np.ndarray:
    """`gaussian_filter` cut off at 4 pixels is the 9x9 window; where it reaches outside, the lost weight returns."""
    mean = scipy.ndimage.gaussian_filter(planes.mean(0), 2.0, mode="constant", truncate=2.0)
    return mean / scipy.ndimage.gaussian_filter(np.ones_like(mean), 2.0, mode="constant", truncate=2.0)


def uneven(size: tuple[int, int]) -> Tensor:
    """A photograph whose left half has a tenth of the contrast, so that both c and sigma divide."""
    image = photographs(1, size)
    image[..., : size[1] // 2] //= 10
    return image


@pytest.mark.parametrize("size", [(11, 13), (3, 20), (2, 2)])
def test_local_contrast_is_the_papers_formula(size: tuple[int, int]) -> None:
    image = uneven(size)
    expected = torch.from_numpy(slow_contrast(image[0].double().numpy())).float()
    torch.testing.assert_close(LCN(image)[0], expected, atol=1e-5, rtol=1e-5)


def test_local_contrast_agrees_with_scipy() -> None:
    image = uneven((60, 80))
    values = image[0].double().numpy()
    centred = values - scipy_mean(values)
    sigma = np.sqrt(scipy_mean(centred**2))
    assert 0.2 < (sigma > sigma.mean()).mean() < 0.8
    expected = torch.from_numpy(centred / np.maximum(sigma, sigma.mean())).float()
    torch.testing.assert_close(LCN(image)[0], expected, atol=1e-5, rtol=1e-5)


def test_local_contrast_of_one_pixel_by_hand() -> None:
    """The mean of (10, 20, 30) is 20; what is left, (-10, 0, 10), has the deviation sqrt(200 / 3)."""
    expected = torch.tensor([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    torch.testing.assert_close(LCN(PIXEL).flatten(), expected)
    torch.testing.assert_close(Input(order="bgr", local_normalisation="lcn")(PIXEL).flatten(), expected.flip(0))


@pytest.mark.parametrize("level", [0, 77, 255])
@pytest.mark.parametrize("feed", [LCN, Input(scale=1 / 255, local_normalisation="lcn")])
def test_a_grey_frame_has_no_contrast(feed: Input, level: int) -> None:
    frame = torch.full((1, 3, 12, 17), level, dtype=torch.uint8)
    assert torch.equal(feed(frame), torch.zeros(1, 3, 12, 17))


def test_a_red_frame_has_contrast_between_its_channels() -> None:
    """(255, 0, 0) less its mean 85 is (170, -85, -85), of deviation 85 sqrt(2), at the border as within."""
    red = torch.zeros(1, 3, 12, 17, dtype=torch.uint8)
    red[:, 0] = 255
    expected = torch.tensor([math.sqrt(2), -math.sqrt(0.5), -math.sqrt(0.5)]).view(1, 3, 1, 1).expand(1, 3, 12, 17)
    torch.testing.assert_close(LCN(red), expected, atol=1e-5, rtol=1e-5)


def test_a_common_scale_and_offset_change_no_contrast() -> None:
    values = uneven((20, 20)).double()
    torch.testing.assert_close(local_contrast_normalised(3 * values + 1000), local_contrast_normalised(values))


def test_local_contrast_knows_nothing_of_the_batch() -> None:
    loud, quiet = photographs(1, (16, 16)), photographs(1, (16, 16)) // 10
    together = LCN(torch.cat([loud, quiet]))
    torch.testing.assert_close(together, torch.cat([LCN(loud), LCN(quiet)]))


# What a recipe replaces


def test_only_what_is_set_is_replaced() -> None:
    assert overridden(CAFFE, InputSpec()) == overridden(CAFFE, InputSpec(order=None)) == CAFFE
    normalised = overridden(CAFFE, InputSpec(local_normalisation="lcn"))
    assert normalised == Input(order="bgr", mean=(104.0, 117.0, 123.0), local_normalisation="lcn")
    written = {"order": "rgb", "scale": 0.1, "mean": [1, 1, 1], "std": [2, 1, 0.5], "local_normalisation": "none"}
    replaced = overridden(CAFFE, InputSpec.model_validate(written))
    torch.testing.assert_close(replaced(PIXEL).flatten(), torch.tensor([0.0, 1.0, 4.0]))


def test_a_mean_of_zero_goes_with_every_order_and_scale() -> None:
    assert overridden(RAW_BGR, InputSpec(order="rgb", scale=1 / 255)) == Input(scale=1 / 255)


@pytest.mark.parametrize(
    ("input", "given", "told"),
    [
        (CAFFE, {"order": "rgb"}, r"another order, .* mean \(104.0, 117.0, 123.0\) .*bgr, scale 1\); set mean too$"),
        (CAFFE, {"scale": 1 / 255}, "another scale, .*; set mean too$"),
        (IMAGENET, {"order": "bgr", "mean": (0, 0, 0)}, "; set std too$"),
        (IMAGENET, {"order": "bgr", "scale": 1}, "another order and scale, .*; set mean and std too$"),
    ],
)
def test_a_mean_of_another_order_or_scale_is_refused(input: Input, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        overridden(input, InputSpec.model_validate(given))


def test_the_same_order_and_scale_need_no_mean() -> None:
    assert overridden(IMAGENET, InputSpec(order="rgb", scale=1 / 255)) == IMAGENET


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": "grb"},
        {"scale": 0},
        {"scale": float("inf")},
        {"mean": [1, 2]},
        {"mean": [1, 2, float("nan")]},
        {"std": [1, 1, 0]},
        {"std": [1, 1, -1]},
        {"local_normalisation": "local"},
        {"lrn": True},
    ],
)
def test_spec_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InputSpec.model_validate(wrong)


def test_the_spec_imports_no_torch() -> None:
    code = "import sys, segbench.models.input_spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
