"""What other libraries print, against the libraries themselves, and where they do not install, against their rules
followed again pixel by pixel from the label maps."""

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from segbench.errors import DataError
from segbench.metrics import region
from segbench.metrics.conventions import conventions

SIZE = (24, 32)


def noise(rng, num_classes, images):
    return rng.integers(0, num_classes, (images, *SIZE))


def blobs(rng, num_classes, images):
    small = rng.integers(0, num_classes, (images, SIZE[0] // 8, SIZE[1] // 8))
    return small.repeat(8, axis=1).repeat(8, axis=2)


def pair(kind, num_classes, seed=0):
    """(truth, prediction): truth K is void; only "stray" has predictions that are no class."""
    rng = np.random.default_rng(seed)
    images = 1 if kind == "single" else 7
    truth = (noise if kind == "noise" else blobs)(rng, num_classes, images)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, noise(rng, num_classes, images))
    last = num_classes - 1
    if kind in ("absent in truth", "absent in both"):
        truth[truth == last] = 0
    if kind in ("absent in prediction", "absent in both"):
        prediction[prediction == last] = 0
    if kind != "no void":
        truth[rng.random(truth.shape) < 0.1] = num_classes
    if kind == "void image":
        truth[2] = num_classes
    if kind == "all void":
        truth[:] = num_classes
    if kind == "void predicted":
        prediction[truth == num_classes] = num_classes
    if kind == "stray":
        prediction[rng.random(truth.shape) < 0.05] = num_classes
    return truth, prediction


KINDS = [
    "noise",
    "blobs",
    "absent in truth",
    "absent in prediction",
    "absent in both",
    "void image",
    "void predicted",
    "single",
    "no void",
]
CASES = [(kind, k) for kind in KINDS for k in (2, 19)] + [("noise", 11), ("blobs", 11), ("all void", 11)]
STRAY = [("stray", k) for k in (2, 11)]
cases = pytest.mark.parametrize(("kind", "num_classes"), CASES)
cases_and_stray = pytest.mark.parametrize(("kind", "num_classes"), CASES + STRAY)


def counted(truth, prediction, num_classes):
    counts = np.zeros((len(truth), num_classes + 1, num_classes + 1), np.int64)
    for image, (t, p) in enumerate(zip(truth, prediction, strict=True)):
        np.add.at(counts[image], (t.ravel(), np.minimum(p, num_classes).ravel()), 1)
    return counts


@cache
def rows_of(kind, num_classes):
    return conventions(counted(*pair(kind, num_classes), num_classes))


def texts(library, kind, num_classes):
    rows = [row for row in rows_of(kind, num_classes) if row.library == library]
    assert rows
    return {row.name: row.text for row in rows}


def printed(tensor):
    return str(tensor).removeprefix("tensor(").removesuffix(")")


def is_printed(text, tensor):
    """Whether a library prints this text. Next to a tie the last digit hangs on the order in which float32 numbers are
    added, which is the processor's: there both texts pass, elsewhere one."""
    assert tensor.dtype == torch.float32
    return text in {printed(tensor * (1 + shift)) for shift in (-5e-7, 0, 5e-7)}


# The libraries themselves


@cases
def test_torchmetrics_classification(kind, num_classes):
    classification = pytest.importorskip("torchmetrics.classification")
    truth, prediction = pair(kind, num_classes)
    ours = texts("torchmetrics", kind, num_classes)
    for name in ("MulticlassJaccardIndex", "MulticlassAccuracy"):
        for average in ("macro", "micro", "weighted"):
            metric = getattr(classification, name)(num_classes, average=average, ignore_index=num_classes)
            for t, p in zip(truth, prediction, strict=True):
                metric.update(torch.as_tensor(p), torch.as_tensor(t))
            assert is_printed(ours[f'{name}(average="{average}")'], metric.compute()), average


@cases_and_stray
def test_torchmetrics_segmentation(kind, num_classes):
    segmentation = pytest.importorskip("torchmetrics.segmentation")
    truth, prediction = pair(kind, num_classes)
    ours = texts("torchmetrics", kind, num_classes)
    channels = torch.arange(num_classes)[:, None, None]
    for name in ("MeanIoU", "DiceScore"):
        with_void = getattr(segmentation, name)(num_classes + 1, input_format="index")
        without = getattr(segmentation, name)(num_classes, input_format="one-hot")
        for t, p in zip(torch.as_tensor(truth)[:, None], torch.as_tensor(prediction)[:, None], strict=True):
            with_void.update(p, t)
            scored = t != num_classes
            without.update(((p == channels) & scored)[None], ((t == channels) & scored)[None])
        assert is_printed(ours[f'{name}(K + 1, input_format="index")'], with_void.compute())
        assert is_printed(ours[f'{name}(K, input_format="one-hot"), void zeroed'], without.compute())


def test_torchmetrics_segmentation_in_batches():
    segmentation = pytest.importorskip("torchmetrics.segmentation")
    truth, prediction = pair("blobs", 11)
    metric = segmentation.MeanIoU(12, input_format="index")
    for part in (slice(0, 4), slice(4, 7)):
        metric.update(torch.as_tensor(prediction[part]), torch.as_tensor(truth[part]))
    ours = texts("torchmetrics", "blobs", 11)
    assert is_printed(ours['MeanIoU(K + 1, input_format="index")'], metric.compute())


@cases_and_stray
def test_segmentation_models_pytorch(kind, num_classes):
    metrics = pytest.importorskip("segmentation_models_pytorch.metrics")
    truth, prediction = pair(kind, num_classes)
    ours = texts("segmentation-models-pytorch", kind, num_classes)
    stats = metrics.get_stats(
        torch.as_tensor(prediction),
        torch.as_tensor(truth),
        mode="multiclass",
        ignore_index=num_classes,
        num_classes=num_classes,
    )
    pixels = [int((truth == c).sum()) for c in range(num_classes)]
    shares = [n / sum(pixels) if sum(pixels) else math.nan for n in pixels]
    assert len(ours) == 18
    for name in ("iou_score", "f1_score", "accuracy"):
        for reduction in ("micro", "macro", "weighted", "micro-imagewise", "macro-imagewise", "weighted-imagewise"):
            weights = {"class_weights": shares} if "weighted" in reduction else {}
            score = getattr(metrics, name)(*stats, reduction=reduction, **weights)
            assert is_printed(ours[f'{name}(reduction="{reduction}")'], score), (name, reduction)


@cases_and_stray
def test_cityscapesscripts(kind, num_classes, tmp_path, capsys):
    script = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="cityscapesscripts is left out of the extra `test`: pip brings a module `typing` with it that can hide "
        "Python's own; run pip install --no-deps cityscapesscripts pyquaternion",
    )
    truth, prediction = pair(kind, num_classes)
    ids = [label.id for label in script.labels if not label.ignoreInEval]
    ignored = [label.id for label in script.labels if label.ignoreInEval and label.id >= 0]
    assert len(ids) == 19 and len(ignored) > 10
    rng = np.random.default_rng(1)
    files = {"truth": [], "prediction": []}
    for name, maps in (("truth", truth), ("prediction", prediction)):
        own = np.array([*ids[:num_classes], 255])[maps]
        own[own == 255] = rng.choice(ignored, (own == 255).sum())
        for index, labels in enumerate(own):
            files[name].append(str(tmp_path / f"{name}{index}.png"))
            Image.fromarray(labels.astype(np.uint8)).save(files[name][-1])
    args = SimpleNamespace(**{**vars(script.args), "evalInstLevelScore": False, "JSONOutput": False})
    args.colorized, args.bold, args.nocol = False, "", ""
    result = script.evaluateImgLists(files["prediction"], files["truth"], args)
    row = next(r for r in rows_of(kind, num_classes) if r.library == "cityscapesScripts")
    assert f"Score Average : {row.text:>5} " in capsys.readouterr().out
    np.testing.assert_equal(row.value, result["averageScoreClasses"])


# Their rules again, from the label maps, where the library itself is no package to install for a test


def masks(truth, prediction, num_classes):
    """(truth, prediction) masks of each class on scored pixels, by loops."""
    scored = truth != num_classes
    return [((truth == c) & scored, (prediction == c) & scored) for c in range(num_classes)]


@cases_and_stray
@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_mmsegmentation_followed(kind, num_classes):
    truth, prediction = pair(kind, num_classes)
    area = {"both": 0, "either": 0, "predicted": 0, "true": 0}
    for t, p in zip(truth, prediction, strict=True):
        kept_t, kept_p = (torch.as_tensor(m[t != num_classes]).float() for m in (t, p))
        bins = {"bins": num_classes, "min": 0, "max": num_classes - 1}
        both = torch.histc(kept_p[kept_p == kept_t], **bins)
        of_p, of_t = torch.histc(kept_p, **bins), torch.histc(kept_t, **bins)
        for key, value in (("both", both), ("either", of_p + of_t - both), ("predicted", of_p), ("true", of_t)):
            area[key] = area[key] + value
    scores = {
        "aAcc": area["both"].sum() / area["true"].sum(),
        "mIoU": area["both"] / area["either"],
        "mAcc": area["both"] / area["true"],
        "mDice": 2 * area["both"] / (area["predicted"] + area["true"]),
    }
    expected = {name: f"{np.round(np.nanmean(score.numpy()) * 100, 2):.4f}" for name, score in scores.items()}
    assert texts("mmsegmentation", kind, num_classes) == expected


@cases
def test_torchvision_followed(kind, num_classes):
    truth, prediction = pair(kind, num_classes)
    matrix = torch.tensor(
        [[((truth == t) & (prediction == p)).sum() for p in range(num_classes)] for t in range(num_classes)]
    ).float()
    right = matrix.diag()
    mean = (right / (matrix.sum(1) + matrix.sum(0) - right)).mean()
    assert texts("torchvision references", kind, num_classes) == {
        "global correct": f"{(right.sum() / matrix.sum()).item() * 100:.1f}",
        "mean IoU": f"{mean.item() * 100:.1f}",
    }


@cases
def test_detectron2_followed(kind, num_classes):
    truth, prediction = pair(kind, num_classes)
    ious, recalls, weighted, right, total, seen = [], [], 0.0, 0, (truth != num_classes).sum(), 0
    for t, p in masks(truth, prediction, num_classes):
        seen += t.any() or p.any()
        right += (t & p).sum()
        if t.any():
            ious.append((t & p).sum() / (t | p).sum())
            recalls.append((t & p).sum() / t.sum())
            weighted += ious[-1] * t.sum() / total

    def percent(part, whole):
        return f"{100 * part / whole:.4f}" if whole else "nan"

    rows = [r for r in rows_of(kind, num_classes) if r.library == "detectron2"]
    assert [(r.name, r.text) for r in rows] == [
        ("mIoU", percent(sum(ious), len(ious))),
        ("mIoU", percent(sum(ious), seen)),
        ("fwIoU", percent(weighted * total, total)),
        ("mACC", percent(sum(recalls), len(ious))),
        ("pACC", percent(right, total)),
    ]


@cases
@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_perceptionmetrics_followed(kind, num_classes):
    truth, prediction = pair(kind, num_classes)
    hits, false, missed, rest = [], [], [], []
    for t, p in masks(truth, prediction, num_classes):
        hits.append(int((t & p).sum()))
        false.append(int((p & ~t).sum()))
        missed.append(int((t & ~p).sum()))
        rest.append(int((~t & ~p & (truth != num_classes)).sum()))

    def over(part, whole):
        return part / whole if whole > 0 else math.nan

    groups = list(zip(hits, false, missed, strict=True))
    iou = [over(h, h + f + m) for h, f, m in groups]
    dice = [over(2 * h, 2 * h + f + m) for h, f, m in groups]
    pairs = [(over(h, h + f), over(h, h + m)) for h, f, m in groups]
    f1 = [over(2 * (p * r), p + r) for p, r in pairs]
    values = {
        "iou, macro": np.nanmean(iou),
        "iou, micro": over(sum(hits), sum(hits + false + missed)),
        "accuracy, micro": over(sum(hits + rest), sum(hits + false + missed + rest)),
        "recall, macro": np.nanmean([r for _, r in pairs]),
        "f1_score, macro": np.nanmean(f1),
        "dice_score, macro": np.nanmean(dice),
    }
    expected = {name: "NaN" if math.isnan(v) else repr(float(v)) for name, v in values.items()}
    assert texts("PerceptionMetrics", kind, num_classes) == expected


@cases_and_stray
@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_nnunet_followed(kind, num_classes):
    truth, prediction = pair(kind, num_classes)
    means = {"Dice": [], "IoU": []}
    for label in range(1, num_classes):
        dice, iou = [], []
        for t, p in zip(truth, prediction, strict=True):
            use = t != num_classes
            tp = np.sum((t == label) & (p == label) & use)
            fp = np.sum((t != label) & (p == label) & use)
            fn = np.sum((t == label) & (p != label) & use)
            none = tp + fp + fn == 0
            dice.append(np.nan if none else 2 * tp / (2 * tp + fp + fn))
            iou.append(np.nan if none else tp / (tp + fp + fn))
        means["Dice"].append(np.nanmean(dice))
        means["IoU"].append(np.nanmean(iou))
    expected = {}
    for name, of_classes in means.items():
        value = float(np.mean(of_classes))
        expected[f"foreground_mean {name}"] = "NaN" if math.isnan(value) else repr(value)
    assert texts("nnU-Net v2", kind, num_classes) == expected


# What ties them together


def test_one_pair_of_images_by_hand():
    """Class 2 is in no map of the first image and only predicted in the second; one pixel there is void."""
    truth = np.array([[[0, 0, 0, 1]], [[0, 0, 0, 3]]])
    prediction = np.array([[[0, 0, 1, 1]], [[0, 0, 2, 2]]])
    rows = {(r.library, r.version, r.name): r for r in conventions(counted(truth, prediction, 3), classes=["road"])}
    found = {(library, name): row.value for (library, _, name), row in rows.items()}
    # Class 0: 4 right of 6 in truth, none predicted beside them; class 1: 1 right, 2 predicted; class 2: 1 predicted.
    third = (4 / 6 + 1 / 2 + 0) / 3
    for library, name, value in [
        ("mmsegmentation", "mIoU", third),
        ("torchvision references", "mean IoU", third),
        ("torchmetrics", 'MulticlassJaccardIndex(average="macro")', third),
        ("torchmetrics", 'MulticlassJaccardIndex(average="micro")', 5 / (6 + 2 + 1)),
        ("torchmetrics", 'MulticlassAccuracy(average="macro")', (4 / 6 + 1 + 0) / 3),
        # Images: 2/3 and 1/2; then 2/3, 0, and of void 0 in the second, where class 2 has both pixels.
        ("torchmetrics", 'MeanIoU(K + 1, input_format="index")', (2 / 3 + 1 / 2 + 2 / 3 + 0 + 0) / 5),
        ("torchmetrics", 'MeanIoU(K, input_format="one-hot"), void zeroed', (2 / 3 + 1 / 2 + 2 / 3 + 0) / 4),
        ("segmentation-models-pytorch", 'iou_score(reduction="macro-imagewise")', (4 / 3 + (1 / 2 + 1) + 1) / 6),
        ("segmentation-models-pytorch", 'iou_score(reduction="weighted-imagewise")', (2 / 3 * 6 + 3 / 4 * 1) / 7 / 3),
        ("PerceptionMetrics", "iou, macro", third),
        ("PerceptionMetrics", "f1_score, macro", (4 / 5 + 2 / 3) / 2),
        ("PerceptionMetrics", "accuracy, micro", ((4 + 1) + (1 + 5) + (0 + 6)) / (3 * 7)),
        ("cityscapesScripts", "averageScoreClasses", third),
        ("nnU-Net v2", "foreground_mean IoU", (1 / 2 + 0) / 2),
    ]:
        assert found[library, name] == pytest.approx(value, rel=1e-6), (library, name)
    both = [row for (library, _, name), row in rows.items() if (library, name) == ("detectron2", "mIoU")]
    assert [row.text for row in both] == ["58.3333", "38.8889"]
    assert '"road"' in next(row.why for (library, _, _), row in rows.items() if library == "nnU-Net v2")
    assert rows["MATLAB", "evaluateSemanticSegmentation", "MeanIoU"].checked == "not verified"


@cases_and_stray
def test_rows_with_our_definition_have_our_number(kind, num_classes):
    sums = region.areas(counted(*pair(kind, num_classes), num_classes).sum(0))
    same = [
        row for row in rows_of(kind, num_classes) if row.why.startswith("the same definition") and row.text != "n/a"
    ]
    assert len(same) >= 5
    for row in same:
        if "but 0" in row.why and kind == "all void":
            assert row.value == 0
        else:
            np.testing.assert_allclose(row.value, getattr(region, row.ours)(sums), rtol=1e-5, err_msg=row.name)


@cases_and_stray
def test_a_number_is_given_or_its_absence_explained(kind, num_classes):
    rows = rows_of(kind, num_classes)
    assert len({(r.library, r.version, r.name) for r in rows}) == len(rows) == 53
    for row in rows:
        assert row.why and "\n" not in row.why
        assert math.isnan(row.value) == (row.text in ("nan", "NaN", "n/a")), row
        assert row.ours == "boundary_f1" or hasattr(region, row.ours)


def test_predictions_that_are_no_class_have_no_answer_where_libraries_wrap():
    rows = rows_of("stray", 11)
    without = {row.library for row in rows if row.text == "n/a" and row.name != "MeanBFScore"}
    assert without == {"torchvision references", "detectron2", "torchmetrics", "PerceptionMetrics", "MATLAB"}
    assert [r.name for r in rows if r.library == "torchmetrics" and r.text == "n/a"] == [
        f'Multiclass{score}(average="{average}")'
        for score in ("JaccardIndex", "Accuracy")
        for average in ("macro", "micro", "weighted")
    ]


def test_torchmetrics_does_raise_or_wrap_there():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    truth, prediction = torch.tensor([0, 1, 2]), torch.tensor([0, 3, 2])
    wrapped = functional.multiclass_confusion_matrix(prediction, truth, 3, ignore_index=3)
    assert wrapped.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]  # the error on class 1 became one on class 2
    with pytest.raises(RuntimeError):
        functional.multiclass_confusion_matrix(torch.tensor([0, 3, 3]), truth, 3, ignore_index=3)


def test_images_beyond_what_histc_counts():
    """A torch.histc in float32 stops at 2**24, so the number depends on threads and cannot be known."""
    counts = np.zeros((1, 3, 3), np.int64)
    counts[0, :2, :2] = [[2**24 - 4, 5], [0, 9]]
    without = {row.library for row in conventions(counts) if row.text == "n/a" and row.name != "MeanBFScore"}
    assert without == {"mmsegmentation", "segmentation-models-pytorch"}
    counts[0, 0, 0] -= 1
    assert not any(r.text == "n/a" for r in conventions(counts) if r.name != "MeanBFScore")


def test_mmsegmentation_adds_areas_in_float32():
    """500 areas of 700001 add up to 350000032 there, and enough such roundings show in what it prints."""
    counts = np.zeros((500, 3, 3), np.int64)
    counts[:, 0, 0] = 700001
    counts[:, 1, 1], counts[:, 1, 0] = 1, 1
    row = next(r for r in conventions(counts) if (r.library, r.name) == ("mmsegmentation", "mIoU"))
    in_turn = sum([torch.tensor(700001.0)] * 500)
    assert in_turn.item() == 350000032
    union = sum([torch.tensor(700002.0)] * 500)
    expected = (in_turn / union + torch.tensor(500.0) / torch.tensor(1000.0)) / 2
    assert row.value == expected.item()


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1."), (0.0, "0."), (0.5, "0.5000"), (0.99996, "1.0000"), (3e-5, "3.0000e-05"), (math.nan, "nan")],
)
def test_tensors_as_torch_prints_them(value, text):
    from segbench.metrics.conventions.convention import tensor_text

    assert printed(torch.tensor(value)) == text == tensor_text(value)


def test_matlab_says_how_far_it_is_known():
    def rows(truth, prediction, boundary=None):
        counts = counted(np.array([truth, truth]), np.array([prediction, prediction]), 3)
        return {row.name: row for row in conventions(counts, boundary) if row.library == "MATLAB"}

    known = rows([[0, 1, 2, 2]], [[0, 1, 2, 1]])
    assert {name: row.text for name, row in known.items()} == {
        "GlobalAccuracy": "0.75",
        "MeanAccuracy": "0.83333",
        "MeanIoU": "0.66667",
        "WeightedIoU": "0.625",
        "MeanBFScore": "n/a",
    }
    assert {row.checked for row in known.values()} == {"documentation only"}
    absent = rows([[0, 1, 1, 1]], [[0, 1, 1, 2]])
    assert [name for name, row in absent.items() if row.text == "n/a"] == ["MeanAccuracy", "MeanBFScore"]
    void = rows([[0, 1, 2, 3]], [[0, 1, 2, 2]])
    assert {row.checked for name, row in void.items() if name != "MeanBFScore"} == {"not verified"}
    boundary = np.array([[[2, 1, 2, 1], [4, 4, 4, 4], [0, 0, 0, 0]], [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
    score = rows([[0, 1, 2, 2]], [[0, 1, 2, 1]], boundary)["MeanBFScore"]
    assert (score.text, score.checked) == ("0.375", "not verified")  # (0.5 + 1) / 2 of one image, 0 of the other


@pytest.mark.parametrize("shape", [(0, 3, 3), (4, 2, 2)])
def test_nothing_to_compare(shape):
    with pytest.raises(DataError, match="at least one image and two classes"):
        conventions(np.zeros(shape, np.int64))
