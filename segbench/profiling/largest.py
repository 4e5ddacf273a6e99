"""The largest batch that a GPU holds: doubled until memory is refused, then bisected, each try in a fresh process.

What a GPU holds depends on what else is on it, so the number is of this device as it was. A CPU has no such number: its
memory is handed out before it is there, and the machine would swap, or kill the process, before PyTorch is refused.
"""

from collections.abc import Callable

from segbench.profiling.fresh import call_fresh
from segbench.profiling.memory import Job, measure

LIMIT = 4096
# A batch is drawn on the host: when that is refused memory, the GPU has not been asked yet.
HOST_ALLOCATOR = "CPUAllocator"


def largest_batch(fits: Callable[[int], bool | None], limit: int = LIMIT, start: int = 1) -> int | None:
    """The largest batch from 1 to `limit` that `fits`, which must say yes up to it and no from there on.

    The first question is `start`. None when not even one image fits, or as soon as `fits` answers None: cannot tell.
    """
    fitting, too_large = 0, limit + 1
    batch = min(start, limit)
    while too_large - fitting > 1:
        answer = fits(batch)
        if answer is None:
            return None
        if answer:
            fitting = batch
        else:
            too_large = batch
        batch = min(2 * fitting, limit) if too_large > limit else (fitting + too_large) // 2
    return fitting or None


def search(job: Job, limit: int = LIMIT) -> tuple[int | None, tuple[str, ...]]:
    """The largest batch for this job, the first try being the job's own; None with a note that says why."""
    if not job.device.startswith("cuda"):
        return None, ("largest batch not searched: a CPU would swap, or kill the process, before memory is refused",)
    fitted, notes = [0], []

    def fits(batch: int) -> bool | None:
        tried = job._replace(batch=batch)
        error = call_fresh(measure, tried, timeout_s=tried.patience_s).error
        if error is None:
            fitted.append(batch)
            return True
        if error.startswith("out of memory") and HOST_ALLOCATOR not in error:
            return False
        notes.append(f"{job.mode} largest batch not found: {error} at batch {batch}; {max(fitted)} fitted")
        return None

    found = largest_batch(fits, limit, job.batch)
    if found is None and not notes:
        notes.append(f"{job.mode} largest batch: not even one image fits")
    if found == limit:
        notes.append(f"{job.mode} largest batch: no larger one than {limit} was tried")
    return found, tuple(notes)
