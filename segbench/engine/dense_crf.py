"""The dense CRF: every pixel is pulled towards the classes of its neighbours, most of those that are like it in colour.

Krähenbühl & Koltun, arXiv:1210.5644: a fully connected model, inferred by mean field. Chen et al., arXiv:1412.7062,
put it behind DeepLab. With p a pixel's place, I its RGB colour (0 to 255) and Q its class probabilities:

    k1(i, j) = exp(-|pi - pj|² / 2 bilateral_xy_std_px² - |Ii - Ij|² / 2 bilateral_rgb_std²)
    k2(i, j) = exp(-|pi - pj|² / 2 gaussian_xy_std_px²)
    Qi = softmax(logits_i + bilateral_weight * sum_j k1(i, j) Qj / sum_j k1(i, j)
                          + gaussian_weight * sum_j k2(i, j) Qj / sum_j k2(i, j))

is one iteration, from Q = softmax(logits). The unary energy is -log softmax(logits): the negated logits, up to a
constant of the pixel that the softmax removes. Compatibility is Potts: a pixel is rewarded for the mass of its own
class, which with normalised kernels is the same as being charged for that of all others. Normalisation is "after": a
filtered map is divided, where it is read, by the filtered map of ones, so a message is a weighted mean in corners as in
the middle. DeepLab's release does this; the library's default, dividing by the root at both ends, gives other results
with the same weights. Colours enter by their distance alone: the order of the channels is free.

pydensecrf (the extra `segbench[crf]`) holds the authors' code. Its filter is a permutohedral lattice (Adams et al.,
2010), which approximates both kernels; the sums include the pixel itself, which the paper's leave out.

The defaults are DeepLab-LargeFOV's, as others copied them from the model's page. The SegNet benchmark
(arXiv:1511.00561, section 4) searched its own on a part of the training set and did not publish them: its denseCRF
rows can be approached, not repeated.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import Field, PositiveInt

from segbench.errors import ModelError, SegbenchError, SettingError
from segbench.spec import Spec
from segbench.workers import interrupts_later, processors, worker_processes

MOST_PROCESSES = 16
"""More would wait for the network, and each takes up to half a gigabyte (360x480, 37 classes)."""

# The library computes in 32 bits: weights beyond these end in values that are no numbers.
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
# The lattice keeps places, counted in deviations, in 16 bits, and a tiny deviation makes it write outside its memory.
# From one pixel up, sides of 5000 pixels fit.
Deviation = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class DenseCrf(Spec):
    """Mean-field inference after the network. Deviations of places are in pixels, of colours in steps of 0 to 255."""

    name: Literal["dense-crf"]
    bilateral_weight: Weight = 4.0
    bilateral_xy_std_px: Deviation = 121.0
    bilateral_rgb_std: Deviation = 5.0
    gaussian_weight: Weight = 3.0
    gaussian_xy_std_px: Deviation = 3.0
    iterations: PositiveInt = 10


def require_library() -> None:
    """Raise `SettingError` where pydensecrf cannot be imported: before hours of training, not after them."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as error:
        raise SettingError(
            f"the dense CRF needs pydensecrf, which cannot be imported ({error}); pip install 'segbench[crf]'"
        ) from error


def marginals(
    image: UInt8[np.ndarray, "h w 3"], logits: Float32[np.ndarray, "k h w"], spec: DenseCrf
) -> Float32[np.ndarray, "k h w"]:
    """Probabilities of the classes at every pixel of an RGB image, from logits of its size.

    Raises `ModelError` for logits that are not finite (one of them would spread to every pixel), and `SettingError`
    without pydensecrf.
    """
    require_library()
    from pydensecrf.densecrf import NORMALIZE_AFTER, DenseCRF2D

    classes, height, width = logits.shape
    crf = DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(_unary(logits).reshape(classes, -1))
    crf.addPairwiseGaussian(sxy=spec.gaussian_xy_std_px, compat=spec.gaussian_weight, normalization=NORMALIZE_AFTER)
    crf.addPairwiseBilateral(
        sxy=spec.bilateral_xy_std_px,
        srgb=spec.bilateral_rgb_std,
        # The library takes neither views nor memory that it may not write to, though it only reads.
        rgbim=np.require(image, requirements=["C", "W"]),
        compat=spec.bilateral_weight,
        normalization=NORMALIZE_AFTER,
    )
    return np.asarray(crf.inference(spec.iterations)).reshape(logits.shape)


def _unary(logits: Float32[np.ndarray, "k h w"]) -> Float32[np.ndarray, "k h w"]:
    """Energies, 0 for the likeliest class: large logits would cost the messages their digits."""
    if not np.isfinite(logits).all():
        label, row, column = np.argwhere(~np.isfinite(logits))[0]
        raise ModelError(
            f"the logit of class {label} at row {row}, column {column} is {logits[label, row, column]}, and the dense "
            "CRF takes finite ones; the training has diverged: lower its learning rate or take an earlier checkpoint"
        )
    return np.subtract(logits.max(0), logits, order="C")


def refine(
    image: UInt8[np.ndarray, "h w 3"], logits: Float32[np.ndarray, "k h w"], spec: DenseCrf
) -> UInt8[np.ndarray, "h w"]:
    """The likeliest class at every pixel (the first one of equals); arguments and errors are those of `marginals`."""
    assert len(logits) <= 255, "label maps hold class ids and K for void in 8 bits"
    return marginals(image, logits, spec).argmax(0).astype(np.uint8)


def refine_all(
    items: Iterable[tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "k h w"]]],
    spec: DenseCrf,
    processes: int | None = None,
) -> Iterator[UInt8[np.ndarray, "h w"]]:
    """`refine` of each (image, logits), in order. By default as many processes as there are processors, at most 16;
    1 works in this process.

    An item is taken from `items` when a process will need it, so that no more than twice `processes` are in memory.
    Raises what `refine` raises, with the number of the image, and `SegbenchError` when a process is killed.
    """
    require_library()
    processes = processes or min(processors(), MOST_PROCESSES)
    results = _in_this_process(items, spec) if processes == 1 else _in_processes(items, spec, processes)
    yield from results


def _in_this_process(items: Iterable[tuple[np.ndarray, np.ndarray]], spec: DenseCrf) -> Iterator[np.ndarray]:
    for number, (image, logits) in enumerate(items, 1):
        with _numbered(number):
            labels = refine(image, logits, spec)
        yield labels


def _in_processes(
    items: Iterable[tuple[np.ndarray, np.ndarray]], spec: DenseCrf, processes: int
) -> Iterator[np.ndarray]:
    # Not threads: the library holds Python's lock. Not fork: this process may hold CUDA, which does not survive it.
    pool = worker_processes(processes, "spawn")
    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
    try:
        for number, (image, logits) in enumerate(items, 1):
            with _numbered(number), interrupts_later():
                waiting.append((number, pool.submit(refine, image, logits, spec)))
            if len(waiting) == 2 * processes:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:  # also when the reader stops early, or Ctrl-C: images that have begun are waited for
        pool.shutdown(cancel_futures=True)


def _finished(number: int, future: Future[np.ndarray]) -> np.ndarray:
    with _numbered(number):
        return future.result()


@contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Say of which image an error speaks."""
    try:
        yield
    except BrokenProcessPool as error:
        raise SegbenchError(
            f"image {number}: a process of the dense CRF ended too early; most often the machine ran out of memory, or "
            'the program that called this is not a file with `if __name__ == "__main__":` around its own lines'
        ) from error
    except SegbenchError as error:
        raise type(error)(f"image {number}: {error}") from error
