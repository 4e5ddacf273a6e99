"""Where a network runs."""

import torch

from segbench.errors import SettingError


def resolve_device(text: str) -> torch.device:
    """`auto` (the first GPU, else the CPU), `cpu` or `cuda:N` -> a device that is there; else `SettingError`."""
    if text == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or not (index == "" or index.isdigit()) or text == "cpu:":
        raise SettingError(f'--device: "{text}" is not a device; write auto, cpu or cuda:N')
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= count:
        raise SettingError(f"--device: there is no {text} here ({count} GPUs are visible to torch); use auto or cpu")
    return torch.device("cpu" if kind == "cpu" else f"cuda:{index or 0}")
