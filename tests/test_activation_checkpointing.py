"""Activation checkpointing: the same gradients, statistics and names from less memory, in any network."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import Pointwise
from torch import Tensor, nn

from segbench.engine.activation_checkpointing import forget_activations, layers, segments
from segbench.errors import ModelError
from segbench.models.build import build
from segbench.models.layers import BatchNorm, unit

CLASSES, SIZE = 5, (64, 96)
RESNET, SEGFORMER = {"encoder_name": "resnet18"}, {"hidden_sizes": [8] * 4, "depths": [2] * 4}
NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("segnet", {"width": 1 / 8}),
    ("segnet-basic", {"width": 1 / 8, "dropout": 0.5}),
    ("unet", {"width": 1 / 16, "padding": "same"}),
    ("fcn8s", {"width": 1 / 32}),
    ("smp:Unet", RESNET),
    ("torchvision:lraspp_mobilenet_v3_large", {}),
    ("hf:segformer", {**SEGFORMER, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}),
]
every_network = pytest.mark.parametrize(("name", "options"), NETWORKS, ids=[name for name, _ in NETWORKS])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def network(name: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(3)
    return build(name, CLASSES, options, input_size=SIZE).train()


def images(size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, seed: int = 5) -> dict[str, Tensor]:
    """Of a loss that every logit is in; dropout draws from `seed`."""
    torch.manual_seed(seed)
    model.zero_grad()
    model(images()).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def saved_bytes(model: nn.Module, size: tuple[int, int] = SIZE) -> int:
    """Of what autograd keeps between forward and backward, each storage once, weights and buffers left out."""
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _alive = model(images(size))
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.untyped_storage().nbytes() for place, tensor in storages.items() if place not in own)


@every_network
def test_gradients_and_state_are_bit_identical(name: str, options: dict[str, Any]) -> None:
    plain, forgetful = network(name, options), network(name, options)
    assert forget_activations(forgetful)
    expected = gradients(plain)
    assert expected and equal(gradients(forgetful), expected)
    # Running statistics and numbers of batches, which the second computation must not touch.
    assert equal(dict(forgetful.state_dict()), dict(plain.state_dict()))
    assert [n for n, _ in forgetful.named_modules()] == [n for n, _ in plain.named_modules()]


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("segnet", {"width": 1 / 8}, 0.3),
        ("segnet-basic", {"width": 1 / 8}, 0.5),
        ("unet", {"width": 1 / 16, "padding": "same"}, 0.75),
        ("smp:Unet", RESNET, 0.4),
    ],
)
def test_less_is_saved(name: str, options: dict[str, Any], share: float) -> None:
    """With less than half of it, twice the batch fits where activations are what fills the memory."""
    model = network(name, options)
    before = saved_bytes(model)
    forget_activations(model)
    assert saved_bytes(model) < share * before


def test_dropout_draws_the_same_numbers_again_and_moves_on_between_passes() -> None:
    model = nn.Sequential(Dropping(), Dropping(), Dropping())
    forget_activations(model)
    first, again, other = gradients(model), gradients(model), gradients(model, seed=6)
    assert equal(first, again) and not equal(first, other)
    torch.manual_seed(5)
    model(images()).square().mean().backward()
    after = torch.rand(1)  # recomputing gives the generator back where it was
    for part in model:
        del part.forward
    torch.manual_seed(5)
    model(images()).square().mean().backward()
    assert torch.equal(torch.rand(1), after)


class Dropping(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 3, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(3, 3, 3, padding=1))


def test_statistics_take_each_batch_once() -> None:
    model = nn.Sequential(*(unit(nn.Conv2d(3, 3, 3)) for _ in range(3)))
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    forget_activations(model)
    for _ in range(2):
        gradients(model)
    assert [int(norm.num_batches_tracked) for norm in norms] == [2, 2, 2]
    assert all(norm.track_running_stats and norm.momentum == 0.1 for norm in norms)


def test_autocast_is_entered_again() -> None:
    plain, forgetful = network("segnet-basic", {"width": 1 / 8}), network("segnet-basic", {"width": 1 / 8})
    forget_activations(forgetful)
    found = []
    for model in (plain, forgetful):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            logits = model(images())
        assert logits.dtype == torch.bfloat16
        logits.float().square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert equal(*found)


def test_nothing_is_computed_twice_without_gradients() -> None:
    model = nn.Sequential(Counting(), Counting())
    forget_activations(model)
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            model(images())
    assert [part.calls for part in model] == [2, 2]
    model(images()).sum().backward()
    assert [part.calls for part in model] == [4, 4]


class Counting(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images)


def test_segments_are_the_outermost_of_two_to_the_root_of_all_layers() -> None:
    """SegNet by hand: 26 convolutions and 25 normalisations, so segments of up to 8; no stage has more than 6."""
    model = network("segnet", {"width": 1 / 8})
    assert layers(model) == 51
    expected = [f"encoder.{i}" for i in range(5)] + [f"decoder.{i}" for i in range(5)]
    assert [name for name, _ in segments(model)] == expected
    # 16 layers in a row, in blocks of five and of one, a list that has no forward, and a module under two names.
    shared = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    five = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(5)))
    nested = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)) for _ in range(4)))
    parts = OrderedDict(five=five, nested=nested, first=shared, one=nn.Conv2d(3, 3, 1), second=shared)
    row = nn.Module()
    row.parts = nn.ModuleDict(parts)
    assert layers(row) == 16
    found = [name for name, _ in segments(row)]
    assert found == [*(f"parts.nested.{i}" for i in range(4)), "parts.first"]


def test_a_list_that_grows_afterwards_is_taken_as_it_was() -> None:
    """As in a DenseNet, whose layers are given the list of all maps so far."""
    plain, forgetful = Dense(), Dense()
    forgetful.load_state_dict(plain.state_dict())
    assert forget_activations(forgetful) == ["first", "second"]
    assert equal(gradients(forgetful), gradients(plain))


class Joined(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 3, 1), nn.BatchNorm2d(3))

    def forward(self, maps: list[Tensor]) -> Tensor:
        return super().forward(torch.cat(maps, 1))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Joined(3), Joined(6)

    def forward(self, images: Tensor) -> Tensor:
        maps = [images]
        maps.append(self.first(maps))
        maps.append(self.second(maps))
        return maps[-1]


def test_what_writes_into_its_input_is_refused() -> None:
    writing = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), writing)
    forget_activations(model)
    with pytest.raises(ModelError, match=r"activation_checkpointing: 2 \(Sequential\) writes into its input"):
        model(images())


def test_a_network_of_few_layers_is_left_as_it_is() -> None:
    model = nn.Sequential(Pointwise())
    assert forget_activations(model) == ["0"]
    assert forget_activations(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_twice_the_batch_fits_on_a_gpu() -> None:
    """The peak of a training pass of SegNet at batch 4 is below that of batch 2 without checkpointing."""

    def peak(model: nn.Module, batch: int) -> int:
        frames = torch.randn(batch, 3, 360, 480, device="cuda")
        for _ in range(2):
            model.zero_grad()
            torch.cuda.reset_peak_memory_stats()
            F.cross_entropy(model(frames), torch.zeros(batch, 360, 480, dtype=torch.long, device="cuda")).backward()
        return torch.cuda.max_memory_allocated()

    plain = network("segnet", {}).cuda()
    alone = peak(plain, 2)
    forget_activations(plain)
    assert peak(plain, 4) < alone
