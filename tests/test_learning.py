"""Every network of the table learns: each weight gets a gradient at full width, and four images can be memorised."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.data.synthetic import Synthetic
from segbench.models import MODELS
from segbench.models.build import build

# Names that differ in inference alone are one network.
NETWORKS = list({str(MODELS.identity(name, {})): name for name in MODELS.entries if not name.endswith(":")}.values())
CLASSES, SIZE = 11, (48, 64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def four_images(size: tuple[int, int] = SIZE) -> tuple[Tensor, Tensor]:
    samples = list(Synthetic("train", size=size, train=4))
    images = torch.stack([torch.from_numpy(sample.image.copy()).permute(2, 0, 1) for sample in samples])
    return images, torch.stack([torch.from_numpy(sample.labels.astype(np.int64)) for sample in samples])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_gets_a_gradient_at_full_width(name: str) -> None:
    """One step on two images: 98 % of the inputs and of the outputs of every layer have a gradient."""
    model = build(name, CLASSES, {}, (64, 96)).train()
    with torch.no_grad():  # away from score layers of zero, which pass nothing down in the first step
        for path, parameter in model.named_parameters():
            if "score" in path:
                parameter.add_(0.01 * torch.randn_like(parameter))
    if name == "unet":
        # Without normalisation up to 40 % of a deep layer's ReLUs are off at every pixel when it begins. Leaking, they
        # pass a gradient all the same, and what is not connected still shows.
        for unit in [module for module in model.modules() if isinstance(getattr(module, "relu", None), nn.ReLU)]:
            unit.relu = nn.LeakyReLU(0.1)
    images, labels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.randint(0, CLASSES, (2, 64, 96))
    F.cross_entropy(model(model.input(images)), labels).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), path
        if parameter.dim() > 1:  # a bias below batch normalisation has none, by design
            for end in (0, 1):
                connected = parameter.grad.transpose(0, end).flatten(1).any(1).float().mean()
                assert float(connected) > 0.98, (path, end, float(connected))


# Found by trial; without normalisation (U-Net) a higher one diverges.
RATES = {"unet": 0.003, "fcn32s": 0.01, "fcn16s": 0.01, "fcn8s": 0.01}
# With mirroring, an image of this size is nineteen times as large.
OPTIONS = {"unet": {"padding": "same"}}
# A logit that stands for 8 or 16 pixels cannot draw a pole of one; the other networks' reach is nearly all. Sixteen
# pixels are a third of these images' height, so that network gets larger ones.
REACH = {"deeplab-largefov": 0.9, "deeplab-largefov-densecrf": 0.9, "bilinear-interpolation": 0.9}
SIZES = {"bilinear-interpolation": (192, 256)}
MOST_STEPS, STEADY = 400, 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_four_images_are_memorised_at_an_eighth_of_the_width(name: str) -> None:
    images, labels = four_images(SIZES.get(name, SIZE))
    valid = labels != CLASSES

    def right(predicted: Tensor) -> float:
        return float((predicted == labels)[valid].float().mean())

    # What can be had without looking at the image: each pixel's most frequent class.
    blind = right(labels.mode(0).values.expand_as(labels))
    wanted = REACH.get(name, 0.95)
    assert wanted > blind + 0.06
    model = build(name, CLASSES, {"width": 1 / 8, **OPTIONS.get(name, {})}, SIZE).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer, fed = (
        torch.optim.AdamW(model.parameters(), lr=RATES.get(name, 0.02), weight_decay=0),
        model.input(images),
    )
    found: list[float] = []
    # The batch is the whole training set, so normalisation by it is normalisation by the training set's statistics.
    while len(found) < MOST_STEPS and not reached(found, wanted):
        logits = model(fed)
        found.append(right(logits.argmax(1)))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels, ignore_index=CLASSES).backward()
        optimizer.step()
    assert reached(found, wanted), (found[::25], blind)


def reached(found: list[float], wanted: float) -> bool:
    """Several steps in a row, so that one lucky step is not enough."""
    return len(found) >= STEADY and min(found[-STEADY:]) >= wanted


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_seeds_train_equal_weights_in_deterministic_mode(name: str) -> None:
    def trained() -> dict[str, Tensor]:
        torch.manual_seed(7)
        model = build(name, CLASSES, {"width": 1 / 16}, SIZE).train()
        images, labels = four_images()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(model.input(images[:2])), labels[:2], ignore_index=CLASSES).backward()
            optimizer.step()
        return model.state_dict()

    torch.use_deterministic_algorithms(True)
    try:
        first, second = trained(), trained()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[key], second[key]) for key in first)
