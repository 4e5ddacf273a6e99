"""Unpooling: Caffe's rule by a slow loop, PyTorch's own functions as a peer, and what is kept for the way back."""

import io
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segbench.models import unpooling
from segbench.models.unpooling import Packing, pool_with_places, unpool

FORMS: tuple[Packing, ...] = ("byte", "two-bit")
forms = pytest.mark.parametrize("form", FORMS)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
NAN, INF = math.nan, math.inf


def caffe(image: Tensor) -> tuple[Tensor, Tensor]:
    """One plane through Caffe's pooling with a mask and its Upsample layer, value by value."""
    height, width = image.shape
    pooled, restored = torch.empty(-(-height // 2), -(-width // 2)), torch.zeros(height, width)
    for row in range(pooled.shape[0]):
        for column in range(pooled.shape[1]):
            largest, place = -INF, (2 * row, 2 * column)
            for y in range(2 * row, min(2 * row + 2, height)):
                for x in range(2 * column, min(2 * column + 2, width)):
                    if image[y, x] > largest:
                        largest, place = image[y, x].item(), (y, x)
            pooled[row, column] = restored[place] = largest
    return pooled, restored


def pytorchs(features: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """What F has: the pooled map, and its product with `factor` unpooled."""
    pooled, indices = F.max_pool2d(features, 2, 2, ceil_mode=True, return_indices=True)
    return pooled, F.max_unpool2d(pooled * factor, indices, 2, output_size=features.shape[-2:])


def ours(features: Tensor, factor: Tensor, form: Packing) -> tuple[Tensor, Tensor]:
    pooled, places = pool_with_places(features, form)
    return pooled, unpool(pooled * factor, places, features.shape[-2:])


def same(found: Tensor, expected: Tensor) -> bool:
    return torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


def assert_pytorchs(features: Tensor, form: Packing) -> None:
    """Outputs, gradients and layout are those of F, bit for bit."""
    factor = torch.rand(*features.shape[:2], 1, 1).to(features) + 1
    results = []
    for function in (lambda x: ours(x, factor, form), lambda x: pytorchs(x, factor)):
        leaf = features.detach().clone().requires_grad_()
        pooled, restored = function(leaf)
        weight = torch.arange(restored.numel()).reshape(restored.shape).to(features)
        (restored * weight).sum().backward()
        results.append((pooled.detach(), restored.detach(), leaf.grad))
    for found, expected in zip(*results, strict=True):
        assert same(found, expected)
        for layout in (torch.contiguous_format, torch.channels_last):
            assert found.is_contiguous(memory_format=layout) == expected.is_contiguous(memory_format=layout)


def with_ties(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Five different values: most windows have several maxima."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@forms
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (2, 2), (7, 9), (8, 6)])
def test_a_slow_loop_over_caffes_rule_agrees(size: tuple[int, int], form: Packing) -> None:
    features = with_ties(2, 5, *size)
    pooled, restored = ours(features, torch.ones(()), form)
    expected = [caffe(plane) for plane in features.flatten(0, 1)]
    assert torch.equal(pooled.flatten(0, 1), torch.stack([pool for pool, _ in expected]))
    assert torch.equal(restored.flatten(0, 1), torch.stack([restore for _, restore in expected]))


@forms
@layouts
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 6, 7, 9), (1, 1, 4, 5), (3, 8, 1, 1), (0, 4, 6, 6)])
def test_outputs_and_gradients_are_pytorchs(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, form: Packing
) -> None:
    assert_pytorchs(with_ties(*shape, dtype=dtype).to(memory_format=layout), form)


@forms
def test_planes_that_fill_several_slabs(form: Packing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpooling, "SLAB", 50)
    assert_pytorchs(with_ties(2, 7, 9, 11), form)


@forms
def test_nan_is_the_largest_and_minus_infinity_a_value(form: Packing) -> None:
    windows = [[NAN, 1, 2, 3], [1, NAN, NAN, 3], [-INF, -INF, -INF, -INF], [-INF, -5, -INF, -5], [INF, NAN, INF, 0]]
    features = torch.tensor(windows).reshape(1, 5, 2, 2)
    assert_pytorchs(features, form)
    _, places = pool_with_places(features, "byte")
    assert places.flatten().tolist() == [0, 2, 0, 1, 1]


@forms
def test_gradients_are_those_of_finite_differences(form: Packing) -> None:
    # Distinct values, far apart: no step changes which is the largest.
    features = torch.randperm(2 * 3 * 5).double().reshape(1, 2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ours(x, torch.ones(()), form), features)


@forms
def test_a_second_derivative_raises(form: Packing) -> None:
    features = with_ties(1, 2, 4, 4).requires_grad_()
    _, restored = ours(features, torch.ones(()), form)
    (gradient,) = torch.autograd.grad(restored.square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# The two forms


def test_the_code_of_each_corner_and_its_two_bits() -> None:
    features = torch.zeros(1, 6, 2, 2)
    for channel, corner in enumerate([0, 1, 2, 3, 3, 1]):
        features[0, channel].view(-1)[corner] = 1
    assert pool_with_places(features, "byte")[1].flatten().tolist() == [0, 1, 2, 3, 3, 1]
    assert pool_with_places(features, "two-bit")[1].flatten().tolist() == [0b11_10_01_00, 0b01_11]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 9])
def test_packing_and_back(channels: int) -> None:
    codes = torch.randint(4, (2, channels, 3, 5), dtype=torch.uint8)
    packed = unpooling._packed(codes)
    assert packed.shape == (2, math.ceil(channels / 4), 3, 5)
    assert torch.equal(unpooling._unpacked(packed, channels), codes)
    assert torch.equal(unpooling._unpacked(codes, channels), codes)


def kept_bytes(features: Tensor, function: Callable[[Tensor], Tensor]) -> int:
    """What autograd keeps between forward and backward, each memory once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(features.requires_grad_())
    return sum(kept.values())


def test_what_is_kept_for_the_way_back() -> None:
    features = torch.rand(2, 8, 45, 30)
    windows = 2 * 8 * 23 * 15
    one = torch.ones(())

    def both(form: Packing) -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            pooled, places = pool_with_places(x, form)
            return unpool(pooled, places, (45, 30))

        return function

    assert kept_bytes(features, both("byte")) == windows
    assert kept_bytes(features, both("two-bit")) == windows // 4
    # The peer keeps 64-bit indices and the map itself.
    peer = kept_bytes(features, lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)[0] * one)
    assert peer >= 8 * windows + features.nbytes


@pytest.mark.parametrize(
    ("values", "places", "size"),
    [
        ((1, 8, 3, 3), (1, 8, 3, 3), (7, 6)),
        ((1, 8, 3, 3), (1, 8, 3, 3), (6, 3)),
        ((1, 8, 3, 3), (1, 4, 3, 3), (6, 6)),
    ],
)
def test_what_does_not_belong_together_is_refused(
    values: tuple[int, ...], places: tuple[int, ...], size: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=r"unpool to|are not those"):
        unpool(torch.zeros(values), torch.zeros(places, dtype=torch.uint8), size)


# Modes of PyTorch


class Toy(nn.Module):
    def __init__(self, form: Packing) -> None:
        super().__init__()
        self.first, self.last, self.form = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1), form

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        pooled, places = pool_with_places(features, self.form)
        smallest, smaller_places = pool_with_places(pooled, self.form)
        pooled = unpool(smallest, smaller_places, pooled.shape[-2:])
        return self.last(unpool(pooled, places, features.shape[-2:]))


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@forms
@pytest.mark.usefixtures("_deterministic")
def test_deterministic_mode(form: Packing) -> None:
    images = torch.randn(1, 3, 10, 13)
    Toy(form)(images).sum().backward()
    with pytest.raises(RuntimeError, match="deterministic"):
        pytorchs(images, torch.ones(()))


@forms
def test_inference_mode_and_no_device(form: Packing) -> None:
    toy, images = Toy(form), torch.randn(1, 3, 10, 13)
    with torch.inference_mode():
        assert torch.equal(toy(images), toy(images))
    with FlopCounterMode(display=False) as counter:
        assert toy.to("meta")(images.to("meta")).shape == (1, 2, 10, 13)
    assert counter.get_total_flops() == 2 * 9 * 10 * 13 * (3 * 6 + 6 * 2)


@pytest.fixture
def _shapes_unchecked() -> Iterator[None]:
    """A tracer cannot follow jaxtyping's checks, which users do not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_shapes_unchecked")
def test_export_keeps_the_network() -> None:
    toy, images = Toy("two-bit").eval(), torch.randn(1, 3, 11, 13)
    sides = {"images": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    exported = torch.export.export(toy, (images,), dynamic_shapes=sides).module()
    for size in ((11, 13), (14, 9)):
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(exported(images), toy(images))


@pytest.mark.usefixtures("_shapes_unchecked")
def test_onnx_keeps_the_network() -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    toy, images, file = Toy("two-bit").eval(), torch.randn(1, 3, 11, 13), io.BytesIO()
    torch.onnx.export(toy, (images,), dynamo=True, verbose=False).save(file)
    session = runtime.InferenceSession(file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), toy(images).detach())


@pytest.mark.usefixtures("_shapes_unchecked")
def test_compilation_keeps_outputs_and_gradients() -> None:
    toy, results = Toy("two-bit"), []
    images = torch.randn(1, 3, 11, 13)
    for network in (toy, torch.compile(toy, backend="aot_eager", fullgraph=True)):
        leaf = images.clone().requires_grad_()
        output = network(leaf)
        output.square().sum().backward()
        results += [output.detach(), leaf.grad]
    torch.testing.assert_close(results[:2], results[2:])


# Triton's kernels


def check_kernels(device: str) -> None:
    """The public functions by kernel are the same by plain torch, which the tests above check."""
    for form, dtype, layout, shape in [
        ("two-bit", torch.float32, torch.contiguous_format, (1, 6, 5, 7)),
        ("two-bit", torch.bfloat16, torch.channels_last, (1, 5, 4, 3)),
        ("byte", torch.float64, torch.channels_last, (2, 3, 5, 6)),
    ]:
        features = with_ties(*shape, dtype=dtype).to(memory_format=layout)
        if shape[2] > 4:
            features[0, 0, :2, :2] = torch.tensor([[1, NAN], [NAN, 2]])
            features[0, 1, 2:4, 2:4] = -INF
        assert_pytorchs(features.to(device), form)


@pytest.fixture
def _triton() -> None:
    pytest.importorskip("triton")


@pytest.mark.usefixtures("_triton")
def test_the_kernels_in_tritons_interpreter() -> None:
    # In a process of its own, for the interpreter changes Triton for good.
    code = "; ".join(
        [
            "import test_unpooling",
            "from segbench.models import unpooling",
            "unpooling._kernels = lambda _: unpooling._triton()",
            "test_unpooling.check_kernels('cpu')",
            "from segbench.models import unpooling_triton",
            "print(type(unpooling_triton._pool).__name__)",
        ]
    )
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "InterpretedFunction"


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("kernel", ["_pool", "_unpool", "_gather"])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton import compile as compiled
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from segbench.models import unpooling_triton

    if "nvidia" not in backends:
        pytest.skip("Triton was built without its NVIDIA backend")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"full": "*bf16", "pooled": "*bf16", "places": "*u8", "channels": "i32", "height": "i32", "width": "i32"}
    constants = {"GROUP": 4, "LAST": False, "BLOCK": unpooling_triton.WINDOWS_PER_PROGRAM}
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(getattr(unpooling_triton, kernel), signature, constants)
    assert "ptx" in compiled(source, target=GPUTarget("cuda", 80, 32)).asm


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("triton", [True, False])
def test_a_gpu_has_the_same_outputs_and_gradients(triton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not triton:
        monkeypatch.setattr(unpooling, "_triton", lambda: None)
    check_kernels("cuda")
