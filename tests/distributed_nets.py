"""Networks that test_distributed.py trains through the command line, as `distributed_nets:name`."""

from torch import Tensor, nn

from segbench.engine.distributed import rank
from segbench.models.input import Input


class Plain(nn.Module):
    """Two convolutions: nothing of what several processes do otherwise than one."""

    input = Input(scale=1 / 255)

    def __init__(self, num_classes: int, p: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Dropout(p), nn.Conv2d(8, num_classes, 3, padding=1)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Failing(Plain):
    """Raises in the `at`-th pass of one process, in training or, with `at` below 0, when it is asked to predict."""

    def __init__(self, num_classes: int, process: int, at: int) -> None:
        super().__init__(num_classes)
        self.process, self.at, self.passes = process, at, 0

    def forward(self, images: Tensor) -> Tensor:
        if images.is_meta:
            return super().forward(images)
        self.passes += self.training
        if rank() == self.process and (self.passes == self.at if self.training else self.at < 0):
            raise ValueError("one process does not like it")
        return super().forward(images)
