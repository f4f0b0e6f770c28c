"""--mode=prune: drop the filters of a run's trunk that matter least, and start a new, smaller run from the rest.

Filters go whole, with what reads them, by the dependency graph of Torch-Pruning (Fang et al., CVPR 2023): the
model left is an ordinary dense one. How much a filter matters: the first-order Taylor term of the training
loss on mined tuples (Molchanov et al., ICLR 2017), or the size of its weights. Those left then learn to
stand in for those gone (`vpr/reconstruction.py`), before the ordinary training.
"""

import argparse
import copy

import torch
from torch import nn

from vpr.cli.specs import reading
from vpr.common.errors import UserError
from vpr.common.progress import Progress, say
from vpr.descriptors.describe import describe_batch
from vpr.descriptors.vocabulary import cluster, sample_local_descriptors
from vpr.models.backbones.base import Backbone
from vpr.models.place_model import PlaceModel
from vpr.models.poolings.base import ClusterPooling
from vpr.training import trainer
from vpr.training.losses import select_rows, triplet_violations
from vpr.training.mining import batches_of_queries
from vpr.training.state import new_state, splits_of
from vpr.training.trainer import photos_of_tuples

TUPLES = 64  # on which filters are judged
FILTERS_TOGETHER = 8  # what is left is a multiple, as processors like it
LARGEST_SCALE = 2.0**16  # of the loss, for gradients in float16


def scaled_gradients(loss: torch.Tensor, weights: list[torch.Tensor], scale: float) -> tuple[list[torch.Tensor], float]:
    """Gradients of a loss by a backward pass of `scale` times it, so that small ones do not vanish in float16.

    Returns:
        the gradients, divided by the scale again, and the scale: halved until no gradient overflowed.
    """
    while True:
        found = torch.autograd.grad(loss * scale, weights, retain_graph=True)
        if scale <= 1 or all(gradient.isfinite().all() for gradient in found):
            return [gradient / scale for gradient in found], scale
        scale /= 2


def accumulate_gradients(
    model: PlaceModel, training: trainer.TrainingSet, options: argparse.Namespace, device: torch.device
) -> None:
    """Leave in all weights of the trunk their gradient of the loss on mined tuples.

    Raises:
        UserError: no query has a hard negative.
    """
    state = new_state(model, options, splits_of(training.photos), device)
    reader = reading(options, device).of(training.photos.files)
    queries = trainer.query_blocks(training.usable, options, 1)[0][: 2 * TUPLES]
    tuples = trainer.mine_block(state, training, reader, queries, options, device, "pruning")[:TUPLES]
    if not tuples:
        raise UserError("no query has a negative within the margin: raise --margin, or use --importance=magnitude")
    batches = batches_of_queries(queries, tuples, options.batchSize)
    wanted = [photos_of_tuples(batch, len(training.photos.database_files)) for batch in batches]
    weights, scale = list(model.backbone.parameters()), LARGEST_SCALE if model.dtype == torch.float16 else 1.0
    with model.backbone.wholly_trained(), Progress("pruning: gradients", len(tuples), "tuples") as progress:
        loaded = reader.batches([photos for photos, *_ in wanted])
        for batch, (_, query, positive, negative, owner), photos in zip(batches, wanted, loaded, strict=True):
            descriptors = describe_batch(model, photos)
            violation, violating = triplet_violations(
                *(select_rows(descriptors, rows) for rows in (query, positive, negative)),
                torch.as_tensor(owner, device=device), options.margin,
            )  # fmt: skip
            found, scale = scaled_gradients(violation / max(violating, 1), weights, scale)
            for value, gradient in zip(weights, found, strict=True):
                value.grad = gradient if value.grad is None else value.grad + gradient
            progress.advance(len(batch))


def prune_trunk(encoder: Backbone, ratio: float, importance: str) -> tuple[Backbone, list[torch.Tensor]]:
    """A copy of a trunk without the share `ratio` of each convolution's filters, and the indices of those kept.

    Args:
        importance: taylor, from the gradients in its weights, or magnitude.

    Raises:
        UserError: nothing is left of a layer, or the backbone's filters cannot be dropped.
    """
    import torch_pruning

    if not encoder.prunable():
        raise UserError("--mode=prune cannot drop filters of this backbone: prune vgg16 or alexnet")
    fewest = min(filters_of(encoder))
    if round(fewest * (1 - ratio)) < FILTERS_TOGETHER:
        raise UserError(
            f"--pruneRatio={ratio} leaves fewer than {FILTERS_TOGETHER} of a layer's {fewest} filters: give less"
        )
    smaller = copy.deepcopy(encoder).to("cpu", memory_format=torch.contiguous_format)
    for layer in smaller:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # the graph is followed from output to input, which in-place layers cut
    for copied, original in zip(smaller.parameters(), encoder.parameters(), strict=True):
        copied.requires_grad_(True)
        copied.grad = None if original.grad is None else original.grad.detach().cpu()  # a copy has none
    judge = {
        "taylor": torch_pruning.importance.GroupTaylorImportance,
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
    }[importance]
    pruner = torch_pruning.pruner.MetaPruner(
        smaller, torch.zeros(1, 3, 64, 64), judge(), pruning_ratio=ratio, round_to=FILTERS_TOGETHER
    )
    pruner.step()
    gone = {name: indices for name, _, indices in pruner.pruning_history()}
    kept = [
        torch.tensor(sorted({*range(layer.out_channels)} - {*gone.get(name, ())}))
        for name, layer in encoder.named_children()
        if isinstance(layer, nn.Conv2d)
    ]
    return smaller, kept


def filters_of(encoder: Backbone) -> list[int]:
    """How many filters each convolution has."""
    return [layer.out_channels for layer in encoder.prunable()]


def recluster(
    model: PlaceModel, training: trainer.TrainingSet, options: argparse.Namespace, device: torch.device
) -> None:
    """Cluster the pruned trunk's local descriptors: other channels want other centres and another alpha."""
    if not isinstance(model.pool, ClusterPooling):
        return
    photos = training.photos
    descriptors = sample_local_descriptors(
        model, reading(options, device).of(photos.database_files), options.seed, options.cacheBatchSize,
        photos.places.name, at_least=options.num_clusters,
    )  # fmt: skip
    centroids = cluster(descriptors, options.num_clusters, options.seed)
    alpha = model.pool.init_from(*(torch.from_numpy(rows).to(device) for rows in (centroids, descriptors)))
    say(f"{options.num_clusters} new clusters, alpha {alpha:.2f}")
