"""What scores mean, in sentences that stand below every table of them."""

from typing import Any

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
