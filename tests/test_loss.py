"""The loss: caffe-segnet's formula and its gradient by hand, PyTorch's own as an oracle, and what may surround it."""

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from segbench.engine.loss import divisor, loss_sum, segmentation_loss

NORMALISERS: list[Any] = ["valid-pixels", "weights", "none"]
WEIGHTS = torch.tensor([1.0, 3.0])


def maps(seed: int = 0, channels: int = 5, void: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    logits = torch.randn(2, channels, 6, 7, requires_grad=True)
    return logits, torch.randint(0, void + 1, (2, 6, 7)).to(torch.uint8), torch.rand(void)


def of_probabilities(*pixels: list[float], height: int = 1) -> Tensor:
    """Logits [1, channels, height, w] of pixels whose probabilities are given up to a factor."""
    flat = torch.tensor(pixels).log().T
    return flat.reshape(1, flat.shape[0], height, -1).clone().requires_grad_()


def test_loss_and_gradient_are_caffes_by_hand() -> None:
    # 2x2: class 0 at p = 1/2, class 1 at 1/4, void, class 1 at 1/2; weights 1 and 3; three valid pixels.
    logits = of_probabilities([1, 1], [3, 1], [9, 1], [1, 1], height=2)
    labels = torch.tensor([[[0, 1], [2, 1]]], dtype=torch.uint8)
    loss = segmentation_loss(logits, labels, 2, WEIGHTS)
    assert loss.item() == pytest.approx((1 * math.log(2) + 3 * math.log(4) + 3 * math.log(2)) / 3, rel=1e-6)
    loss.backward()
    # w[y] * (p - onehot) / 3
    assert logits.grad is not None
    assert logits.grad[0, 0].flatten().tolist() == pytest.approx([-1 / 6, 3 / 4, 0, 1 / 2], rel=1e-6)
    assert logits.grad[0, 1].flatten().tolist() == pytest.approx([1 / 6, -3 / 4, 0, -1 / 2], rel=1e-6)


@pytest.mark.parametrize(("normaliser", "by"), [("valid-pixels", 3), ("weights", 0.25 + 2 * 0.125), ("none", 1)])
def test_the_recipe_says_what_it_is_divided_by(normaliser: Any, by: float) -> None:
    logits = of_probabilities([1, 1], [3, 1], [9, 1], [1, 1], height=2)
    labels = torch.tensor([[[0, 1], [2, 1]]], dtype=torch.uint8)
    weights = torch.tensor([0.25, 0.125])
    total = 0.25 * math.log(2) + 0.125 * (math.log(4) + math.log(2))
    assert segmentation_loss(logits, labels, 2, weights, normaliser).item() == pytest.approx(total / by, rel=1e-6)
    found = divisor(labels, 2, weights, normaliser)
    assert found is None if normaliser == "none" else found is not None and found.item() == by
    assert loss_sum(logits, labels, 2, weights).item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("channels", [5, 6])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_it_is_pytorchs_cross_entropy(normaliser: Any, weighted: bool, channels: int) -> None:
    logits, labels, weights = maps(channels=channels)
    padded = torch.cat([weights, torch.tensor([7.0])])[:channels] if weighted else None  # 7: void's own has no part
    valid = int((labels != 5).sum())
    mean = F.cross_entropy(logits, labels.long(), padded, ignore_index=5)
    total = F.cross_entropy(logits, labels.long(), padded, ignore_index=5, reduction="sum")
    expected = {"valid-pixels": total / valid, "weights": mean, "none": total}[normaliser]
    found = segmentation_loss(logits, labels, 5, weights if weighted else None, normaliser)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


def test_a_channel_for_void_is_never_taught_but_shares_the_softmax() -> None:
    # Two classes and void's channel: p of the first pixel's class is 2 / (2 + 1 + 5), of the second's 1 / (1 + 1 + 2).
    logits = of_probabilities([2, 1, 5], [1, 1, 2], [1, 1, 1])
    labels = torch.tensor([[[0, 1, 2]]], dtype=torch.uint8)
    loss = segmentation_loss(logits, labels, 2, WEIGHTS)
    assert loss.item() == pytest.approx((1 * math.log(4) + 3 * math.log(4)) / 2, rel=1e-6)
    loss.backward()
    # d loss / d logit of void = w p / 2: pushed down where a class is, untouched where the label is void.
    assert logits.grad is not None
    assert logits.grad[0, 2, 0].tolist() == pytest.approx([5 / 8 / 2, 3 * 2 / 4 / 2, 0])


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_a_batch_with_nothing_to_teach_has_loss_0(normaliser: Any) -> None:
    logits = torch.zeros(1, 2, 1, 3, requires_grad=True)
    void, worthless = torch.full((1, 1, 3), 2, dtype=torch.uint8), torch.zeros(1, 1, 3, dtype=torch.uint8)
    for labels, weights in ((void, None), (void, WEIGHTS), (worthless, torch.tensor([0.0, 3.0]))):
        loss = segmentation_loss(logits, labels, 2, weights, normaliser)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0.0 and not gradient.any()


def test_its_gradient_is_that_of_differences() -> None:
    logits, labels, weights = maps(channels=6)
    exact, heavy = logits.detach().double().requires_grad_(), weights.double()
    assert torch.autograd.gradcheck(lambda given: segmentation_loss(given, labels, 5, heavy), exact)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [3e38, -3e38]]).T.reshape(1, 2, 1, 3).clone().requires_grad_()
    labels = torch.tensor([[[0, 0, 0]]], dtype=torch.uint8)
    loss = segmentation_loss(logits, labels, 2)
    assert loss.item() == pytest.approx(2e4 / 3)
    loss.backward()
    assert logits.grad is not None and logits.grad[0, :, 0, 1].tolist() == pytest.approx([-1 / 3, 1 / 3])


@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16])
def test_short_logits_are_lossless_from_there_on(short: torch.dtype) -> None:
    logits, labels, weights = maps()
    given = logits.detach().to(short).requires_grad_()
    with torch.autocast("cpu", short):
        found = segmentation_loss(given, labels, 5, weights)
    assert found.dtype == torch.float32
    assert torch.equal(found, segmentation_loss(given.float(), labels, 5, weights))


def test_checkpointing_changes_nothing() -> None:
    logits, labels, weights = maps()
    plain = segmentation_loss(logits, labels, 5, weights)
    again = checkpoint(lambda given: segmentation_loss(given, labels, 5, weights), logits, use_reentrant=False)
    assert torch.equal(plain, again)
    assert torch.equal(torch.autograd.grad(plain, logits)[0], torch.autograd.grad(again, logits)[0])


def test_its_sum_is_one_graph_for_the_compiler() -> None:
    logits, labels, weights = maps()
    plain = loss_sum(logits, labels, 5, weights)
    traced = torch.compile(inspect.unwrap(loss_sum), backend="aot_eager", fullgraph=True)  # without the tests' checks
    found = traced(logits, labels, 5, weights)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(plain, logits))


def test_logits_of_another_number_of_channels_are_our_bug() -> None:
    with pytest.raises(AssertionError, match="4 channels for 2 classes"):
        segmentation_loss(torch.zeros(1, 4, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8), 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_it_repeats_itself() -> None:
    logits, labels, weights = (value.detach().cuda() for value in maps())
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(3):
            given = logits.clone().requires_grad_()
            loss = segmentation_loss(given, labels, 5, weights)
            loss.backward()
            assert given.grad is not None
            found.append((loss.item(), given.grad.cpu()))
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(loss == found[0][0] and torch.equal(gradient, found[0][1]) for loss, gradient in found)
    assert found[0][0] == pytest.approx(
        segmentation_loss(logits.cpu(), labels.cpu(), 5, weights.cpu()).item(), rel=1e-5
    )
