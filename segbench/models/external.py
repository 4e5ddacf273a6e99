"""Other libraries' networks under this package's contract: an `input`, and logits of the images' size.

What a network returns becomes logits by the same rules for every family (smp.py, torchvision.py, huggingface.py,
code.py):

- Of a dictionary, the value under `out` (torchvision's key) or `logits` (Transformers'), else its only value that is a
  tensor; of a tuple or list, its only tensor. Anything else is refused: nobody can tell which output is scored.
- Logits of another size than the images are resized bilinearly with pixel centres aligned (`align_corners=False`), as
  these networks' own papers do before they score: SegFormer gives a quarter of the image, DeepLab an eighth.
- Where a network wants sizes that its stride divides, the image is padded below and right with zeros (the mean colour,
  after normalisation), the logits are resized to the padded size, and the padding is cropped off.

Departures: auxiliary heads are left off, for they change what is trained and not what is predicted. Batch normalisation
is the libraries' own: it cannot train at batch size 1 where it follows a pooling of the whole image, as in DeepLabV3.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from segbench.errors import ModelError
from segbench.models.input import Input
from segbench.models.layers import cropped
from segbench.registry import did_you_mean

LOGITS_KEYS = ("out", "logits")


class External(nn.Module):
    """Another library's network, its logits of the input's size.

    multiple: what heights and widths must be a multiple of, in pixels.
    """

    def __init__(self, network: nn.Module, input: Input, *, multiple: int = 1) -> None:
        super().__init__()
        self.network = network
        self.input = input
        self.multiple = multiple

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes h w"]:
        """Raises `ModelError` when the network's output holds no logits, or several."""
        size = images.shape[-2:]
        below, right = (-side % self.multiple for side in size)
        padded = F.pad(images, (0, right, 0, below)) if below or right else images
        logits = logits_of(self.network(padded))
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return cropped(logits, size)


def logits_of(found: Any) -> Float[Tensor, "n classes h w"]:
    """The logits in what a network returned; raises `ModelError` where that is not one tensor of four dimensions."""
    if isinstance(found, Mapping):
        named = [found[key] for key in LOGITS_KEYS if key in found]
        found = named[0] if named else tuple(found.values())
    if isinstance(found, tuple | list):
        tensors = [value for value in found if isinstance(value, Tensor)]
        found = tensors[0] if len(tensors) == 1 else found
    if isinstance(found, Tensor) and found.ndim == 4:
        return found
    raise ModelError(
        f"the network returned {_described(found)}; allowed: logits [images, classes, height, width], alone or under "
        f"{' or '.join(LOGITS_KEYS)} in a dictionary"
    )


def _described(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of shape {list(found.shape)}"
    if isinstance(found, tuple | list):
        return f"a {type(found).__name__} of {len(found)} ({', '.join(type(value).__name__ for value in found)})"
    return f"a {type(found).__name__}"


def member_of(family: str, member: str, known: Mapping[str, Any]) -> Any:
    """What a family knows under a member's name; raises `ModelError` with the nearest name."""
    if member not in known:
        near = did_you_mean(member, known)
        raise ModelError(f'"{member}" is not a network of {family}{near} (known: {", ".join(sorted(known))})')
    return known[member]


def options_of(builder: Callable[..., Any], set_here: set[str]) -> dict[str, Any]:
    """Options of another library's builder, of any type: its annotations are its own affair."""
    return {name: Any for name in inspect.signature(builder).parameters if name not in set_here}
