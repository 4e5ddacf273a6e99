"""Where a network runs."""

import os

import torch

from segbench.engine.distributed import launched
from segbench.errors import SettingError


def resolve_device(text: str) -> torch.device:
    """`auto` (the first GPU, else the CPU), `cpu` or `cuda:N` -> a device that is there; else `SettingError`.

    Of several processes under torchrun each has the GPU of its number on its machine.
    """
    if launched() > 1 and text != "cpu":
        return own_gpu(text)
    if text == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or not (index == "" or index.isdigit()) or text == "cpu:":
        raise SettingError(f'--device: "{text}" is not a device; write auto, cpu or cuda:N')
    count = visible_gpus()
    if kind == "cuda" and int(index or 0) >= count:
        raise SettingError(f"--device: there is no {text} here ({count} GPUs are visible to torch); use auto or cpu")
    return torch.device("cpu" if kind == "cpu" else f"cuda:{index or 0}")


def own_gpu(text: str) -> torch.device:
    """This process's GPU, which nobody shares; the CPU where there is none."""
    if text != "auto":
        raise SettingError(f"--device {text}: torchrun gives each process a GPU of its own; write auto or cpu")
    count, here = visible_gpus(), int(os.environ["LOCAL_WORLD_SIZE"])
    if 0 < count < here:
        raise SettingError(
            f"torchrun started {here} processes here, and {count} GPUs are visible to torch; "
            f"start --nproc-per-node {count}, or give --device cpu"
        )
    return torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if count else "cpu")


def visible_gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
