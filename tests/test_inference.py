"""From a trained network to label maps: the largest logit, samples, a dense CRF; and what runs share by it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from test_pipeline import Command, segbench  # noqa: F401
from torch import Tensor, nn

from segbench.data.batches import Frames
from segbench.data.synthetic import Synthetic
from segbench.engine import counting
from segbench.engine.evaluate import evaluate, write_uncertainty
from segbench.engine.inference import PLAIN, MonteCarlo, Plain
from segbench.engine.monte_carlo import SAMPLES_AT_ONCE, dropping, drops, sample
from segbench.engine.predict import PREDICT_BATCH, Maps, Predicted, largest, predict
from segbench.engine.train import Step
from segbench.errors import ModelError, SettingError
from segbench.models.build import build
from segbench.models.input import Input
from segbench.pipeline import Finished, Started, execute
from segbench.preparation import prepare
from segbench.scoring.count import count
from segbench.scoring.counts import Counts
from segbench.scoring.spec import BoundarySpec, ScoreSpec
from segbench.store.files import Results, Work, record_folders
from segbench.store.record import read_record
from segbench.suite.load import load
from segbench.suite.plan import resolve_keys

CPU = torch.device("cpu")


class Noisy(nn.Module):
    """A network of one layer that drops: 3 classes, whose logits are the dropped channels."""

    input = Input(scale=1 / 255)

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(p)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.norm(images) * 4)


@pytest.fixture
def frames() -> Frames:
    return Frames(Synthetic("test", size=(24, 32), test=6))


@pytest.mark.parametrize("samples", [2, SAMPLES_AT_ONCE, 11])
def test_samples_are_the_mean_and_variance_of_separate_passes(samples: int) -> None:
    torch.manual_seed(1)
    model, image = Noisy(), torch.rand(1, 3, 5, 7)
    found = sample(model, image, samples, seed=9)
    torch.manual_seed(9)
    passes: list[np.ndarray] = []
    model.eval()
    model.drop.train()
    for first in range(0, samples, SAMPLES_AT_ONCE):
        logits = model(image.expand(min(SAMPLES_AT_ONCE, samples - first), -1, -1, -1)).detach()
        passes += [p.numpy().astype(np.float64) for p in torch.softmax(logits, 1)]
    assert len(passes) == samples
    np.testing.assert_allclose(found.probabilities, np.mean(passes, 0), atol=1e-6)
    np.testing.assert_allclose(found.uncertainty, np.var(passes, 0).mean(0), atol=1e-6)
    assert found.uncertainty.max() > 0.01


def test_sampling_leaves_generators_modes_and_statistics_alone() -> None:
    model, image = Noisy().train(), torch.rand(1, 3, 5, 7)
    before, mean = torch.get_rng_state(), model.norm.running_mean.clone()
    first, second = (sample(model, image, 3, seed=2) for _ in range(2))
    assert torch.equal(first.probabilities, second.probabilities)
    assert not torch.equal(first.probabilities, sample(model, image, 3, seed=3).probabilities)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.norm.running_mean, mean)
    assert not any(module.training for module in model.modules())
    with dropping(model):
        assert [type(m) for m in model.modules() if m.training] == [nn.Dropout]


def test_what_drops() -> None:
    assert drops(Noisy())
    assert not drops(Noisy(p=0))
    assert not drops(build("segnet-basic", 2, {"width": 1 / 8}))


class Image(NamedTuple):
    name: str
    truth: np.ndarray
    labels: np.ndarray
    uncertainty: np.ndarray | None


def singly(model: nn.Module, frames: Frames, inference: Any = PLAIN) -> list[Image]:
    """What `predict` gives, an image at a time."""
    found = []
    for batch in predict(model, frames, CPU, inference):
        unsure = batch.uncertainty.numpy() if batch.uncertainty is not None else [None] * len(batch.names)
        found += map(Image, batch.names, batch.truth.numpy(), batch.labels.numpy(), unsure)
    return found


def test_without_dropout_samples_are_the_plain_prediction(frames: Frames) -> None:
    model = build("segnet-basic", 11, {"width": 1 / 8})
    plain = singly(model, frames)
    sampled = singly(model, frames, MonteCarlo(name="monte-carlo", samples=3))
    assert [p.name for p in plain] == [p.name for p in sampled] == frames.names
    for one, other in zip(plain, sampled, strict=True):
        assert np.array_equal(one.truth, other.truth)
        assert (one.labels == other.labels).mean() > 0.999  # ties by the last float digit
        assert one.uncertainty is None and other.uncertainty is not None and other.uncertainty.max() < 1e-6


def test_an_images_masks_do_not_depend_on_the_others(frames: Frames) -> None:
    spec = MonteCarlo(name="monte-carlo", samples=5)
    whole = singly(Noisy(), frames, spec)
    few = singly(Noisy(), Frames(Synthetic("test", size=(24, 32), test=2)), spec)
    for one, other in zip(whole, few, strict=False):
        assert np.array_equal(one.labels, other.labels)
        assert np.array_equal(one.uncertainty, other.uncertainty)  # type: ignore[arg-type]


def result(steps: Any) -> Any:
    """What a generator returns."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize("inference", [Plain(), MonteCarlo(name="monte-carlo", samples=2)])
def test_between_images_the_caller_is_not_in_inference_mode(inference: Any, frames: Frames) -> None:
    for _ in predict(Noisy(), frames, CPU, inference):
        assert not torch.is_inference_mode_enabled()


def test_each_image_draws_its_own_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def spied(model: nn.Module, image: Tensor, samples: int, seed: int) -> Any:
        seeds.append(seed)
        return sample(model, image, samples, seed)

    monkeypatch.setattr("segbench.engine.predict.sample", spied)
    list(
        predict(
            Noisy(), Frames(Synthetic("test", size=(24, 32), test=3)), CPU, MonteCarlo(name="monte-carlo", samples=2)
        )
    )
    assert len(set(seeds)) == 3


def test_uncertainty_is_kept_beside_the_maps(frames: Frames, tmp_path: Path) -> None:
    steps = evaluate(Noisy(), frames, 11, ScoreSpec(), CPU, tmp_path, MonteCarlo(name="monte-carlo", samples=4))
    found, predictions = result(steps), singly(Noisy(), frames, MonteCarlo(name="monte-carlo", samples=4))
    assert found.uncertainty == pytest.approx(np.mean([p.uncertainty for p in predictions]), rel=1e-6)
    assert set(found.maps) == set(found.uncertainty_maps) and len(found.maps) == 4
    by_name = {p.name: p for p in predictions}
    for name, path in found.uncertainty_maps.items():
        image = np.asarray(Picture.open(tmp_path / path))
        unsure = by_name[name].uncertainty
        assert unsure is not None
        np.testing.assert_allclose(image / 65535 * 0.25, unsure, atol=0.25 / 65535)
        assert np.array_equal(np.asarray(Picture.open(tmp_path / found.maps[name])), by_name[name].labels)
    assert Counts.load(tmp_path / "counts.npz").names == tuple(frames.names)


def test_the_largest_variance_of_a_probability_is_white(tmp_path: Path) -> None:
    write_uncertainty(tmp_path / "u.png", np.array([[0.0, 0.125, 0.25]], np.float32))
    assert np.asarray(Picture.open(tmp_path / "u.png")).tolist() == [[0, 32768, 65535]]


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_the_largest_logit_is_argmax_and_the_first_of_equals(channels: int) -> None:
    logits = torch.randint(-3, 3, (2, channels, 9, 11)).float()  # full of equals
    assert torch.equal(largest(logits), logits.argmax(1))
    assert largest(logits.bfloat16()).dtype == torch.uint8


# Counting beside the network

EVERYTHING = ScoreSpec(
    boundary=BoundarySpec(rules=("bsds", "distance"), tolerances=("1px", "5%"), void=("script", "band"), iou=("2px",))
)
WAYS = [PLAIN, MonteCarlo(name="monte-carlo", samples=2)]


@pytest.fixture(params=["on the host", "as tensors"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where label maps are counted; those of a GPU are counted as tensors."""
    monkeypatch.setattr(counting, "counted_there", lambda labels: request.param == "as tensors")


@pytest.mark.parametrize("inference", WAYS)
@pytest.mark.parametrize("spec", [ScoreSpec(boundary=None), ScoreSpec(), EVERYTHING])
def test_counts_are_those_of_each_image_alone(
    inference: Any, spec: ScoreSpec, place: None, frames: Frames, tmp_path: Path
) -> None:
    model = Noisy()
    scored = list(evaluate(model, frames, 11, spec, CPU, tmp_path, inference))
    assert [(s.name, s.number, s.total) for s in scored] == [(n, i, 6) for i, n in enumerate(frames.names, 1)]
    found, expected = Counts.load(tmp_path / "counts.npz"), singly(model, frames, inference)
    assert found.names == tuple(frames.names) and found.sequences == ()
    for i, image in enumerate(expected):
        counts = count(image.truth, image.labels, 11, spec)
        assert np.array_equal(found.confusion[i], counts.confusion)
        for stored, own in ((found.boundary, counts.boundary), (found.bands, counts.bands)):
            assert list(stored) == list(own)
            assert all(np.array_equal(stored[key][i], own[key]) for key in own)
    assert found.confusion.sum() == 6 * 24 * 32
    assert all(counts.any() for counts in (*found.boundary.values(), *found.bands.values()))


def test_the_sequences_of_images_are_stored(frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(frames.dataset), "sequence_of", lambda self, name: f"of {name}")
    result(evaluate(Noisy(), frames, 11, ScoreSpec(), CPU, tmp_path))
    assert Counts.load(tmp_path / "counts.npz").sequences == tuple(f"of {name}" for name in frames.names)


def batches(taken: list[int], size: int = PREDICT_BATCH) -> Iterator[Predicted]:
    """Batches without end; `taken` tells how many were."""
    while True:
        taken.append(1)
        maps = torch.zeros((size, 4, 5), dtype=torch.uint8)
        yield Predicted([f"{len(taken)}.{i}" for i in range(size)], maps, *Maps(maps))


def threads() -> int:
    return sum(thread.name.startswith("counting") for thread in threading.enumerate())


def test_few_batches_are_in_flight_and_none_when_the_reader_stops(place: None) -> None:
    taken: list[int] = []
    counted = counting.count_all(batches(taken), 3, ScoreSpec())
    for _ in range(2 * PREDICT_BATCH):
        next(counted)
    assert threads() > 0
    assert len(taken) == counting.BATCHES_IN_FLIGHT + 1, "two were read whole"
    counted.close()  # type: ignore[attr-defined]
    assert threads() == 0


def test_what_fails_in_a_thread_fails_the_evaluation(place: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a broken counter")

    monkeypatch.setattr(counting, "count_canonical", broken)
    monkeypatch.setattr(counting, "boundary_counts_of", broken)
    with pytest.raises(ValueError, match="a broken counter"):
        next(counting.count_all(batches([]), 3, ScoreSpec()))
    assert threads() == 0


def test_an_interrupted_network_ends_the_threads(place: None) -> None:
    def interrupted() -> Iterator[Predicted]:
        yield next(batches([]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(counting.count_all(interrupted(), 3, ScoreSpec()))
    assert threads() == 0


def test_the_counts_of_a_batch_add_up(place: None, frames: Frames) -> None:
    (first, *_) = predict(Noisy(), frames, CPU)
    pairs = zip(first.truth.numpy(), first.labels.numpy(), strict=True)
    alone = sum(count(truth, labels, 11, ScoreSpec(boundary=None)).confusion for truth, labels in pairs)
    assert np.array_equal(counting.confusion_sum(first, 11), alone)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_counts_what_the_host_counts(frames: Frames, tmp_path: Path) -> None:
    model, gpu = Noisy(), torch.device("cuda:0")
    result(evaluate(model, frames, 11, EVERYTHING, gpu, tmp_path))
    found = Counts.load(tmp_path / "counts.npz")
    images = [(t, p) for b in predict(model, frames, gpu) for t, p in zip(b.truth, b.labels.cpu(), strict=True)]
    for i, (truth, labels) in enumerate(images):
        counts = count(truth.numpy(), labels.numpy(), 11, EVERYTHING)
        assert np.array_equal(found.confusion[i], counts.confusion)
        for stored, own in ((found.boundary, counts.boundary), (found.bands, counts.bands)):
            assert all(np.array_equal(stored[key][i], own[key]) for key in own)


# In suites

SUITE = """\
name: ways
data: {name: synthetic, size: 24x32, options: {train: 8, val: 4, test: 5}}
models:
  - {name: segnet-basic, options: {width: 0.125, dropout: 0.5, bias: true}}
  - {name: bayesian-segnet-basic, options: {width: 0.125}}
  - name: segnet-basic
    label: three
    options: {width: 0.125, dropout: 0.5, bias: true}
    inference: {name: monte-carlo, samples: 3}
recipe: {optimizer: {name: sgd, lr: 0.1}, batch_size: 4, iterations: 3}
score: {at: [last]}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "ways.yaml"
    path.write_text(SUITE)
    return path


def test_names_say_how_they_predict_and_the_suite_may_say_otherwise(suite: Path) -> None:
    assert [run.inference for run in load(suite)[1]] == [
        Plain(),
        MonteCarlo(name="monte-carlo", samples=8),
        MonteCarlo(name="monte-carlo", samples=3),
    ]
    assert load(suite, ["models[1].inference=plain"])[1][1].inference == Plain()
    (run,) = load(suite, ["models=[deeplab-largefov-densecrf]"])[1]
    assert run.inference.model_dump()["name"] == "dense-crf" and run.inference.bilateral_xy_std_px == 121  # type: ignore[union-attr]


def test_runs_that_predict_otherwise_share_the_training_alone(suite: Path) -> None:
    keys = [resolve_keys(run, {"train": "t", "test": "e"}) for run in load(suite)[1]]
    assert len({k.train for k in keys}) == 1
    assert len({k.evaluate["3"] for k in keys}) == 3
    assert len({k.record for k in keys}) == len({k.group for k in keys}) == 3


def test_a_network_is_trained_once_for_all_its_ways(suite: Path, tmp_path: Path) -> None:
    prepared = prepare(load(suite)[1], CPU)
    events = list(execute(prepared, Work(tmp_path / "w"), Results(tmp_path / "r")))
    kinds = [type(e) for e in events if isinstance(e, Started | Step | Finished)]
    assert kinds == [Started, Step, Step, Step, Finished, Started, Finished, Started, Finished]
    records = [e.record for e in events if isinstance(e, Finished)]
    assert [r.status for r in records] == ["done"] * 3, [r.reason for r in records]
    assert [len(r.evaluations[0].uncertainty_maps) for r in records] == [0, 4, 4]
    assert [r.evaluations[0].uncertainty is None for r in records] == [True, False, False]
    for folder in record_folders(tmp_path / "r"):
        evaluation = read_record(folder).evaluations[0]
        for path in (*evaluation.maps.values(), *evaluation.uncertainty_maps.values()):
            assert (folder / path).is_file()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("models[0].inference=monte-carl", ["inference", "monte-carl", "did you mean"]),
        ("models[0].inference={name: monte-carlo}", ["samples is missing"]),
        ("models[0].inference={samples: 3}", ["inference.name is missing"]),
        ("models[0].inference={name: monte-carlo, smples: 3}", ["smples is not a setting of monte-carlo", '"samples"']),
        ("models[0].inference={name: monte-carlo, samples: 1}", ["samples", "greater than or equal to 2"]),
        ("models[0].inference={name: dense-crf, iteration: 3}", ["iteration is not a setting of", 'mean "iterations"']),
    ],
)
def test_wrong_inference_is_one_line(suite: Path, setting: str, words: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        load(suite, [setting])
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_samples_of_a_network_without_dropout_are_refused_before_the_start(suite: Path) -> None:
    _, runs = load(suite, ["models[1].options.dropout=0"])
    with pytest.raises(ModelError, match=r"ways\.yaml:5.*no dropout.*inference: plain"):
        prepare(runs, CPU)


def test_the_dense_crf_goes_the_whole_way(tmp_path: Path, segbench: Command, capsys: Any) -> None:  # noqa: F811
    pytest.importorskip("pydensecrf")
    path = tmp_path / "crf.yaml"
    path.write_text(
        SUITE.split("models:")[0].replace("ways", "crf")
        + "models:\n  - {name: deeplab-largefov, options: {width: 0.0625}}\n  - name: deeplab-largefov-densecrf\n"
        + "    options: {width: 0.0625}\n    inference: {name: dense-crf, iterations: 2}\n"
        + "recipe: {optimizer: {name: sgd, lr: 0.1}, batch_size: 4, iterations: 3}\nscore: {at: [last]}\n"
    )
    assert segbench("run", path) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "DeepLab-LargeFOV-denseCRF" in out and "dense CRF" in out, out
    records = [read_record(folder) for folder in record_folders(Path("results"))]
    assert records[0].keys["train"] == records[1].keys["train"]
    assert records[0].training == records[1].training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_that_diverged_has_the_labels_of_argmax(dtype: torch.dtype) -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1.0])
    logits = values[torch.randint(0, 5, (2, 6, 9, 11), generator=torch.Generator().manual_seed(0))].to(dtype)
    assert logits.isnan().any(1).any()
    assert torch.equal(largest(logits), logits.argmax(1).to(torch.uint8))
