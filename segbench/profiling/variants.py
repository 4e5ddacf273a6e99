"""How far a variant of a network, in other numbers (`precision.py`) or by another backend, is from fp32 eager.

A profile's weights are random, and some begin as zeros: FCN's score layers, the last scale of a residual branch. What
they multiply is then the same in every variant, right or wrong. So `without_zeros` gives such weights small random
values. They stay while the network is timed, in fp32 eager too: that takes no other time, and a GPU that multiplies by
zeros draws less power than one that works.

Gradients of fp16 are not scaled in a profile.
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from segbench.precision import precision_of
from segbench.profiling.spec import ProfileSpec
from segbench.profiling.workload import SEED

NOISE = 0.01
"""Standard deviation of what replaces weights of zeros."""


def is_reference(spec: ProfileSpec) -> bool:
    """Whether this is fp32 eager itself, whose deviation would be zero by definition and is None."""
    return spec.precision == "fp32" and spec.backend == "eager" and not (spec.channels_last or spec.cuda_graphs)


@torch.no_grad()
def without_zeros(model: nn.Module) -> tuple[str, ...]:
    """Give every weight that is zero everywhere normal noise of the profile's seed; biases stay. A note names them.

    Drawn on the CPU, so that every device gets the same numbers.
    """
    generator = torch.Generator().manual_seed(SEED)
    weights = [(name, p) for name, p in model.named_parameters() if not name.rpartition(".")[2].endswith("bias")]
    zeros = [(name, p) for name, p in weights if not p.any()]
    for _, parameter in zeros:
        parameter.copy_(NOISE * torch.randn(parameter.shape, generator=generator))
    if not zeros:
        return ()
    names = ", ".join(name for name, _ in zeros[:4]) + (" ..." if len(zeros) > 4 else "")
    return (f"{len(zeros)} weights that begin as zeros ({names}) got small random values: zeros would hide deviations",)


@torch.no_grad()  # not inference_mode: a model may keep a tensor of its first forward and train with it later
def exact_logits(model: nn.Module, images: Shaped[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h2 w2"]:
    """What variants are compared with: eval mode, fp32, eager, PyTorch's own layout, whatever surrounds it.

    Leaves the model in eval mode and in that layout, so it goes before `inference`, which lays the model out. Training
    in between would change the weights and statistics that are compared.
    """
    plain = model.eval().to(memory_format=torch.contiguous_format)
    with precision_of("fp32", images.device):
        return plain(images.contiguous())


def deviation(
    expected: Float[Tensor, "n classes h w"], found: Float[Tensor, "n classes h w"]
) -> dict[str, float | None]:
    """How far a variant's logits are from those of `exact_logits` on the same images.

    `changed_pixels` is the share of pixels at which another channel is the largest (the first of equals), and of those
    at which the variant has a NaN. It is None when all channels of `expected` are equal everywhere, as where a network
    ends in one score for all: nothing can be told from them. `largest_logit_error` is the largest absolute
    difference, in logits, and `largest_logit` the largest absolute value of `expected`, for scale; either is None when
    it is not finite, as where fp16 ends at 65504. On random weights and noise many pixels are near a tie, which trained
    networks on photographs are not: the share says that something changed, not how much accuracy is lost.
    """
    changed = (expected.argmax(1) != found.argmax(1)) | found.isnan().any(1)
    undecided = bool((expected == expected[:, :1]).all())
    return {
        "changed_pixels": None if undecided else int(changed.sum()) / changed.numel(),
        "largest_logit_error": finite((expected - found).abs().max()),
        "largest_logit": finite(expected.abs().max()),
    }


def finite(value: Float[Tensor, ""]) -> float | None:
    """JSON has neither NaN nor infinity."""
    number = float(value)
    return number if math.isfinite(number) else None
