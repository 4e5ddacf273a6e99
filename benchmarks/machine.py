"""On what a benchmark ran, in words."""

import os
import platform
from pathlib import Path

import torch


def processor() -> str:
    """The model of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def described(where: torch.device) -> str:
    """The device that was measured, and that no GPU was where none was."""
    if where.type == "cuda":
        return f"{torch.cuda.get_device_name(where)} ({processor()}, {os.cpu_count()} processors)"
    return f"{processor()}, {torch.get_num_threads()} threads; no GPU was measured"
