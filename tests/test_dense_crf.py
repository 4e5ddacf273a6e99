"""Mean field against kernels written out in full, what must change nothing, and processes that come and go.

The library's filter is approximate. Over the scene below its probabilities are 0.002 from the exact ones on average,
and over 0.006 from those of any other reading of the model: the tolerance between tells them apart.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float, Float32, UInt8
from pydantic import ValidationError

from segbench.engine.dense_crf import DenseCrf, marginals, refine, refine_all, require_library
from segbench.errors import ModelError, SegbenchError, SettingError

pytest.importorskip("pydensecrf.densecrf")

TOLERANCE = 0.003
"""Of the mean absolute difference of probabilities."""
ONCE = DenseCrf(name="dense-crf", bilateral_xy_std_px=4, bilateral_rgb_std=15, iterations=1)
Item = tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "k h w"]]


def spec(**settings: float) -> DenseCrf:
    return DenseCrf(name="dense-crf", **settings)


def scene(seed: int = 0, height: int = 16, width: int = 24, classes: int = 4, noise: float = 5) -> Item:
    """Slanted stripes of different colours under noise, and logits that lean to each stripe's class."""
    rng = np.random.RandomState(seed)
    rows, columns = np.mgrid[:height, :width]
    stripes = (columns + rows // 2) * classes // (width + height // 2)
    colours = rng.randint(60, 200, (classes, 3))
    image = np.clip(colours[stripes] + rng.normal(0, noise, (height, width, 3)), 0, 255).astype(np.uint8)
    logits = (stripes == np.arange(classes)[:, None, None]) + rng.normal(0, 1, (classes, height, width))
    return image, logits.astype(np.float32)


def softmax(x: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "k n"]:
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


NORMALISED = {
    "after": lambda kernel: kernel / kernel.sum(1)[:, None],
    "before": lambda kernel: kernel / kernel.sum(1)[None],
    "symmetric": lambda kernel: kernel / np.sqrt(kernel.sum(1)[:, None] * kernel.sum(1)),
    "none": lambda kernel: kernel / kernel.sum(1).mean(),
}


def exact(
    image: np.ndarray, logits: np.ndarray, spec: DenseCrf, normalised: str = "after", halved: bool = True
) -> Float[np.ndarray, "k h w"]:
    """Mean field with each kernel as a matrix of every pixel with every pixel, in 64 bits."""

    def kernel(features: np.ndarray) -> np.ndarray:
        squares = ((features[:, None] - features) ** 2).sum(-1)
        return NORMALISED[normalised](np.exp(-squares / 2 if halved else -squares))

    classes, height, width = logits.shape
    places = np.array([(y, x) for y in range(height) for x in range(width)], float)
    colours = image.reshape(-1, 3).astype(float)
    alike = np.hstack([places / spec.bilateral_xy_std_px, colours / spec.bilateral_rgb_std])
    pull = spec.bilateral_weight * kernel(alike) + spec.gaussian_weight * kernel(places / spec.gaussian_xy_std_px)
    scores = logits.reshape(classes, -1).astype(float)
    found = softmax(scores)
    for _ in range(spec.iterations):
        found = softmax(scores + found @ pull.T)
    return found.reshape(logits.shape)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 4, 5])
def test_mean_field_is_that_of_the_kernels_in_full(classes: int, seed: int, iterations: int) -> None:
    image, logits = scene(seed, classes=classes)
    asked = ONCE.model_copy(update={"iterations": iterations})
    assert difference(marginals(image, logits, asked), exact(image, logits, asked)) < TOLERANCE


def test_ten_iterations_of_the_paper_end_in_the_same_labels() -> None:
    image, logits = scene(height=24, width=32, noise=2)
    assert np.array_equal(refine(image, logits, spec()), exact(image, logits, spec()).argmax(0))
    assert (logits.argmax(0) != refine(image, logits, spec())).mean() > 0.2


MISTAKES = {
    "weights exchanged": {"bilateral_weight": 3.0, "gaussian_weight": 4.0},
    "deviations of place and colour exchanged": {"bilateral_xy_std_px": 15.0, "bilateral_rgb_std": 4.0},
    "deviations of the kernels exchanged": {"bilateral_xy_std_px": 3.0, "gaussian_xy_std_px": 4.0},
    "places measured as colours": {"bilateral_xy_std_px": 15.0},
    "colours measured as places": {"bilateral_rgb_std": 4.0},
    "no bilateral kernel": {"bilateral_weight": 0.0},
    "no Gaussian kernel": {"gaussian_weight": 0.0},
    "one iteration more": {"iterations": 2},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_setting_would_be_seen(mistake: str) -> None:
    image, logits = scene()
    assert (
        difference(marginals(image, logits, ONCE), exact(image, logits, ONCE.model_copy(update=MISTAKES[mistake])))
        > 2 * TOLERANCE
    )


@pytest.mark.parametrize(
    "other", [{"normalised": "before"}, {"normalised": "symmetric"}, {"normalised": "none"}, {"halved": False}], ids=str
)
def test_a_wrong_convention_would_be_seen(other: dict) -> None:
    image, logits = scene()
    assert difference(marginals(image, logits, ONCE), exact(image, logits, ONCE, **other)) > 2 * TOLERANCE


def test_without_weights_it_is_the_largest_logit() -> None:
    image, logits = scene()
    assert np.array_equal(refine(image, logits, spec(bilateral_weight=0, gaussian_weight=0)), logits.argmax(0))


def test_in_an_image_of_one_colour_only_places_count() -> None:
    _, logits = scene()
    plain = np.full((*logits.shape[1:], 3), 77, np.uint8)
    bilateral = marginals(plain, logits, spec(bilateral_xy_std_px=4, gaussian_weight=0, iterations=1))
    places = marginals(plain, logits, spec(bilateral_weight=0, gaussian_weight=4, gaussian_xy_std_px=4, iterations=1))
    assert difference(bilateral, places) < TOLERANCE


def test_a_strong_pull_over_the_whole_image_elects_one_class() -> None:
    rng = np.random.RandomState(0)
    logits = rng.normal(0, 1, (3, 10, 14)).astype(np.float32)
    logits[2] += 0.5
    image = rng.randint(0, 256, (10, 14, 3)).astype(np.uint8)
    assert (refine(image, logits, spec(gaussian_xy_std_px=1000, gaussian_weight=50)) == 2).all()


def test_relabelling_permutes_the_labels_and_colours_may_come_in_any_order() -> None:
    image, logits = scene()
    labels = refine(image, logits, spec())
    order = np.array([2, 0, 3, 1])
    assert np.array_equal(order[refine(image, logits[order], spec())], labels)
    assert difference(marginals(image[..., ::-1], logits, ONCE), marginals(image, logits, ONCE)) < TOLERANCE


def test_a_constant_added_to_a_pixels_logits_changes_nothing() -> None:
    image, logits = scene()
    raised = logits + np.float32(1000)
    assert np.abs(marginals(image, raised, ONCE) - marginals(image, logits, ONCE)).max() < 1e-3


def test_views_and_memory_that_is_read_only_are_taken_and_left_as_they_are() -> None:
    image, logits = scene()
    labels = refine(image, logits, spec())
    strided = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    last = np.ascontiguousarray(logits.transpose(1, 2, 0)).transpose(2, 0, 1)
    kept = image.copy(), logits.copy()
    for array in (image, logits, strided, last):
        array.flags.writeable = False
    assert np.array_equal(refine(image, logits, spec()), labels)
    assert np.array_equal(refine(strided, last, spec()), labels)
    assert np.array_equal(image, kept[0]) and np.array_equal(logits, kept[1])


@pytest.mark.parametrize(("height", "width", "classes"), [(1, 1, 3), (1, 9, 3), (7, 5, 1), (3, 4, 255)])
def test_any_size_and_up_to_255_classes(height: int, width: int, classes: int) -> None:
    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, (height, width, 3)).astype(np.uint8)
    found = marginals(image, rng.normal(0, 1, (classes, height, width)).astype(np.float32), spec())
    assert np.allclose(found.sum(0), 1, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_with_their_place(value: float) -> None:
    image, logits = scene()
    logits[1, 2, 3] = value
    with pytest.raises(ModelError, match=f"class 1 at row 2, column 3 is {value}.*diverged"):
        refine(image, logits, spec())


@pytest.mark.parametrize(
    "setting",
    [
        {"bilateral_rgb_std": 1e-6},  # such a deviation makes the library write outside its memory
        {"gaussian_xy_std_px": 0},
        {"bilateral_xy_std_px": float("nan")},
        {"bilateral_weight": -1},
        {"gaussian_weight": 1e39},
        {"iterations": 0},
        {"bilateral_std": 3},
    ],
    ids=str,
)
def test_settings_that_the_library_does_not_survive_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        spec(**setting)


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    for call in (require_library, lambda: refine(*scene(), spec()), lambda: next(refine_all([scene()], spec()))):
        with pytest.raises(SettingError, match=r"pip install 'segbench\[crf\]'") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_importing_it_brings_neither_torch_nor_the_library() -> None:
    code = "import sys, segbench.engine.dense_crf; sys.exit('torch' in sys.modules or 'pydensecrf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_processes_change_nothing_keep_the_order_and_hold_few_images() -> None:
    taken, given = 0, 0

    def items() -> Iterator[Item]:
        nonlocal taken
        for seed in range(9):
            taken += 1
            assert taken - given <= 4
            yield scene(seed, height=40 if seed == 0 else 8)  # the first is the slowest

    found = []
    for labels in refine_all(items(), spec(), processes=2):
        found.append(labels)
        given += 1
    expected = [refine(*scene(seed, height=40 if seed == 0 else 8), spec()) for seed in range(9)]
    here = list(refine_all((scene(seed) for seed in range(2)), spec(), processes=1))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(np.array_equal(a, refine(*scene(seed), spec())) for seed, a in enumerate(here))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_names_its_image_and_ends_the_processes(processes: int) -> None:
    image, logits = scene()
    items = [(image, logits), (image, np.full_like(logits, np.nan)), (image, logits)]
    found = refine_all(items, spec(), processes)
    next(found)
    with pytest.raises(ModelError, match=r"^image 2: the logit of class 0 at row 0, column 0 is nan"):
        next(found)
    assert multiprocessing.active_children() == []


def test_a_process_that_is_killed_is_told_in_words() -> None:
    def items() -> Iterator[Item]:
        yield scene()
        yield scene()
        for process in multiprocessing.active_children():
            process.kill()
        while True:
            yield scene()

    with pytest.raises(SegbenchError, match="ended too early; most often the machine ran out of memory"):
        list(refine_all(items(), spec(), processes=2))


SCRIPT = """
import itertools, multiprocessing
import numpy as np
from segbench.engine.dense_crf import DenseCrf, refine_all

if __name__ == "__main__":
    item = np.zeros((30, 40, 3), np.uint8), np.zeros((3, 30, 40), np.float32)
    for number, _ in enumerate(refine_all(itertools.repeat(item), DenseCrf(name="dense-crf"), processes=2)):
        if number == 5:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_leaves_no_processes(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group, as from a terminal; a kill to the parent alone."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, path], start_new_session=True, **pipes) as parent:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)
        _, said = parent.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) == 2 and not any(alive(pid) for pid in children)
    assert parent.returncode == -number
    assert said.count("Traceback") == (number == signal.SIGINT), said
