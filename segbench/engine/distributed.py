"""One run on several processes, a GPU each: what they share out, add up and tell each other.

`torchrun` starts the processes and ends them all when one fails; `torch.distributed` joins them: tensors on GPUs travel
by NCCL, all others by gloo. The first process leads: it alone decides, reads and writes the work folder, and the others
do with it what it says. In one process each function here is there, and changes nothing.

What a process is killed by, or ends by, the others learn from the connection that closes (gloo) or from torchrun, never
from a clock: the first one may profile for hours while they wait.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from segbench.engine.determinism import reserve_workspaces

LONGEST_WAIT = timedelta(days=30)
"""Of one process for another; torch wants a number."""

ENDED = "ended"
"""Set in the store by the process that was the first to leave while others counted on it."""

Item = TypeVar("Item")
_store: "dist.Store | None" = None


class Ended(BaseException):
    """Another process has left, so nothing more can be done together. It is not this one's failure, and whoever
    records failures (`except Exception`) does not see it: the other process has said why."""


def launched() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_available() and dist.is_torchelastic_launched() else 1


@contextmanager
def started(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, this one computing on `device`."""
    global _store
    if launched() == 1:
        yield
        return
    if device.type == "cuda":
        reserve_workspaces(repeatable=False)  # whatever is trained: the next line starts CUDA
        torch.cuda.set_device(device)
    store, number, count = next(iter(dist.rendezvous("env://", timeout=LONGEST_WAIT)))
    # torchrun keeps it over its restarts, in which nothing that was said before holds.
    _store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=LONGEST_WAIT, store=_store, rank=number, world_size=count)
    try:
        yield
    finally:
        # Where another process has left, NCCL would wait for it here; the operating system does not.
        if not ended():
            dist.destroy_process_group()
        _store = None


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if _joined() else 0


def processes() -> int:
    return dist.get_world_size() if _joined() else 1


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()  # some builds of torch cannot


def is_first() -> bool:
    return rank() == 0


def share(items: Sequence[Item]) -> list[Item]:
    """This process's part: neighbours, one more for the first ones where they do not divide, none for the last ones
    where there are too few."""
    size, over = divmod(len(items), processes())
    first = rank() * size + min(rank(), over)
    return list(items[first : first + size + (rank() < over)])


def summed(own: Tensor) -> Tensor:
    """The sum over the processes, the same bits in each; integers come out exactly."""
    if processes() == 1:
        return own
    total = own.detach().clone()
    dist.all_reduce(total)
    return total


def averaged(own: Tensor) -> Tensor:
    """The mean over the processes, the same bits in each."""
    return own if processes() == 1 else summed(own) / processes()


def gathered(own: Item) -> list[Item]:
    """At the first process what each gave, by rank; nothing at the others. What is given is pickled."""
    if processes() == 1:
        return [own]
    everyone: list[Any] = [None] * processes() if is_first() else []
    dist.gather_object(own, everyone if is_first() else None, dst=0)
    return everyone


def told(own: Item) -> Item:
    """What the first process gave, everywhere. It is pickled, so every process is as trusted as the first."""
    if processes() == 1:
        return own
    carried = [own]
    dist.broadcast_object_list(carried, src=0)
    return carried[0]


def agreed(own: bool) -> bool:
    """The first process's answer, everywhere; on the host, so that no GPU is waited for."""
    if processes() == 1:
        return own
    answer = torch.tensor(own)
    dist.broadcast(answer, src=0)
    return bool(answer)


def spread(tensors: Iterable[Tensor]) -> None:
    """Overwrite every tensor with that of the first process."""
    if processes() > 1:
        for tensor in tensors:
            carried = tensor.detach().contiguous()
            dist.broadcast(carried, src=0)
            tensor.detach().copy_(carried)


def ended() -> bool:
    """Whether a process has left while the others counted on it."""
    try:
        return _store is not None and _store.check([ENDED])
    except RuntimeError:  # the store has gone with the process that kept it
        return True


def first_to_end() -> bool:
    """Say to the others that this process leaves; False where one has left before, whose leaving is the reason."""
    if _store is None:
        return True
    try:
        return _store.add(ENDED, 1) == 1
    except RuntimeError:
        return False
