"""The loss: softmax and cross-entropy with a weight for each class, over the pixels that are not void.

It is caffe-segnet's SoftmaxWithLoss: sum of w[y] * -log p[y] over the valid pixels, over their number, so its gradient
at a valid pixel is w[y] * (p - onehot(y)) / number. What is divided by has other readings (`LossNormaliser`), hence sum
and divisor come apart; they also do where several processes divide their own sums by one divisor.

PyTorch's cross-entropy has no deterministic form on a GPU when it adds up pixels itself (nll_loss2d). Without a
reduction it writes each pixel, and each gradient, once; the addition after it has one order. It is the one path, for
on a CPU it takes as long (0.96 to 1.03 of the time, forward and backward, at 4x11x360x480).
Loss and divisor are computed in fp32 whatever the network's numbers are (in fp64 for fp64), and nothing is read back.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from segbench.engine.recipe import LossNormaliser


def segmentation_loss(
    logits: Float[Tensor, "n channels h w"],
    labels: UInt8[Tensor, "n h w"],
    void: int,
    class_weights: Float[Tensor, " k"] | None = None,
    normaliser: LossNormaliser = "valid-pixels",
) -> Float[Tensor, ""]:
    """Sum of w[y] * -log p[y] over the valid pixels, divided by their number, by the sum of their w, or by nothing.

    `void` is K, the label that the loss ignores. Logits of K + 1 channels give void one of its own, the last: no pixel
    is taught it, yet it has its share of the softmax (the released network for SUN RGB-D has 38 outputs).
    A batch without a valid pixel, or whose weights are all 0, has loss 0.
    """
    return divided(loss_sum(logits, labels, void, class_weights), divisor(labels, void, class_weights, normaliser))


def loss_sum(
    logits: Float[Tensor, "n channels h w"],
    labels: UInt8[Tensor, "n h w"],
    void: int,
    class_weights: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, ""]:
    """Sum of w[y] * -log p[y] over the valid pixels."""
    channels = logits.shape[1]
    assert channels in (void, void + 1), f"{channels} channels for {void} classes"
    taught = None if class_weights is None else F.pad(class_weights, (0, channels - void))  # void weighs nothing
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(exact, labels.long(), taught, ignore_index=void, reduction="none").sum()


def divided(total: Float[Tensor, ""], by: Shaped[Tensor, ""] | None) -> Float[Tensor, ""]:
    """The sum over its divisor; the sum itself where there is none, or where it is 0."""
    return total if by is None else total / by.masked_fill(by == 0, 1)


def divisor(
    labels: UInt8[Tensor, "n h w"],
    void: int,
    class_weights: Float[Tensor, " k"] | None = None,
    normaliser: LossNormaliser = "valid-pixels",
) -> Shaped[Tensor, ""] | None:
    """The number of valid pixels, or the sum of their weights; None for nothing. It may be 0."""
    if normaliser == "none":
        return None
    if normaliser == "weights" and class_weights is not None:
        return F.pad(class_weights, (0, 1))[labels.long()].sum()
    return (labels != void).sum()
