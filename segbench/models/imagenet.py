"""The checkpoints of ImageNet that have a name, and what tells weights apart. Imports no torch: planning needs it.

imagenet         torchvision's VGG16_Weights.IMAGENET1K_V1
imagenet-caffe   torchvision's VGG16_Weights.IMAGENET1K_FEATURES, without fc6 and fc7: ported from ssd.pytorch's
                 file and trained, torchvision says, on VGG's original input (0..255 minus the mean), as were the
                 Caffe weights that the papers began from
"""

import hashlib
from pathlib import Path

DOWNLOADS = "https://download.pytorch.org/models"
# The end of a file's name is the beginning of its SHA-256.
FILES = {
    "imagenet": "vgg16-397923af.pth",
    "imagenet-caffe": "vgg16_features-amdegroot-88682ab5.pth",
}


def weights_digest(source: str | Path) -> str:
    """What tells weights apart, without a download: 16 hexadecimal digits of a file's SHA-256, or the file name of a
    named checkpoint, which carries 8 of them (checked when it is loaded)."""
    return FILES.get(str(source)) or sha256(Path(source))[:16]


def sha256(path: Path) -> str:
    """A file's SHA-256, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
