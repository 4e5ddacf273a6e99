"""One update: accumulation by hand, precision, layout, fp16's scale, the compiler, and what is read when."""

import builtins
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.exc import InvalidCxxCompiler

from segbench.data.batches import Batch
from segbench.engine import update as engine
from segbench.engine.recipe import Recipe
from segbench.engine.update import Loss, Update
from segbench.errors import SettingError

CPU = torch.device("cpu")
CLASSES = 4


class Small(nn.Module):
    """Two convolutions and what differs between training and evaluation; notes what it is fed and gives."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.dropout, self.last = nn.Dropout(dropout), nn.Conv2d(8, CLASSES, 1)
        self.seen: list[tuple[torch.dtype, bool, torch.dtype]] = []

    def input(self, images: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        return images.float() / 255

    def forward(self, images: Tensor) -> Tensor:
        logits = self.last(self.dropout(self.norm(self.first(images)).relu()))
        if not torch.compiler.is_compiling():
            last = images.is_contiguous(memory_format=torch.channels_last)
            self.seen.append((images.dtype, last, logits.dtype))
        return logits


def recipe(**changes: Any) -> Recipe:
    given = {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 2, "iterations": 9}
    return Recipe.model_validate(given | changes)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    assert logits.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return F.cross_entropy(logits, labels.long())


def batches(count: int, images: int = 2, seed: int = 0) -> list[Batch]:
    drawn = torch.Generator().manual_seed(seed)

    def integers(end: int, *shape: int) -> Tensor:
        return torch.randint(0, end, shape, dtype=torch.uint8, generator=drawn)

    return [Batch(integers(256, images, 3, 12, 16), integers(CLASSES, images, 12, 16)) for _ in range(count)]


def made(
    given: Recipe, *, loss: Callable[[Tensor, Tensor], Tensor] = loss_of, dropout: float = 0.0, fused: bool = False
) -> Update:
    torch.manual_seed(0)
    model = Small(dropout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    return Update(model, optimizer, given, CPU, loss)


def weights(update: Update) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in update.network.state_dict().items()}


def close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return list(first) == list(second) and all(
        torch.allclose(first[name].float(), second[name].float(), rtol=tolerance, atol=tolerance) for name in first
    )


def test_an_update_of_several_passes_takes_the_mean_of_their_losses() -> None:
    """By hand: gradients of each pass alone, their mean, and SGD with momentum written out, over two updates."""
    update, (model, given) = made(recipe(accumulate=3)), (made(recipe()).network, batches(6))
    momenta: dict[str, Tensor] = {}
    for passes in (given[:3], given[3:]):
        losses, sums = [], {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for batch in passes:
            model.zero_grad()
            loss = loss_of(model(model.input(batch.images)), batch.labels)
            loss.backward()
            losses.append(loss.item())
            for name, parameter in model.named_parameters():
                sums[name] += parameter.grad
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                momenta[name] = 0.9 * momenta.get(name, 0) + sums[name] / 3
                parameter -= 0.1 * momenta[name]
        assert update(passes).item() == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert close(weights(update), dict(model.state_dict()), 1e-6)


def test_it_trains_after_something_evaluated_the_network() -> None:
    update = made(recipe())
    update.network.eval()
    update(batches(1))
    assert update.network.training and int(update.network.norm.num_batches_tracked) == 1


def test_bf16_is_used_in_the_network_alone() -> None:
    """`loss_of` and `input` assert what they are given and that autocast is off there."""
    update = made(recipe(precision="bf16"))
    update(batches(1))
    assert update.network.seen == [(torch.float32, False, torch.bfloat16)]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in update.network.parameters())
    plain = made(recipe())
    plain(batches(1))
    assert plain.network.seen == [(torch.float32, False, torch.float32)]


def test_channels_last_reaches_images_and_convolutions_and_keeps_the_parameters() -> None:
    torch.manual_seed(0)
    model = Small()
    before = list(model.parameters())
    update = Update(model, torch.optim.SGD(before, lr=0.1, momentum=0.9), recipe(channels_last=True), CPU, loss_of)
    assert all(old is new for old, new in zip(before, model.parameters(), strict=True))
    assert model.first.weight.is_contiguous(memory_format=torch.channels_last)
    update(batches(1))
    assert model.seen[0][1]
    plain = made(recipe())
    plain(batches(1))
    assert not plain.network.seen[0][1] and plain.network.first.weight.is_contiguous()
    assert close(weights(update), weights(plain), 1e-6)


def test_momentum_from_a_file_takes_the_layout_of_its_weight() -> None:
    """A fused optimizer walks through memory; what a file gives is contiguous. Trained on, both are equal."""
    ends = []
    for interrupted in (False, True):
        update = made(recipe(channels_last=True), fused=True)
        update(batches(1))
        if interrupted:
            state = update.optimizer.state_dict()
            for values in state["state"].values():
                values["momentum_buffer"] = values["momentum_buffer"].contiguous()
            update.optimizer.load_state_dict(state)
            update.restore(update.state())
            momentum = update.optimizer.state[update.network.first.weight]["momentum_buffer"]
            assert momentum.is_contiguous(memory_format=torch.channels_last)
        update(batches(1, seed=1))
        ends.append(weights(update))
    assert close(*ends)


def test_fp16_scales_gradients_and_skips_an_update_that_overflows() -> None:
    update = made(recipe(precision="fp16"))
    assert update(batches(1)).item() == pytest.approx(made(recipe())(batches(1)).item(), rel=1e-2)
    assert update.state() == {"scale": torch.tensor(2.0**16), "_growth_tracker": torch.tensor(1)}
    update.restore({"scale": torch.tensor(2.0**127), "_growth_tracker": torch.tensor(7)})
    before = dict(update.network.named_parameters())["last.weight"].clone()
    # The loss is finite; times the scale it is not.
    assert update(batches(1, seed=1)).item() < 10
    assert torch.equal(update.network.last.weight, before)
    assert update.state() == {"scale": torch.tensor(2.0**126), "_growth_tracker": torch.tensor(0)}


def test_fp16_goes_on_from_its_scale() -> None:
    first, second = made(recipe(precision="fp16")), made(recipe(precision="fp16"))
    first.scaler.load_state_dict(first.scaler.state_dict() | {"scale": 8.0})
    first(batches(1))
    second.restore(first.state())
    assert second.state() == first.state() == {"scale": torch.tensor(8.0), "_growth_tracker": torch.tensor(1)}
    second(batches(1))
    assert second.state() == {"scale": torch.tensor(8.0), "_growth_tracker": torch.tensor(2)}
    plain = made(recipe())
    assert plain.state() == {}
    plain.restore({})


def test_a_loss_is_given_as_it_was_whatever_is_queued_after_it() -> None:
    update, alone = made(recipe()), made(recipe())
    first = update(batches(1))
    update(batches(1, seed=1))
    assert first.item() == alone(batches(1)).item()
    assert not first.value.requires_grad


def test_reading_a_loss_waits_for_its_own_update() -> None:
    waits: list[str] = []

    class Event:
        def synchronize(self) -> None:
            waits.append("own")

    assert Loss(torch.tensor(2.5), Event()).item() == 2.5  # type: ignore[arg-type]
    assert waits == ["own"]


def test_a_loss_that_is_not_finite_is_told_and_not_hidden() -> None:
    update = made(recipe(precision="fp16"), loss=lambda logits, _: logits.sum() * torch.inf)
    assert not torch.isfinite(torch.tensor(update(batches(1)).item()))


def test_processes_add_their_gradients_once_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """`no_sync` around all passes but the last; the forward goes through the wrapper."""
    seen: list[str] = []

    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, images: Tensor) -> Tensor:
            seen.append("pass")
            return self.module(images)

        @contextmanager
        def no_sync(self) -> Any:
            seen.append("alone")
            yield
            seen.append("end")

    monkeypatch.setattr(engine, "DistributedDataParallel", Wrapped)
    plain, model = made(recipe(accumulate=3)), Wrapped(made(recipe()).network)
    update = Update(
        model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), recipe(accumulate=3), CPU, loss_of
    )
    plain(batches(3))
    update(batches(3))
    assert seen == ["alone", "pass", "end", "alone", "pass", "end", "pass"]
    assert close(weights(update), weights(plain))


def test_activations_are_forgotten_where_the_recipe_says_so() -> None:
    update, plain = made(recipe(activation_checkpointing=True), dropout=0.5), made(recipe(), dropout=0.5)
    called: list[str] = []
    monitored = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, CLASSES, 1))
    model = Small()
    model.last = monitored  # type: ignore[assignment]
    Update(model, torch.optim.SGD(model.parameters(), lr=0.1), recipe(activation_checkpointing=True), CPU, loss_of)
    assert "forward" in vars(monitored) and not called
    for each in (update, plain):
        torch.manual_seed(1)
        each(batches(1))
    assert close(weights(update), weights(plain))


def test_what_a_device_or_machine_has_not_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match=r"^cuda_graphs: cpu has none; leave the setting out"):
        made(recipe(compile=True, cuda_graphs=True))

    def without_compiler(_: Tensor) -> Tensor:  # PyTorch remembers for good whether it found one
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", lambda *_, **__: without_compiler)
    words = r"^compile: torch.compile failed \(InvalidCxxCompiler: No working C\+\+ compiler found.*; leave it out$"
    with pytest.raises(SettingError, match=words):
        made(recipe(compile=True))(batches(1))


def test_other_errors_keep_their_words() -> None:
    def broken(*_: Tensor) -> Tensor:
        raise builtins.RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match=r"^CUDA out of memory"):
        made(recipe(), loss=broken)(batches(1))


@pytest.mark.slow
def test_compiled_updates_equal_eager_ones() -> None:
    """Also with a shorter batch, and with activations forgotten; names and what evaluates stay the network's own."""
    eager = made(recipe())
    for changes in ({}, {"activation_checkpointing": True}):
        compiled = made(recipe(compile=True, **changes))
        compiled.network.seen.clear()
        for batch in (*batches(2), *batches(1, images=1)):
            compiled([batch])
            if not changes:
                eager([batch])
        assert compiled.network.seen == [], "nothing was compiled"
        assert close(weights(compiled), weights(eager), 1e-5)
    compiled.network(torch.rand(1, 3, 12, 16))
    assert compiled.network.seen, "the network itself is compiled"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_cuda_graphs_equal_eager(accumulate: int) -> None:
    device, ends = torch.device("cuda:0"), []
    for changes in ({}, {"compile": True, "cuda_graphs": True}):
        torch.manual_seed(0)
        model = Small().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        update = Update(model, optimizer, recipe(accumulate=accumulate, **changes), device, loss_of)
        losses = [
            update([Batch(*(tensor.to(device) for tensor in batch)) for batch in batches(accumulate, seed=seed)])
            for seed in range(6)
        ]
        ends.append((weights(update), [loss.item() for loss in losses]))
    assert close(ends[0][0], ends[1][0], 1e-3)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-3)
