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


def four_images() -> tuple[Tensor, Tensor]:
    samples = list(Synthetic("train", size=SIZE, train=4))
    images = torch.stack([torch.from_numpy(sample.image.copy()).permute(2, 0, 1) for sample in samples])
    return images, torch.stack([torch.from_numpy(sample.labels.astype(np.int64)) for sample in samples])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_gets_a_gradient_at_full_width(name: str) -> None:
    """One step on two images; every output of every layer, for a layer may be connected in part."""
    model = build(name, CLASSES, {}, (64, 96)).train()
    with torch.no_grad():  # away from score layers of zero, which pass nothing down in the first step
        for path, parameter in model.named_parameters():
            if "score" in path:
                parameter.add_(0.01 * torch.randn_like(parameter))
    images, labels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.randint(0, CLASSES, (2, 64, 96))
    F.cross_entropy(model(model.input(images)), labels).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), path
        if parameter.dim() > 1:  # a bias below batch normalisation has none, by design
            outputs = parameter.grad.flatten(1).any(1).float().mean()
            # Without normalisation a ReLU may be off at all pixels of two images.
            assert float(outputs) > (0.95 if name == "unet" else 0.98), (path, float(outputs))


# Without normalisation a high rate diverges.
RATES = {"unet": 0.003, "fcn32s": 0.01, "fcn16s": 0.01, "fcn8s": 0.01}
# A logit that stands for 8 or 16 pixels cannot draw a pole of one; the other networks' reach is nearly all.
REACH = {"deeplab-largefov": 0.9, "deeplab-largefov-densecrf": 0.9, "bilinear-interpolation": 0.83}
MOST_STEPS = 400


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_four_images_are_memorised_at_an_eighth_of_the_width(name: str) -> None:
    images, labels = four_images()
    valid = labels != CLASSES

    def right(predicted: Tensor) -> float:
        return float((predicted == labels)[valid].float().mean())

    # What can be had without looking at the image: each pixel's most frequent class.
    blind = right(labels.mode(0).values.expand_as(labels))
    wanted = REACH.get(name, 0.95)
    assert wanted > blind + 0.06
    model = build(name, CLASSES, {"width": 1 / 8}, SIZE).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer, fed = (
        torch.optim.AdamW(model.parameters(), lr=RATES.get(name, 0.02), weight_decay=0),
        model.input(images),
    )
    found: list[float] = []
    while len(found) < MOST_STEPS and max(found, default=0) < wanted:
        logits = model(fed)
        found.append(right(logits.argmax(1)))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels, ignore_index=CLASSES).backward()
        optimizer.step()
    assert max(found) >= wanted, (found[::25], blind)
