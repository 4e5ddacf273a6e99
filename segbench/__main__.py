"""`python -m segbench` is `segbench`; `torchrun -m segbench` starts it on several GPUs."""

import os

from segbench.cli import main

if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    # Torch, loaded later, would warn in each process that looking for unused weights takes time (`data_parallel.py`).
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

main()
