"""A network in training on several processes: each has its part of every batch, and all make the same update.

DistributedDataParallel (Li et al., arXiv:2006.15704) averages the processes' gradients while the backward pass runs.
The loss is one sum over a batch's pixels divided by one number, so each process divides its own sum by the divisor of
all and multiplies by the number of processes, which the average takes out again: the gradients are those of one process
but for the order in which floats are added.

Batch normalisation is the exception: each process normalises with its own part of the batch and the running averages
are the first one's, unless `sync_norm` asks for all of it.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segbench.data.batches import Batch
from segbench.engine.distributed import launched, processes, summed
from segbench.engine.loss import divided, divisor, loss_sum
from segbench.engine.recipe import LossNormaliser, Recipe
from segbench.errors import SettingError


def check_recipe(recipe: Recipe, device: torch.device) -> None:
    """`SettingError` for what this many processes cannot do as the recipe says."""
    count = launched()
    if recipe.batch_size % count:
        raise SettingError(
            f"recipe.batch_size is {recipe.batch_size}, which {count} processes cannot share evenly; "
            f"it is that of all together: take a multiple of {count}, or another --nproc-per-node"
        )
    if recipe.sync_norm and count > 1 and device.type != "cuda":
        raise SettingError("recipe.sync_norm: torch's SyncBatchNorm works on GPUs alone; set it to false, or use GPUs")


def parallel(model: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """The network to call in training, `model` itself in one process. Everything else, its weights above all, stays
    with `model`, whose weights become those of the first process; with `sync_norm` its layers are replaced in place.
    """
    if processes() == 1:
        return model
    if recipe.sync_norm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # Networks have weights that some batch leaves out. And else gradients would be arranged anew after the first update
    # of a process, so that the first one after a resume would add three or more numbers in another order.
    return DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=True
    )


def normalised_together(recipe: Recipe) -> int:
    """How many images a batch normalisation sees at once in training."""
    return recipe.batch_size if recipe.sync_norm else recipe.batch_size // processes()


def batch_loss(
    logits: Float[Tensor, "n channels h w"],
    labels: UInt8[Tensor, "n h w"],
    void: int,
    class_weights: Float[Tensor, " k"] | None = None,
    normaliser: LossNormaliser = "valid-pixels",
) -> Float[Tensor, ""]:
    """`loss.segmentation_loss`, of logits and labels that are this process's part of a batch: what it differentiates.
    The mean over the processes is the loss of the whole batch."""
    own = loss_sum(logits, labels, void, class_weights) * processes()
    by = divisor(labels, void, class_weights, normaliser)
    return divided(own, None if by is None else summed(by))


def nothing_to_learn(batch: Batch, void: int) -> Batch:
    """The same images without a label: what a process is given where a short batch has no image for it."""
    return batch._replace(labels=torch.full_like(batch.labels, void))
