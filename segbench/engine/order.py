"""Which images each forward pass of a training sees: a function of the recipe, the seed and the pass's number alone,
so that a training that was left goes on without replaying anything. No torch here.

Epoch e shows the images in the order of `permutation(count)` of a generator seeded with (seed, e): each image once.
What becomes of the end of an epoch, where B does not divide the N images, is one of three rules:

- `wrap`: epochs follow each other without a seam, and pass n sees the places n * B to n * B + B of that stream, as
  with Caffe's data layers. A batch may hold an image twice, once of either epoch.
- `keep`: each epoch has ceil(N / B) passes, the last one short. A loss that is divided by the batch's own pixels then
  weighs those of the short batch more.
- `drop`: each epoch has floor(N / B) passes, and leaves out other images than the epoch before.

An update is A = `accumulate` passes, whose epochs do not matter: it may take its last ones from the next epoch, and so
the last update of E epochs may see images of the one after.
"""

import numpy as np

from segbench.engine.recipe import LastBatch, Recipe
from segbench.errors import SettingError


def batch_indices(count: int, batch_size: int, last_batch: LastBatch, seed: int, number: int) -> list[int]:
    """The images of pass `number`, which counts from 0 over the whole training, accumulated passes one by one."""
    assert count > 0 and number >= 0, f"pass {number} over {count} images"
    if last_batch == "wrap":
        return stream(count, seed, number * batch_size, batch_size)
    epoch, place = divmod(number, passes_per_epoch(count, batch_size, last_batch))
    return order(count, seed, epoch)[place * batch_size : (place + 1) * batch_size]


def passes_per_epoch(count: int, batch_size: int, last_batch: LastBatch) -> int:
    """The passes of an epoch under `keep` or `drop`; under `wrap` no pass need begin with one."""
    assert last_batch != "wrap", "epochs have no passes of their own"
    passes = count // batch_size if last_batch == "drop" else -(-count // batch_size)
    assert passes, f"an epoch of {count} images has no batch of {batch_size}"
    return passes


def order(count: int, seed: int, epoch: int) -> list[int]:
    """All images as `epoch`, from 0, shows them."""
    # NumPy's legacy generator is frozen for good and mixes both numbers; torch's keeps 32 bits of a seed.
    shuffled: list[int] = np.random.RandomState((seed, epoch)).permutation(count).tolist()
    return shuffled


def stream(count: int, seed: int, first: int, length: int) -> list[int]:
    """The images at `first` to `first + length` of one epoch after another."""
    start, last = first // count, (first + length - 1) // count
    epochs = [image for epoch in range(start, last + 1) for image in order(count, seed, epoch)]
    return epochs[first - start * count :][:length]


def with_length(recipe: Recipe, count: int) -> Recipe:
    """The recipe with its number of iterations for `count` training images; its `epochs` stand as they were.

    E epochs are ceil(E * N / (B * A)) updates under `wrap`, else ceil(E * passes of an epoch / A).
    Raises `SettingError` where `drop` leaves no batch, and where the length is too short for `validate_every`.
    """
    if recipe.last_batch == "drop" and count < recipe.batch_size:
        raise SettingError(
            f"recipe.last_batch is drop, but the {count} training images are fewer than recipe.batch_size "
            f"({recipe.batch_size}), so every batch would be dropped; lower batch_size, or write wrap or keep"
        )
    if recipe.epochs is None:
        return recipe
    iterations = updates(recipe, recipe.epochs, count)
    if recipe.validate_every and recipe.validate_every > iterations:
        raise SettingError(
            f"recipe.validate_every ({recipe.validate_every}) is more than the {iterations} iterations of "
            f"{recipe.epochs} epochs over {count} images: no checkpoint would ever be selected; lower validate_every"
        )
    if recipe.schedule.warmup >= iterations:
        raise SettingError(
            f"recipe.schedule.warmup ({recipe.schedule.warmup}) is not less than the {iterations} iterations of "
            f"{recipe.epochs} epochs over {count} images: the full rate would never be reached; lower it"
        )
    return recipe.model_copy(update={"iterations": iterations})


def updates(recipe: Recipe, epochs: int, count: int) -> int:
    """How many updates show at least `epochs` epochs."""
    size, passes = recipe.batch_size, recipe.accumulate
    if recipe.last_batch == "wrap":
        return -(-epochs * count // (size * passes))
    return -(-epochs * passes_per_epoch(count, size, recipe.last_batch) // passes)
