"""What a profile measures: the resolution, the batches, the number of passes and where a pass begins. No torch here.

The defaults are those of SegNet's Table 6 (Badrinarayanan, Kendall & Cipolla, PAMI 2017, section 4.3): 360x480, times
as the mean of 10 passes at batch 1, training memory at batch 4, inference memory at batch 1.
"""

from typing import Literal

from pydantic import PositiveInt

from segbench.spec import Size, Spec

Scope = Literal["model", "model+input"]

PROFILE_VERSION = 2
"""Part of every profile's key: raised when a change changes what is measured."""


class ProfileSpec(Spec):
    """The settings of one profile; sizes are height x width, batches are images.

    `protocol: caffe-time` is what `caffe time` does: `warmup` unrecorded passes, then `repetitions` forward and
    backward passes of the *training* network, its loss included. An inference forward is timed the same way beside it.

    In the scope `model` a forward begins at the numbers that the network is fed; in `model+input` at 8-bit RGB images
    on the device, so that what the model's `input` makes of them is timed and weighed with every forward.
    """

    res: Size = (360, 480)
    protocol: Literal["caffe-time"] = "caffe-time"
    scope: Scope = "model"
    time_batch: PositiveInt = 1
    warmup: PositiveInt = 1
    repetitions: PositiveInt = 10
    memory: bool = True
    train_memory_batch: PositiveInt = 4
    infer_memory_batch: PositiveInt = 1
