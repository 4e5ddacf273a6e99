"""Augmentation: what each setting does, to whom, how often, and that nothing but an image's own seed decides it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segbench.data.batches import Batch
from segbench.engine.augment import PADDING, augmented, image_seeds
from segbench.engine.recipe import Augmentation

VOID = 200
HEIGHT, WIDTH = 60, 90
EVERYTHING = Augmentation(
    flip=0.5, scale=(0.5, 2.0), crop="50x70", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
)


def placed(count: int = 1, axis: int = 2) -> Batch:
    """Every pixel says in red which column it is and in green which row; its label is one of the two."""
    columns = torch.arange(WIDTH, dtype=torch.uint8).expand(HEIGHT, WIDTH)
    rows = torch.arange(HEIGHT, dtype=torch.uint8)[:, None].expand(HEIGHT, WIDTH)
    image = torch.stack([columns, rows, torch.full_like(columns, 255)])
    labels = columns if axis == 2 else rows
    return Batch(image.expand(count, -1, -1, -1).clone(), labels.expand(count, -1, -1).clone())


def coloured(count: int = 1, size: tuple[int, int] = (12, 16)) -> Batch:
    pixels = np.random.RandomState(3)
    images = pixels.randint(40, 200, (1, 3, *size), np.uint8).repeat(count, 0)
    return Batch(torch.from_numpy(images), torch.from_numpy(pixels.randint(0, 12, (count, *size), np.uint8)))


def of(image: Tensor, count: int = 1) -> Batch:
    """The same small image many times, unlabelled."""
    images = image.to(torch.uint8).expand(count, 3, *image.shape[-2:]).clone()
    return Batch(images, torch.zeros((count, *image.shape[-2:]), dtype=torch.uint8))


def run(batch: Batch, seed: int = 0, **settings: Any) -> Batch:
    return augmented(batch, Augmentation(**settings), image_seeds(seed, range(len(batch.images))), VOID)


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


# What each setting does


def test_nothing_set_is_the_very_same_batch() -> None:
    batch = placed()
    assert augmented(batch, Augmentation(), [1], VOID) is batch


def test_a_flip_mirrors_image_and_labels_left_to_right() -> None:
    batch = coloured(3)
    assert equal(run(batch, flip=1.0), Batch(batch.images.flip(3), batch.labels.flip(2)))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_as_many_are_flipped_as_asked_for(share: float) -> None:
    number = 600
    batch = of(torch.tensor([[[10, 20]]]).expand(3, 1, 2), number)
    flipped = (run(batch, flip=share).images[:, 0, 0, 0] == 20).double().mean()
    assert abs(flipped - share) < 4 * (share * (1 - share) / number) ** 0.5


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"flip": 0.5},
        {"crop": "20x30"},
        {"crop": "80x120"},
        {"crop": "20x120", "flip": 0.5},
        {"scale": (0.5, 0.95), "crop": "30x45"},
        {"scale": (1.05, 2.0), "crop": "60x90"},
        {"scale": (0.6, 1.7), "crop": "70x70", "flip": 0.5},
        {"scale": (1.37, 1.37), "crop": "130x130"},
    ],
    ids=str,
)
def test_labels_stay_with_their_pixels(settings: dict[str, Any], axis: int) -> None:
    given = placed(24, axis)
    found = run(given, **settings)
    assert found.images.dtype == found.labels.dtype == torch.uint8
    assert found.labels.shape == (24, *Augmentation(**settings).crop) if "crop" in settings else given.labels.shape
    known = found.labels != VOID
    assert set(found.labels.unique().tolist()) <= {*given.labels.unique().tolist(), VOID}
    # Where the frame ends there is no more to average, so a ramp is flatter there.
    middle = known & (found.labels > 3) & (found.labels < (WIDTH if axis == 2 else HEIGHT) - 4)
    apart = found.images[:, 2 - axis][middle].double() - found.labels[middle].double()
    assert apart.abs().max() <= (1.0 if "scale" in settings else 0.0)
    assert abs(apart.mean()) < 0.03  # labels of upper left corners are half a pixel away
    # What is not in the frame is void and grey, and nothing else is.
    assert (found.images.permute(0, 2, 3, 1)[~known] == PADDING).all()
    assert (found.images[:, 2][known] == 255).all()


def test_factors_are_uniform_and_one_for_both_sides() -> None:
    found = run(of(torch.full((3, 20, 30), 9), 300), scale=(0.5, 1.5), crop="60x60").labels != VOID
    heights, widths = found.any(2).sum(1).double() / 20, found.any(1).sum(1).double() / 30
    assert (found.sum((1, 2)) == found.any(2).sum(1) * found.any(1).sum(1)).all()  # a rectangle
    assert ((heights - widths).abs() <= 0.5 / 20 + 0.5 / 30).all()
    assert widths.min() >= 0.5 - 0.5 / 30 and widths.max() <= 1.5 + 0.5 / 30
    quarters = torch.histc(widths, 4, 0.5, 1.5)
    assert (abs(quarters - 75) < 4 * (300 * 0.25 * 0.75) ** 0.5).all()


def test_a_frame_never_vanishes() -> None:
    assert (run(of(torch.full((3, 2, 300), 9), 4), scale=(0.1, 0.1), crop="1x30").labels != VOID).all()


def test_a_smaller_image_averages_what_it_leaves_out() -> None:
    stripes = of((torch.arange(12) % 2 * 255).expand(3, 9, 12))
    # Weights 1 2 3 2 1 ninths, so 5/9 or 4/9 of white inside; a single pixel each would be black or white.
    found = run(stripes, scale=(1 / 3, 1 / 3), crop="3x4").images
    assert found.min() > 100 and found.max() < 156


def test_every_place_of_a_crop_is_as_likely() -> None:
    columns = torch.arange(4).expand(3, 1, 4)
    chosen = run(of(columns, 400), crop="1x1").images[:, 0, 0, 0]
    rows = run(of(columns.transpose(1, 2), 400), crop="1x1").images[:, 0, 0, 0]
    # A smaller frame lies anywhere in a larger crop.
    smaller = run(of(torch.zeros(3, 1, 1), 400), crop="1x4").labels[:, 0].long()
    for places in (chosen, rows, (smaller != VOID).long().argmax(1)):
        assert (abs(torch.bincount(places, minlength=4) - 100) < 4 * (400 * 0.25 * 0.75) ** 0.5).all()
    assert ((smaller != VOID).sum(1) == 1).all()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_setting_changes_the_image_alone(name: str) -> None:
    given = coloured(4)
    found = run(given, **{name: 0.5})
    assert torch.equal(found.labels, given.labels)
    for image, before in zip(found.images, given.images, strict=True):
        assert (image != before).double().mean() > 0.3
    grey = of(torch.full((3, 2, 2), 90), 40)
    changed = (run(grey, **{name: 0.5}).images.int() - 90).abs().max() > 1
    assert bool(changed) is (name == "brightness")  # the others leave one grey as it is


def test_factors_of_colour_reach_from_end_to_end() -> None:
    found = run(of(torch.full((3, 1, 1), 100), 300), brightness=0.4).images.double() / 100
    assert (found == found[:, :1]).all()
    assert 0.59 <= found.min() < 0.62 and 1.38 < found.max() <= 1.4 and abs(found.mean() - 1) < 0.06


def test_colour_comes_before_padding() -> None:
    found = run(of(torch.full((3, 2, 2), 100), 20), brightness=0.9, contrast=0.9, crop="4x4")
    assert (found.images.permute(0, 2, 3, 1)[found.labels == VOID] == PADDING).all()


# What decides it


def test_an_images_own_seed_decides_and_nothing_else() -> None:
    batch, seeds = coloured(6, (40, 60)), image_seeds(5, range(6))
    found = augmented(batch, EVERYTHING, seeds, VOID)
    assert not torch.equal(found.images[0], found.images[1])
    torch.manual_seed(99)
    for order in ([3], [5, 0, 2], [1, 1]):
        some = Batch(batch.images[order], batch.labels[order])
        alone = augmented(some, EVERYTHING, [seeds[index] for index in order], VOID)
        assert equal(alone, Batch(found.images[order], found.labels[order]))
    other = augmented(batch, EVERYTHING, image_seeds(6, range(6)), VOID)
    assert not any(torch.equal(*pair) for pair in zip(other.images, found.images, strict=True))


def test_the_caller_keeps_the_batch_and_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.manual_seed would begin the generators of every GPU anew, and dropout with them.
    monkeypatch.setattr(torch, "manual_seed", lambda _: pytest.fail("seeded every device"))
    given, batch, before = coloured(3), coloured(3), torch.get_rng_state()
    augmented(batch, EVERYTHING, [1, 2, 3], VOID)
    assert equal(batch, given) and torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="zip"):
        augmented(batch, EVERYTHING, [1, 2], VOID)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_follow_from_the_place_in_the_stream() -> None:
    seeds = image_seeds(0, range(10))
    assert image_seeds(0, range(4, 7)) == seeds[4:7] and image_seeds(0, [8, 1]) == [seeds[8], seeds[1]]
    # Frozen: a training that was interrupted goes on with the same draws under a later version.
    assert seeds[:3] == [2968811710, 3964924996, 3141116543] and image_seeds(2**40, [10**9]) == [2323836574]
    many = np.array([image_seeds(seed, range(3000)) for seed in (0, 1)])
    assert len(np.unique(many)) == many.size and many.min() >= 0 and many.max() < 2**32
    bits = many[..., None] >> np.arange(32) & 1
    assert (abs(bits.mean((0, 1)) - 0.5) < 4 * 0.5 / many.size**0.5).all()


def test_neighbours_in_the_stream_draw_alike_only_by_chance() -> None:
    found = run(of(torch.full((3, 1, 1), 100), 500), brightness=0.9).images[:, 0, 0, 0].double()
    other = run(of(torch.full((3, 1, 1), 100), 500), seed=1, brightness=0.9).images[:, 0, 0, 0].double()
    for pair in ((found[1:], found[:-1]), (found, other)):
        assert abs(torch.corrcoef(torch.stack(pair))[0, 1]) < 4 / 499**0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_draws_the_same_and_keeps_its_generator() -> None:
    batch, seeds = placed(6), image_seeds(0, range(6))
    there = Batch(*(part.cuda() for part in batch))
    torch.cuda.manual_seed(7)
    before = torch.cuda.get_rng_state()
    for settings in (Augmentation(flip=0.5, scale=(0.5, 2.0), crop="50x70"), EVERYTHING):
        expected, found = (augmented(some, settings, seeds, VOID) for some in (batch, there))
        assert found.images.is_cuda and found.labels.is_cuda
        assert torch.equal(found.labels.cpu(), expected.labels)
        if settings != EVERYTHING:  # the steps of colour multiply what the resizing rounds otherwise
            assert (found.images.cpu().int() - expected.images.int()).abs().max() <= 1
    assert torch.equal(torch.cuda.get_rng_state(), before)
