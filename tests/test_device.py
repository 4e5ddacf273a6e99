"""The counters on tensors against slow loops and against those of the host; and that they never wait for the device."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segbench.metrics import confusion as host_confusion
from segbench.metrics import device
from segbench.metrics.boundary import boundary_counts
from segbench.metrics.boundary_iou import band_counts

SIZES = [(1, 1), (1, 7), (7, 1), (17, 23)]
CLASSES = [1, 2, 15, 16, 31, 32, 64, 254]  # one bit more takes a larger integer or another round
KINDS = ["noise", "blobs", "constant", "void", "disjoint"]
POLICIES = ["script", "copied", "touching", "band"]


def blobs(images, size, num_labels, rng):
    """A few regions of the first label, the last ones and some between."""
    fields = gaussian_filter(rng.standard_normal((images, min(num_labels, 6), *size)), (0, 0, 1.5, 1.5))
    chosen = np.linspace(0, num_labels - 1, fields.shape[1]).round()
    return chosen[fields.argmax(1)].astype(np.uint8)


def maps(kind, images, size, num_classes, rng):
    """(truth, prediction) [images, h, w]; truth of 0..K, prediction of anything."""
    shape, void = (images, *size), num_classes
    if kind == "constant":
        return np.zeros(shape, np.uint8), np.full(shape, num_classes - 1, np.uint8)
    if kind == "noise":
        return rng.integers(0, void + 1, shape).astype(np.uint8), rng.integers(0, 256, shape).astype(np.uint8)
    truth, prediction = (blobs(images, size, num_classes + 1, rng) for _ in range(2))
    if kind == "void":
        return np.full_like(truth, void), prediction
    if kind == "disjoint":
        half = (num_classes + 1) // 2
        return truth % half, half + prediction % half
    flipped = np.where(rng.random(shape) < 0.1, prediction, truth)
    return truth, np.where(rng.random(shape) < 0.05, 255, flipped).astype(np.uint8)


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def windows(map_, y, x):
    """The 2x2 window, the last row and column repeated."""
    h, w = map_.shape
    return [map_[j, i] for j in (y, min(y + 1, h - 1)) for i in (x, min(x + 1, w - 1))]


def slow_distance(truth, prediction, num_classes, tolerance_sq, void):
    """Pixel by pixel and class by class, from the definitions."""
    if void == "copied":
        prediction = np.where(truth == num_classes, truth, prediction)
    places = [(y, x) for y in range(truth.shape[0]) for x in range(truth.shape[1])]
    near = lambda a, b: (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 <= tolerance_sq  # noqa: E731
    voids = [p for p in places if truth[p] == num_classes]
    left_out = {
        "touching": lambda p: num_classes in windows(truth, *p),
        "band": lambda p: any(near(p, q) for q in voids),
    }.get(void, lambda p: False)
    counts = np.zeros((num_classes, 4), np.int64)
    for label in {*truth.ravel().tolist(), *prediction.ravel().tolist()} & {*range(num_classes)}:
        found, expected = (
            [p for p in places if label in windows(m, *p) and len({*windows(m, *p)}) > 1 and not left_out(p)]
            for m in (prediction, truth)
        )
        hits = sum(any(near(p, q) for q in expected) for p in found)
        hit = sum(any(near(p, q) for q in found) for p in expected)
        counts[label] = len(found), hits, len(expected), hit
    return counts


def slow_band(labels, d):
    h, w = labels.shape
    band = np.ones((h, w), bool)
    for y in range(d, h - d):
        for x in range(d, w - d):
            band[y, x] = len(np.unique(labels[y - d : y + d + 1, x - d : x + d + 1])) > 1
    return band


def slow_bands(truth, prediction, num_classes, d):
    in_truth, in_prediction = slow_band(truth, d), slow_band(prediction, d)
    counts = np.zeros((num_classes, 3), np.int64)
    for label in {*truth.ravel().tolist(), *prediction.ravel().tolist()} & {*range(num_classes)}:
        expected, found = (truth == label) & in_truth, (prediction == label) & in_prediction
        counts[label] = found.sum(), expected.sum(), (found & expected).sum()
    return counts


@pytest.mark.parametrize("num_classes", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_hosts_counts(kind, num_classes):
    rng = np.random.default_rng(num_classes)
    for size in SIZES:
        truth, prediction = maps(kind, 2, size, num_classes, rng)
        pairs = list(zip(truth, prediction, strict=True))
        found = device.confusion(*tensors(truth, prediction), num_classes)
        assert np.array_equal(found, [host_confusion.confusion(t, p, num_classes) for t, p in pairs])
        found = device.band_counts(*tensors(truth, prediction), num_classes, 3)
        assert np.array_equal(found, [band_counts(t, p, num_classes, 3) for t, p in pairs]), size
        for tolerance_sq, void in [(0, "script"), *((20, void) for void in POLICIES)]:
            found = device.distance_counts(*tensors(truth, prediction), num_classes, tolerance_sq, void)
            expected = [boundary_counts(t, p, num_classes, "distance", tolerance_sq, void) for t, p in pairs]
            assert np.array_equal(found, expected), (size, tolerance_sq, void)


@pytest.mark.parametrize("void", POLICIES)
@pytest.mark.parametrize("num_classes", [2, 11, 70])
def test_void_policies_are_those_of_the_definitions(void, num_classes):
    rng = np.random.default_rng(num_classes)
    changed = 0
    for kind in KINDS:
        for size in [(1, 1), (1, 7), (7, 1), (8, 11)]:
            truth, prediction = maps(kind, 1, size, num_classes, rng)
            for tolerance_sq in (0, 5):
                found = device.distance_counts(*tensors(truth, prediction), num_classes, tolerance_sq, void)
                expected = slow_distance(truth[0], prediction[0], num_classes, tolerance_sq, void)
                assert np.array_equal(found[0], expected), (kind, size, tolerance_sq)
                script = device.distance_counts(*tensors(truth, prediction), num_classes, tolerance_sq)
                changed += not torch.equal(found, script)
    assert (changed > 5) == (void != "script")


@pytest.mark.parametrize("num_classes", [2, 11, 254])
def test_bands_are_those_of_the_definition(num_classes):
    rng = np.random.default_rng(num_classes)
    for kind in KINDS:
        for size in [(1, 1), (1, 7), (7, 1), (8, 8), (9, 14)]:
            truth, prediction = maps(kind, 2, size, num_classes, rng)
            for width in (1, 2, 3, 4, 9):
                found = device.band_counts(*tensors(truth, prediction), num_classes, width)
                expected = [slow_bands(t, p, num_classes, width) for t, p in zip(truth, prediction, strict=True)]
                assert np.array_equal(found, expected), (kind, size, width)


def counted(truth, prediction, num_classes):
    """Everything that device.py counts."""
    pair = truth, prediction, num_classes
    return [
        device.confusion(*pair),
        device.band_counts(*pair, 2),
        *(device.distance_counts(*pair, 5, void) for void in POLICIES),
    ]


@pytest.mark.parametrize("num_classes", [11, 70])
def test_batches_and_chunks_change_nothing(num_classes, monkeypatch):
    truth, prediction = tensors(*maps("blobs", 7, (13, 17), num_classes, np.random.default_rng(3)))
    whole = counted(truth, prediction, num_classes)
    parts = [counted(truth[i : i + 3], prediction[i : i + 3], num_classes) for i in (0, 3, 6)]
    monkeypatch.setattr(device, "PIXELS_AT_ONCE", 2 * 13 * 17 + 1)
    chunks = counted(truth, prediction, num_classes)
    for one, split, chunked in zip(whole, zip(*parts, strict=True), chunks, strict=True):
        assert one.dtype == torch.int64 and one.any()
        assert torch.equal(one, torch.cat(split)) and torch.equal(one, chunked)


def test_the_maps_given_stay_as_they_were():
    pair = tensors(*maps("noise", 2, (9, 11), 5, np.random.default_rng(4)))
    before = [m.clone() for m in pair]
    counted(*pair, 5)
    assert all(torch.equal(one, other) for one, other in zip(pair, before, strict=True))


def test_maps_need_not_be_contiguous():
    truth, prediction = tensors(*maps("blobs", 2, (9, 11), 5, np.random.default_rng(5)))
    expected = counted(truth, prediction, 5)
    found = counted(truth.mT.contiguous().mT, prediction.mT.contiguous().mT, 5)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# On the device, without waiting for it

WAITS = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "is_nonzero", "equal", "unique", "_unique2"}


class Recorder(TorchDispatchMode):
    """Every operator that runs, and every device that a tensor of it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.names.add(function.overloadpacket.__name__)
        self.devices |= {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        return out


def recorded(function):
    """What `function` does with maps on a GPU that only pretends to be: any operator that needs a value raises."""
    with FakeTensorMode():
        pair = [torch.zeros((2, 9, 11), dtype=torch.uint8, device="cuda") for _ in range(2)]
        with Recorder() as seen:
            function(*pair)
    return seen


@pytest.mark.parametrize("num_classes", [11, 70])
def test_nothing_waits_and_nothing_is_uploaded(num_classes):
    seen = recorded(lambda truth, prediction: counted(truth, prediction, num_classes))
    assert len(seen.names) > 10 and not seen.names & WAITS
    assert seen.devices == {"cuda"}


def test_waiting_would_be_seen():
    for waiting in (
        lambda truth, prediction: truth.max().item(),
        lambda truth, prediction: truth[truth > 0],
        lambda truth, prediction: truth.flatten().bincount(),
    ):
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            recorded(waiting)
    seen = recorded(lambda truth, prediction: torch.tensor([1, 2, 3]).to("cuda"))
    assert "cpu" in seen.devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("num_classes", [11, 20, 70])
def test_a_gpu_counts_the_same_without_synchronising(num_classes, deterministic):
    pair = tensors(*maps("blobs", 5, (61, 90), num_classes, np.random.default_rng(6)))
    expected, there = counted(*pair, num_classes), [m.cuda() for m in pair]
    try:
        torch.use_deterministic_algorithms(deterministic)
        torch.cuda.set_sync_debug_mode("error")
        found = counted(*there, num_classes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(found, expected, strict=True))


# Memory


class Live(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive at once; what an operator makes for itself is not seen."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.sizes = {t.untyped_storage()._cdata: 0 for t in given}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return out


@pytest.mark.parametrize(("num_classes", "bytes_a_pixel"), [(15, 36), (31, 67), (150, 132)])
def test_memory_is_that_of_a_chunk(num_classes, bytes_a_pixel, monkeypatch):
    size, counts = 40 * 50, (num_classes + 1) ** 2 * 8
    truth, prediction = tensors(*maps("noise", 8, (40, 50), num_classes, np.random.default_rng(7)))
    for images in (2, 8):
        monkeypatch.setattr(device, "PIXELS_AT_ONCE", images * size)
        with Live(truth, prediction) as live:
            counted(truth, prediction, num_classes)
        kept = 2 * 8 * counts  # of all images, and in parts before they are put together
        assert 0.8 * bytes_a_pixel * images * size < live.peak < bytes_a_pixel * images * size + kept
