"""Batch normalisation by statistics of the training set, against a loop written out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segbench.data import open_dataset
from segbench.data.batches import Frames
from segbench.data.spec import DataSpec
from segbench.engine.batchnorm import use_training_set
from segbench.models.layers import BatchNorm

CPU = torch.device("cpu")
IMAGES, BATCH = 10, 4
BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
"""Every image once, in order; the last batch is filled from the beginning."""


class TwoLayers(nn.Module):
    """The second normalisation sees what the first one makes of the batch, through dropout."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, stride=2), norm(4)
        self.dropout = nn.Dropout(0.5)
        self.conv2, self.norm2 = nn.Conv2d(4, 2, 3, stride=2), norm(2)

    def input(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def forward(self, images: Tensor) -> Tensor:
        features = self.dropout(self.norm1(self.conv1(images)).relu())
        return self.norm2(self.conv2(features))


@pytest.fixture(scope="module")
def frames() -> Frames:
    return Frames(open_dataset(DataSpec(name="synthetic", size=(25, 33), options={"train": IMAGES}), "train"))


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [c] of [n, c, h, w]: sums over n, h and w divided by n h w."""
    count = values.shape[0] * values.shape[2] * values.shape[3]
    mean = values.sum((0, 2, 3)) / count
    return mean, (values - mean.view(-1, 1, 1)).square().sum((0, 2, 3)) / count


def normalised(values: Tensor, mean: Tensor, variance: Tensor, layer: nn.Module) -> Tensor:
    scale = layer.weight.double() / (variance + layer.eps).sqrt()
    return scale.view(-1, 1, 1) * (values - mean.view(-1, 1, 1)) + layer.bias.double().view(-1, 1, 1)


def batch_statistics(model: TwoLayers, images: Tensor) -> list[Tensor]:
    """Means and variances of both layers for one batch, dropout off, each layer normalising with its batch's."""
    features = model.conv1(images)
    mean1, variance1 = moments(features)
    features = model.conv2(normalised(features, mean1, variance1, model.norm1).relu())
    return [mean1, variance1, *moments(features)]


@torch.no_grad()
def by_hand(model: TwoLayers, frames: Frames) -> list[Tensor]:
    """The averages over the batches, in float64."""
    model = model.double()
    found = [batch_statistics(model, frames.batch(indices).images.double() / 255) for indices in BATCHES]
    return [torch.stack(each).mean(0) for each in zip(*found, strict=True)]


def stored(model: TwoLayers) -> list[Tensor]:
    layers = (model.norm1, model.norm2)
    return [statistic.double() for layer in layers for statistic in (layer.running_mean, layer.running_var)]  # type: ignore[operator]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNorm, nn.SyncBatchNorm])
def test_the_statistics_are_those_of_a_loop_by_hand(norm: Any, frames: Frames) -> None:
    model = TwoLayers(norm)
    with torch.no_grad():
        for layer in (model.norm1, model.norm2):
            layer.weight.uniform_(0.5, 2)
            layer.bias.uniform_(-1, 1)
            layer.running_mean.fill_(99)
    use_training_set(model, frames, BATCH, CPU)
    found = stored(model)
    for mine, expected in zip(found, by_hand(model, frames), strict=True):
        torch.testing.assert_close(mine, expected, rtol=2e-6, atol=1e-6)


def test_evaluation_folds_them_into_scale_and_shift(frames: Frames) -> None:
    model = TwoLayers()
    use_training_set(model, frames, BATCH, CPU)
    mean1, variance1, mean2, variance2 = stored(model)
    model.double().eval()
    images = frames.batch([3]).images.double() / 255
    with torch.no_grad():
        features = normalised(model.conv1(images), mean1, variance1, model.norm1).relu()
        expected = normalised(model.conv2(features), mean2, variance2, model.norm2)
        torch.testing.assert_close(model(images), expected)


def test_variances_are_biased_and_batches_count_alike(frames: Frames) -> None:
    # One value a channel and image: 0, 1, ..., 9, so batches of 4 hold 0..3, 4..7 and 8, 9, 0, 1.
    model = numbered(frames, nn.BatchNorm2d(1))
    use_training_set(model, frames, BATCH, CPU)
    assert model.norm.running_mean.item() == pytest.approx((1.5 + 5.5 + 4.5) / 3)
    # Squares of the distances to the means: 5, 5 and 65; over 4 values, not over 3.
    assert model.norm.running_var.item() == pytest.approx((5 / 4 + 5 / 4 + 65 / 4) / 3)


def test_a_batch_larger_than_the_training_set_wraps_more_than_once(frames: Frames) -> None:
    model = numbered(frames, nn.BatchNorm2d(1))
    use_training_set(model, frames, 23, CPU)
    values = np.arange(23) % IMAGES
    assert model.norm.running_mean.item() == pytest.approx(values.mean())
    assert model.norm.running_var.item() == pytest.approx(values.var())


def numbered(frames: Frames, norm: nn.Module) -> Any:
    """A network that turns each frame into its number, one value, and normalises that."""
    every = frames.batch(range(len(frames))).images

    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def input(self, images: Tensor) -> Tensor:
            numbers = [int((every == image).flatten(1).all(1).nonzero()[0]) for image in images]
            return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1)

        def forward(self, numbers: Tensor) -> Tensor:
            return self.norm(numbers)

    return Numbered()


def test_one_value_a_channel_leaves_the_statistics_as_they_were(frames: Frames) -> None:
    model = numbered(frames, BatchNorm(1))
    use_training_set(model, frames, 1, CPU)
    assert (model.norm.running_mean.item(), model.norm.running_var.item()) == (0, 1)


def test_nothing_else_changes_and_nothing_random_is_drawn(frames: Frames) -> None:
    model = TwoLayers()
    model.norm1.momentum, model.norm2.momentum = 0.3, None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    use_training_set(model, frames, BATCH, CPU)
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.norm1.momentum, model.norm2.momentum) == (0.3, None)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"norm{i}.running_{what}" for i in (1, 2) for what in ("mean", "var")}
    first = stored(model)
    use_training_set(model, frames, BATCH, CPU)
    assert all(torch.equal(a, b) for a, b in zip(first, stored(model), strict=True))


def test_a_pass_that_is_interrupted_leaves_no_hook_and_no_momentum(frames: Frames) -> None:
    model = TwoLayers()
    handle = model.norm2.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        use_training_set(model, frames, BATCH, CPU)
    handle.remove()
    assert model.norm1.momentum == 0.1 and int(model.norm1.num_batches_tracked) == 0
    assert not any(module.training or module._forward_hooks for module in model.modules())
    use_training_set(model, frames, BATCH, CPU)
    undisturbed = TwoLayers()
    use_training_set(undisturbed, frames, BATCH, CPU)
    assert all(torch.equal(a, b) for a, b in zip(stored(model), stored(undisturbed), strict=True))


def test_layers_that_training_freezes_keep_theirs(frames: Frames) -> None:
    class HalfFrozen(TwoLayers):
        def train(self, mode: bool = True) -> "HalfFrozen":
            super().train(mode)
            self.norm1.eval()
            return self

    model = HalfFrozen()
    before = stored(model)
    use_training_set(model, frames, BATCH, CPU)
    assert [torch.equal(a, b) for a, b in zip(before, stored(model), strict=True)] == [True, True, False, False]


@pytest.mark.parametrize("norm", [nn.Identity, lambda c: nn.BatchNorm2d(c, track_running_stats=False)])
def test_without_statistics_to_replace_there_is_no_pass(norm: Any, frames: Frames) -> None:
    model = TwoLayers(lambda channels: nn.Identity() if norm is nn.Identity else norm(channels))

    def forbidden(_: Tensor) -> Tensor:
        raise AssertionError("a pass was made")

    model.forward = forbidden  # type: ignore[method-assign]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    use_training_set(model, frames, BATCH, CPU)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
