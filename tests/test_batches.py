"""Frames in memory or decoded anew, batches made ahead of their use, and the memory that decides."""

import gc
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from PIL import Image

from segbench.data import batches, memory
from segbench.data.batches import Batch, Frames
from segbench.data.camvid import CamVid
from segbench.data.dataset import Sample
from segbench.data.labels import FileProblem
from segbench.data.memory import available_bytes
from segbench.data.prefetch import prefetched
from segbench.data.synthetic import Synthetic

SIZE, COUNT = (24, 32), 6
SIZE_BYTES = COUNT * 24 * 32 * 4
WAIT_S = 20.0  # for what must happen, on a machine however busy


class Counted(Synthetic):
    """Frames of noise that tell how often each was asked for."""

    def __init__(self, count: int = COUNT) -> None:
        super().__init__("train", size=SIZE, train=count)
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        pixels = np.random.RandomState(index).randint(0, 256, (*SIZE, 4), np.uint8)
        return Sample(self.names[index], pixels[..., :3], pixels[..., 3])


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No frames of other tests hold memory."""
    monkeypatch.setattr(batches, "KEEPING", WeakSet())


@pytest.fixture(params=[True, False], ids=["kept", "decoded anew"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(batches, "available_bytes", lambda: 10**12 if request.param else 0)
    return bool(request.param)


def of_dataset(indices: Sequence[int]) -> Batch:
    """What a batch must hold."""
    samples = [Counted()[index] for index in indices]
    return Batch(
        torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack([sample.labels for sample in samples])),
    )


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def until(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + WAIT_S
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()


def named(prefix: str) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(prefix)}


# What a process may take


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    1000 kB\n"}
V1, V2 = "sys/fs/cgroup/memory/", "sys/fs/cgroup/"


def v1(folder: str, limit: int, used: int, cached: int = 0) -> dict[str, str]:
    return {
        f"{V1}{folder}memory.limit_in_bytes": f"{limit}\n",
        f"{V1}{folder}memory.usage_in_bytes": f"{used}\n",
        f"{V1}{folder}memory.stat": f"cache 7\ninactive_file 9\ntotal_inactive_file {cached}\ntotal_active_file 2\n",
    }


def v2(folder: str, limit: int | str, used: int, cached: int = 0) -> dict[str, str]:
    return {
        f"{V2}{folder}memory.max": f"{limit}\n",
        f"{V2}{folder}memory.current": f"{used}\n",
        f"{V2}{folder}memory.stat": f"anon 5\nfile 9\ninactive_file {cached}\nactive_file 2\n",
    }


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 1_024_000),
        ({"proc/self/cgroup": "0::/\n"}, 1_024_000),
        # Version 2: the group's own limit, its use less the pages of files that it could drop.
        ({"proc/self/cgroup": "0::/\n"} | v2("", 9000, 4000, 1000), 6002),
        ({"proc/self/cgroup": "0::/a/b\n"} | v2("a/b/", "max", 4000), 1_024_000),
        # The tightest of the groups around it.
        ({"proc/self/cgroup": "0::/a/b\n"} | v2("a/b/", 9000, 2) | v2("a/", 9100, 5002) | v2("", 8000, 2), 4100),
        ({"proc/self/cgroup": "0::/a\n"} | v2("b/", 10, 2), 1_024_000),
        # More used than allowed, and nothing used at all.
        ({"proc/self/cgroup": "0::/\n"} | v2("", 1000, 4000), 0),
        ({"proc/self/cgroup": "0::/\n"} | v2("", 1000, 1, 500), 1000),
        # Version 1, where a line names the controllers; in a container its path is the host's.
        ({"proc/self/cgroup": "5:devices:/\n4:memory:/docker/1f\n0::/\n"} | v1("", 9000, 4000, 1000), 6002),
        ({"proc/self/cgroup": "4:cpu,memory:/a:b\n"} | v1("a:b/", 9000, 4000), 5002),
        ({"proc/self/cgroup": "4:memory:/a\n"} | v1("a/", 9223372036854771712, 4000), 1_024_000),
        ({"proc/self/cgroup": "4:memoryless:/a\n"} | v1("a/", 9000, 4000), 1_024_000),
        ({"proc/self/cgroup": "4:memory:/a\n"} | v2("a/", 9000, 4000), 1_024_000),
    ],
)
def test_the_least_of_machine_and_groups_is_what_is_left(tmp_path: Path, files: dict[str, str], left: int) -> None:
    assert available_bytes(write(tmp_path, MEMINFO | files)) == left


def test_elsewhere_it_is_all_that_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(memory, "os", SimpleNamespace(sysconf=pages.__getitem__))
    assert available_bytes(tmp_path) == 4_096_000
    monkeypatch.setattr(memory, "os", SimpleNamespace())
    assert available_bytes(tmp_path) == 0


def test_this_machine_has_some() -> None:
    assert 2**20 < available_bytes() < 2**60


# Frames


def test_a_split_of_half_the_memory_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Frames(Counted()).size_bytes == SIZE_BYTES
    for available, fits in ((2 * SIZE_BYTES, True), (2 * SIZE_BYTES - 1, False)):
        monkeypatch.setattr(batches, "available_bytes", lambda found=available: found)
        assert Frames(Counted()).fits is fits
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    for available, fits in ((6 * SIZE_BYTES, True), (6 * SIZE_BYTES - 1, False)):
        monkeypatch.setattr(batches, "available_bytes", lambda found=available: found)
        assert Frames(Counted()).fits is fits


def test_memory_that_a_split_will_still_fill_is_not_given_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (Frames(Counted()) for _ in range(3))
    monkeypatch.setattr(batches, "available_bytes", lambda: 3 * first.size_bytes)
    assert first.fits and second.fits, "half of three, then half of two"
    assert not third.fits, "half of one"
    # What has been filled is missing from the memory that is available, and is not taken off twice.
    first.batch(range(len(first)))
    assert batches.promised() == second.size_bytes
    assert Frames(Counted()).fits


def test_batches_are_the_datasets_frames_in_the_order_asked_for(kept: bool) -> None:
    frames = Frames(Counted())
    assert frames.fits is kept and len(frames) == COUNT and frames.names == frames.dataset.names
    for indices in ([3], [5, 0, 2], [1, 1, 4, 1], range(COUNT), (2,)):
        batch = frames.batch(indices)
        assert batch.images.dtype == batch.labels.dtype == torch.uint8
        assert equal(batch, of_dataset(indices))
    assert frames.batch([]).images.shape == (0, 3, *SIZE)


def test_what_fits_is_decoded_once_and_what_does_not_each_time(kept: bool) -> None:
    dataset = Counted()
    frames = Frames(dataset)
    for indices in ([0, 2], [2, 3], [0, 2, 3], [2, 2]):
        frames.batch(indices)
    assert sorted(dataset.asked) == ([0, 2, 3] if kept else [0, 0, 2, 2, 2, 2, 2, 3, 3])
    assert (frames._kept is not None) is kept


def test_a_batch_is_the_callers_own(kept: bool) -> None:
    frames = Frames(Counted())
    for part in frames.batch([1, 2]):
        part.zero_()
    assert equal(frames.batch([1, 2]), of_dataset([1, 2]))


def test_a_split_that_is_not_used_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "available_bytes", lambda: pytest.fail("asked for memory"))
    before = named("")
    huge = Synthetic("train", size=(100_000, 100_000), train=10_000)  # 400 TB
    assert len(Frames(huge)) == 10_000
    assert named("") <= before


def test_whether_it_fits_is_decided_when_it_is_first_used(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [10**12]
    monkeypatch.setattr(batches, "available_bytes", lambda: left[0])
    early, late = Frames(Counted()), Frames(Counted())
    early.batch([0])
    left[0] = 0
    late.batch([0])
    assert early.fits and not late.fits


class Together(Counted):
    """No frame is ready before two are being made."""

    def __init__(self) -> None:
        super().__init__()
        self.barrier = threading.Barrier(2, timeout=WAIT_S)

    def __getitem__(self, index: int) -> Sample:
        self.barrier.wait()
        return super().__getitem__(index)


def test_frames_are_decoded_side_by_side(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "processors", lambda: 2)
    assert equal(Frames(Together()).batch([0, 1, 2, 3]), of_dataset([0, 1, 2, 3]))


def test_several_threads_may_ask_at_once(kept: bool) -> None:
    frames = Frames(Counted())
    orders = [random.Random(number).choices(range(COUNT), k=4) for number in range(12)]
    found: dict[int, Batch] = {}
    start = threading.Barrier(6)

    def ask(first: int) -> None:
        start.wait()
        for number in range(first, len(orders), 6):
            found[number] = frames.batch(orders[number])

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(found[number], of_dataset(order)) for number, order in enumerate(orders))


def test_threads_end_with_the_frames(kept: bool) -> None:
    before = named("decode")
    frames = Frames(Counted())
    frames.batch(range(COUNT))
    mine = named("decode") - before
    assert mine
    del frames
    gc.collect()
    assert until(lambda: not any(thread.is_alive() for thread in mine))


def test_frames_travel_without_what_they_keep() -> None:
    frames = Frames(Counted())
    frames.batch(range(COUNT))
    sent = pickle.dumps(frames)
    assert len(sent) < SIZE_BYTES / 4
    assert equal(pickle.loads(sent).batch([4, 1]), of_dataset([4, 1]))


@pytest.fixture
def files(tmp_path: Path) -> CamVid:
    """A CamVid of four frames."""
    for index in range(4):
        name = f"{index}.png"
        for folder, pixels in (("train", np.full((6, 8, 3), 10 * index, np.uint8)), ("trainannot", np.eye(6, 8))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / name)
    lines = [f"/SegNet/CamVid/train/{index}.png /SegNet/CamVid/trainannot/{index}.png" for index in range(4)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    return CamVid("train", root=tmp_path)


@pytest.mark.parametrize("ahead", [None, 0, 2])
def test_a_file_that_became_unreadable_is_named_where_its_batch_is_due(
    files: CamVid, kept: bool, ahead: int | None
) -> None:
    frames, broken = Frames(files), files.frames[2].image
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    orders = [[0], [1], [3, 2], [0]]
    stream = (frames.batch(order) for order in orders) if ahead is None else prefetched(frames, orders, "cpu", ahead)
    assert [int(next(stream).images[0, 0, 0, 0]) for _ in range(2)] == [0, 10]
    with pytest.raises(FileProblem, match=rf"{broken}: frame cannot be read"):
        next(stream)
    assert not named("prefetch")
    broken.write_bytes(whole)
    assert frames.batch([3, 2]).images[:, 0, 0, 0].tolist() == [30, 20]


# Batches ahead of their use


class Slow(Frames):
    """Frames that say which batches were begun, and make one when they are let."""

    def __init__(self, free: bool = True) -> None:
        super().__init__(Counted())
        self.begun: list[int] = []
        self.may = threading.Semaphore(10**6 if free else 0)

    def batch(self, indices: Sequence[int], device: Any = "cpu") -> Batch:
        self.begun.append(indices[0])
        assert self.may.acquire(timeout=WAIT_S)
        return Batch(torch.full((1, 3, 1, 1), indices[0], dtype=torch.uint8), torch.zeros((1, 1, 1), dtype=torch.uint8))


def numbers(stream: Iterator[Batch]) -> Iterator[int]:
    return (int(batch.images[0, 0, 0, 0]) for batch in stream)


def endless(taken: list[int]) -> Iterator[list[int]]:
    while True:
        taken.append(len(taken))
        yield [taken[-1]]


@pytest.mark.parametrize("ahead", [0, 1, 2, 20])
def test_batches_come_in_order_and_whole(kept: bool, ahead: int) -> None:
    frames = Frames(Counted())
    orders = [[index % COUNT, (index * 5 + 1) % COUNT] for index in range(9)]
    found = list(prefetched(frames, orders, "cpu", ahead))
    assert len(found) == len(orders)
    assert all(equal(batch, of_dataset(order)) for batch, order in zip(found, orders, strict=True))
    assert list(prefetched(frames, [], "cpu", ahead)) == [] and not named("prefetch")


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_as_many_are_made_ahead_as_was_asked_for(ahead: int) -> None:
    frames, taken = Slow(), []
    stream = prefetched(frames, endless(taken), torch.device("cpu"), ahead)
    assert not frames.begun and not taken  # nothing before the first is asked for
    for number in range(4):
        assert next(numbers(stream)) == number
        # Nobody asks; they come all the same, and no more than those.
        assert until(lambda so_far=number: len(frames.begun) == so_far + 1 + ahead)
        time.sleep(0.01)
        assert frames.begun == list(range(number + 1 + ahead)) == taken
    stream.close()
    assert not named("prefetch")


def test_a_reader_that_leaves_waits_for_one_batch_at_most() -> None:
    frames = Slow(free=False)
    frames.may.release()
    stream = prefetched(frames, endless([]), "cpu", ahead=4)
    next(stream)
    assert until(lambda: len(frames.begun) == 2)  # the second is being made, three more wait
    threading.Timer(0.05, frames.may.release).start()
    stream.close()
    assert frames.begun == [0, 1] and not named("prefetch")


def test_an_interrupt_while_waiting_ends_the_thread() -> None:
    class Interrupted(Slow):
        def batch(self, indices: Sequence[int], device: Any = "cpu") -> Batch:
            if indices[0] == 1:
                raise KeyboardInterrupt
            return super().batch(indices, device)

    stream = prefetched(Interrupted(), endless([]), "cpu", ahead=1)
    assert next(numbers(stream)) == 0
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert not named("prefetch")


def test_an_order_that_cannot_be_made_is_raised_as_it_is() -> None:
    def orders() -> Iterator[list[int]]:
        yield [7]
        raise ValueError("no more")

    stream = prefetched(Slow(), orders(), "cpu", ahead=0)
    assert next(numbers(stream)) == 7
    with pytest.raises(ValueError, match="no more"):
        next(stream)
    assert not named("prefetch")


def test_orders_are_read_by_the_caller_and_nothing_random_is_drawn(kept: bool) -> None:
    readers = []

    def orders() -> Iterator[list[int]]:
        for index in range(5):
            readers.append(threading.current_thread())
            yield [index]

    before = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002
    list(prefetched(Frames(Counted()), orders(), "cpu"))
    assert before == (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert set(readers) == {threading.current_thread()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gets_the_same_batches_beside_its_work(kept: bool) -> None:
    frames = Frames(Counted())
    orders = [[index % COUNT, (index * 5 + 1) % COUNT] for index in range(40)]
    matrix = torch.rand((2000, 2000), device="cuda")
    for device in ("cuda", torch.device("cuda:0")):
        sums = []
        for batch in prefetched(frames, orders, device, ahead=3):
            assert batch.images.is_cuda and batch.labels.is_cuda
            matrix = (matrix @ matrix).softmax(1)  # the batch is read long after the host has given it up
            sums.append((batch.images.double().sum() + batch.labels.double().sum() + 0 * matrix.sum())[None])
        expected = [float(part.images.double().sum() + part.labels.double().sum()) for part in map(of_dataset, orders)]
        assert torch.cat(sums).tolist() == expected
    assert equal(Batch(*(part.cpu() for part in frames.batch([3, 1], "cuda"))), of_dataset([3, 1]))
