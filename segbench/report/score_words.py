"""What scores mean, in sentences that stand below every table of them."""

from dataclasses import dataclass
from typing import Any

from segbench.scoring.classes import ClassList
from segbench.scoring.spec import ScoreSpec

REGION_WORDS = (
    "G, C and mIoU come from one confusion matrix over the split; pixels with void truth are left out, "
    "void predictions elsewhere are errors; C averages classes with truth, mIoU classes with a union."
)
OTHER_REGION_WORDS = "FWIoU weights IoU by truth pixels; Dice averages classes in truth or prediction."
SURFACE_WORDS = (
    "NSD: the share of both maps' boundary pixels that lie within the tolerance of the other's, averaged as BF is."
)
RULES = {"bsds": "one-to-one matching (bsds)", "distance": "within the tolerance (distance)"}
VOID = {
    "script": "edges to void are boundaries",
    "copied": "the truth's void is copied into the prediction (copied)",
    "touching": "boundary pixels that touch void are left out (touching)",
    "band": "boundary pixels within the tolerance of void are left out (band)",
}


@dataclass(frozen=True)
class Data:
    """What was scored: `split` of a dataset's own folder, else the files in `truth` themselves; `classes` names the
    dataset or the file whose classes they are."""

    truth: str
    classes: str
    split: str | None
    images: int
    left_out: int

    @property
    def sentence(self) -> str:
        """For below a table."""
        where = (
            f"{self.classes} {self.split} in {self.truth}" if self.split else f"{self.truth}, classes of {self.classes}"
        )
        return f"Data: {where}, {self.images} images{f' ({self.left_out} more left out)' if self.left_out else ''}."


def convention_words(classes: ClassList, spec: ScoreSpec) -> list[str]:
    """What every score means, in sentences."""
    boundary = [boundary_words(spec.boundary.model_dump(mode="json"))] if spec.boundary else []
    surface = [SURFACE_WORDS] if spec.boundary and "distance" in spec.boundary.rules else []
    numbering = {
        "files": "Predictions hold the ids of the truth's files.",
        "classes": "Predictions hold class indices from 0.",
    }.get(classes.numbering, f"Predictions are translated by {classes.numbering}.")
    return [REGION_WORDS, OTHER_REGION_WORDS, *boundary, *surface, numbering]


def boundary_words(boundary: dict[str, Any]) -> str:
    """Rules, tolerances, void policies and averages of boundary scores, from their settings as JSON."""
    rules = ", ".join(RULES[rule] for rule in boundary["rules"])
    tolerances = ", ".join(map(spelt, boundary["tolerances"]))
    # Records of before there were policies had the script's.
    policies = "; ".join(VOID[policy] for policy in boundary.get("void", ["script"]))
    words = (
        f"BF: boundary F1, {rules}, tolerance {tolerances}; mean over the classes with a boundary in truth or "
        f"prediction of an image, then over images, as in the SegNet authors' script; {policies}."
    )
    if boundary.get("iou"):
        widths = ", ".join(map(spelt, boundary["iou"]))
        words += f" Boundary IoU: bands of {widths}, pooled over images, mean over the classes with a band."
    return words


def spelt(tolerance: str) -> str:
    """`0.75 % of the diagonal`, `4 px`"""
    return tolerance.replace("%", " % of the diagonal").replace("px", " px")
