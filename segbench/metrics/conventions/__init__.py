"""What other libraries would print for the same predictions, from the stored counts alone.

"mIoU" is many numbers: summed over the dataset or averaged over images, over all classes or those that occur, with void
as a class or without. Each row that `conventions` gives is one number of one library: its value, the text that the
library prints (so computed in float32 where the library does), why it differs from the score of segbench that one
would set beside it, and how that was checked. What a library does not answer, or nobody could verify, is "n/a" with the
reason, never a guess.

Texts hold to the last digit but for one case: libraries that add float32 numbers do it in the order of the processor,
so next to a tie their own last digit differs between machines.

`frameworks` holds mmsegmentation, torchvision and detectron2, `evaluators` the tools that score label files, and the
two libraries with many averages have files of their own.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64

from segbench.errors import DataError
from segbench.metrics.conventions.convention import Confusion, Convention
from segbench.metrics.conventions.evaluators import cityscapesscripts, matlab, nnunet, perceptionmetrics
from segbench.metrics.conventions.frameworks import detectron2, mmsegmentation, torchvision
from segbench.metrics.conventions.smp import segmentation_models_pytorch
from segbench.metrics.conventions.torchmetrics import torchmetrics

LIBRARIES: tuple[Callable[[Confusion], list[Convention]], ...] = (
    mmsegmentation,
    torchvision,
    detectron2,
    torchmetrics,
    segmentation_models_pytorch,
    perceptionmetrics,
    cityscapesscripts,
)


def conventions(
    confusion: Confusion,
    boundary: Int64[np.ndarray, "n k 4"] | None = None,
    *,
    classes: Sequence[str] = (),
) -> list[Convention]:
    """Every number of every library, in the order of the libraries.

    `confusion` counts pixels of n images: row truth, the last one void; column prediction, the last one void or out of
    range. `boundary` are counts (n_pred, tp_pred, n_gt, tp_gt) under the rule "distance" at 0.75 % of the diagonal, for
    MATLAB's boundary score. `classes` are the names to use in explanations. Raises DataError without images and for
    fewer than two classes, which these libraries score in other ways.
    """
    images, num_classes = len(confusion), confusion.shape[-1] - 1
    if images == 0 or num_classes < 2:
        raise DataError(
            f"conventions: found {images} images and {num_classes} classes; other libraries' scores need at least one "
            "image and two classes; score more files or leave the conventions out"
        )
    rows = [row for library in LIBRARIES for row in library(confusion)]
    return rows + nnunet(confusion, classes[0] if classes else "0") + matlab(confusion, boundary)
