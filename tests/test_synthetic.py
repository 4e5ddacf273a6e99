"""The drawn dataset: the same pixels everywhere, no scene twice, CamVid's skew, learnable but not by colour alone."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce

import numpy as np
import pytest
from conftest import REPOSITORY

from segbench.data import open_dataset
from segbench.data.class_weights import ClassCounts, class_weights, count
from segbench.data.dataset import Dataset, Sample
from segbench.data.road_scene import draw_scene
from segbench.data.spec import DataSpec
from segbench.data.synthetic import GENERATOR_VERSION
from segbench.errors import SettingError

# CamVid's training pixels in per cent, void last, from the released labels.
CAMVID = (16.85, 23.26, 0.98, 31.66, 4.49, 9.72, 1.17, 1.13, 5.87, 0.64, 0.29, 3.95)


@pytest.fixture(scope="module", autouse=True)
def _scenes_are_drawn_each_time() -> Iterator[None]:
    """And not remembered, as they are for the other tests: here two drawings of a scene are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segbench.data.synthetic.draw_scene", draw_scene)
        yield


def drawn(split: str = "train", size: str = "60x80", **options: int) -> Dataset:
    return open_dataset(DataSpec.model_validate({"name": "synthetic", "size": size, "options": options}), split)


def pixels(dataset: Dataset) -> str:
    total = hashlib.sha256()
    for sample in dataset:
        total.update(sample.name.encode() + sample.image.tobytes() + sample.labels.tobytes())
    return total.hexdigest()


def test_the_pixels_are_the_same_on_every_machine() -> None:
    assert pixels(drawn(train=8, seed=7)) == "486b3618f70c7a2a9867eddc9f3f9e8824330d3f8393e1b224619b6ef649fad3"


def test_splits_share_no_scene_and_a_longer_split_begins_with_the_shorter() -> None:
    sets = [drawn(split, train=6, val=6, test=6, seed=seed) for split in ("train", "val", "test") for seed in (0, 1)]
    maps = [sample.labels.tobytes() for dataset in sets for sample in dataset]
    assert len(set(maps)) == len(maps) == 36
    long, short = drawn(train=9), drawn(train=4)
    assert [sample.image.tobytes() for sample in short] == [long[index].image.tobytes() for index in range(4)]


def test_samples_can_be_asked_for_in_any_order() -> None:
    dataset = drawn(train=5)
    forwards = [dataset[index].image for index in range(5)]
    backwards = [dataset[index].image for index in reversed(range(5))]
    for there, back in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(there, back)
    with pytest.raises(IndexError):
        dataset[5]


@pytest.fixture(scope="module")
def scenes() -> list[Sample]:
    return list(drawn(train=60))


def class_counts_of(samples: list[Sample]) -> ClassCounts:
    return reduce(ClassCounts.plus, [count(sample.labels, 11) for sample in samples])


def test_class_shares_are_near_camvids(scenes: list[Sample]) -> None:
    counts = class_counts_of(scenes)
    shares = 100 * np.array([*counts.pixels, counts.void_pixels]) / (60 * 60 * 80)
    np.testing.assert_allclose(shares, CAMVID, rtol=0.5)
    weights = class_weights("median-frequency", counts)
    assert weights.max() / weights.min() > 25
    # Everything is learnt from and scored: no class is in fewer than a quarter of the images.
    assert (counts.image_pixels > 60 * 60 * 80 // 4).all()


def test_poles_are_thin(scenes: list[Sample]) -> None:
    runs: list[int] = []
    for sample in scenes[:20]:
        for row in sample.labels == 2:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
            runs += (edges[1::2] - edges[::2]).tolist()
    assert np.median(runs) <= 2


def test_colour_alone_does_not_tell_the_classes_but_tells_something(scenes: list[Sample]) -> None:
    """The best label for each coarse colour, learnt on 60 images, is far from perfect and from chance on others."""
    table = np.zeros((16**3, 12), np.int64)

    def colours(image: np.ndarray) -> np.ndarray:
        coarse = (image >> 4).astype(np.int64)
        return coarse[..., 0] * 256 + coarse[..., 1] * 16 + coarse[..., 2]

    for sample in scenes:
        np.add.at(table, (colours(sample.image), sample.labels), 1)
    best = table[:, :11].argmax(1)
    test = list(drawn("test", test=20))
    predicted = np.concatenate([best[colours(sample.image)].ravel() for sample in test])
    truth = np.concatenate([sample.labels.ravel() for sample in test])
    recalls = [(predicted[truth == c] == c).mean() for c in range(11)]
    assert 0.45 < (predicted == truth)[truth < 11].mean() < 0.85
    assert 0.1 < np.mean(recalls) < 0.5


@pytest.mark.parametrize("size", ["24x32", "24x200", "130x33", "90x120", "180x240"])
def test_every_size_holds_valid_labels(size: str) -> None:
    dataset = drawn(size=size, train=6)
    for sample in dataset:
        assert sample.image.shape[:2] == sample.labels.shape == dataset.size
        assert sample.labels.max() <= 11
        assert sample.image.std() > 10


def test_a_scene_is_the_same_view_at_any_size() -> None:
    """The sky and road of a scene cover about the same share at twice the size."""
    for seed in range(8):
        shares = []
        for size in ((60, 80), (120, 160)):
            ids = draw_scene([0, 0, seed], size)[1]
            shares.append([(ids == 0).mean(), (ids == 3).mean()])
        np.testing.assert_allclose(shares[0], shares[1], atol=0.04)


QUICK = """
import time
from segbench.data.preflight import require
from segbench.data.synthetic import Synthetic

dataset = Synthetic("train", size=(60, 80), train=20)
dataset[0]
started = time.process_time()
assert require(dataset).images == 20
print(time.process_time() - started)
"""


def test_drawing_is_quick() -> None:
    """In a process of its own: the shape checks of a test run take most of the time of so short a function."""
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    # Preflight draws each scene twice, 4 ms each, 7 in threads beside each other; a slow machine gets three times that.
    assert float(done.stdout) < 20 * 2 * 0.02


def test_digest_follows_the_parameters_of_the_split_alone() -> None:
    digest = drawn(train=5).digest()
    assert digest == drawn(train=5, test=9).digest()
    others = {drawn(train=6).digest(), drawn(train=5, seed=1).digest(), drawn("val", val=5).digest()}
    others.add(drawn(size="90x120", train=5).digest())
    assert len(others | {digest}) == 5


def test_digest_follows_the_generators_version(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = drawn(train=5).digest()
    monkeypatch.setattr("segbench.data.synthetic.GENERATOR_VERSION", GENERATOR_VERSION + 1)
    assert drawn(train=5).digest() != digest


def test_too_small_a_size_is_a_setting_error() -> None:
    with pytest.raises(SettingError, match=r"found 20x80; allowed: 24x32 or larger"):
        drawn(size="20x80")
