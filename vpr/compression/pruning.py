"""Pruning: drop the filters of a trained model's backbone that matter least, and make a smaller model of the rest.

Filters go whole, with what reads them, by the dependency graph of Torch-Pruning (Fang et al., CVPR 2023): the
model left is an ordinary dense one. How much a filter matters: the first-order Taylor term of the training
loss on mined tuples (Molchanov et al., ICLR 2017), or the size of its weights. Those left then learn to
stand in for those gone (`vpr.compression.reconstruction`), before the ordinary training.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from vpr.common.device import precision_name
from vpr.common.errors import UserError
from vpr.common.progress import Progress, say
from vpr.compression.reconstruction import distill, reconstruct
from vpr.data.reader import Reading
from vpr.descriptors.describe import Source
from vpr.descriptors.vocabulary import cluster, sample_local_descriptors
from vpr.models.backbones.base import Backbone
from vpr.models.place_model import PlaceModel, build_model
from vpr.models.poolings.base import ClusterPooling
from vpr.training.objective import objective_of
from vpr.training.rules import TrainingRules
from vpr.training.state import new_state, splits_of
from vpr.training.trainer import BatchDescriber
from vpr.training.training_set import TrainingSet

TUPLES = 64  # on which filters are judged
FILTERS_TOGETHER = 8  # what is left is a multiple, as processors like it
LARGEST_SCALE = 2.0**16  # of the loss, for gradients in float16


def prune(
    model: PlaceModel,
    rules: TrainingRules,
    training: TrainingSet,
    ratio: float,
    importance: str,
    reading: Reading,
    train_from: str | None = None,
    distill_images: int = 0,
    batch_size: int | None = None,
) -> PlaceModel:
    """A smaller model of the filters that matter most, refitted to give what they gave, with clusters of its own.
    Raises a UserError: no query has a hard negative, or nothing is left of a layer.

    Args:
        model: trained, on its device. Its gradients are changed, its weights are not.
        rules: of the training that importance `taylor` takes its gradients from; their seed draws images.
        training: whose images filters are judged, refitted and clustered on.
        ratio: share of each convolution's filters that goes, between 0 and 1.
        importance: taylor or magnitude.
        train_from: first layer that a training of the smaller model trains, by name.
        distill_images: images on which all layers are trained together in the end; 0: none.
        batch_size: images described at once; 0: as many as memory holds.
    """
    source = reading.of(training.images.files)
    if importance == "taylor":
        accumulate_gradients(model, rules, training, source, batch_size)
    backbone, kept = prune_backbone(model.backbone, ratio, importance)
    dim, cluster_dim = filters_of(backbone)[-1], model.spec.cluster_dim
    if cluster_dim is not None and cluster_dim > dim:
        raise UserError(
            f"--pruneRatio={ratio} leaves local descriptors of {dim} dimensions, the run's --clusterDim={cluster_dim} "
            "needs as many: give less"
        )
    pruned = build_model(replace(model.spec, channels=tuple(filters_of(backbone)), train_from=train_from), False)
    pruned.backbone.load_state_dict(backbone.state_dict())
    pruned.to_device(model.device, precision_name(model.dtype))
    reconstruct(pruned, model, kept, source, rules.seed)
    if distill_images:
        distill(pruned, model, kept[-1], source, distill_images, rules.seed)
    recluster(pruned, training, reading, rules.seed, batch_size)
    return pruned


def scaled_gradients(
    loss: torch.Tensor, weights: Sequence[torch.Tensor], scale: float
) -> tuple[list[torch.Tensor], float]:
    """Gradients of a loss by a backward pass of `scale` times it, so that small ones do not vanish in float16, and the
    scale, halved until none overflowed."""
    while True:
        found = torch.autograd.grad(loss * scale, weights, retain_graph=True)
        if scale <= 1 or all(gradient.isfinite().all() for gradient in found):
            return [gradient / scale for gradient in found], scale
        scale /= 2


def accumulate_gradients(
    model: PlaceModel, rules: TrainingRules, training: TrainingSet, source: Source, batch_size: int | None = None
) -> None:
    """Leave in all weights of the backbone their gradient of the loss on mined tuples.

    Images of the source that came through frozen layers give these no gradient.
    Raises a UserError: no query has a hard negative.
    """
    objective = objective_of(rules, training, source, batch_size)
    block = objective.sample(new_state(model, rules, splits_of(training.images)), TUPLES, "pruning")
    if not block.batches:
        raise UserError("no query has a negative within the margin: raise --margin, or use --importance=magnitude")
    weights, scale = list(model.backbone.parameters()), LARGEST_SCALE if model.dtype == torch.float16 else 1.0
    describer = BatchDescriber(model, rules.gradient_cache)
    with model.backbone.wholly_trained(), Progress("pruning: gradients", sum(block.sizes), block.unit) as progress:
        loaded = source.batches([batch.images for batch in block.batches])
        for batch, size, images in zip(block.batches, block.sizes, loaded, strict=True):
            loss_sum, pairs = objective.loss(describer(images), batch)[:2]
            found, scale = scaled_gradients(loss_sum / max(pairs, 1), weights, scale)
            for value, gradient in zip(weights, found, strict=True):
                value.grad = gradient if value.grad is None else value.grad + gradient
            progress.advance(size)


def prune_backbone(encoder: Backbone, ratio: float, importance: str) -> tuple[Backbone, list[torch.Tensor]]:
    """A copy of a backbone without the share `ratio` of each convolution's filters, and the indices of those kept.

    By importance taylor, from the gradients in its weights, or magnitude.
    Raises a UserError: nothing is left of a layer, or the backbone's filters cannot be dropped.
    """
    import torch_pruning

    if not encoder.prunable():
        raise UserError("--mode=prune cannot drop filters of this backbone: prune vgg16 or alexnet")
    fewest = min(filters_of(encoder))
    if round(fewest * (1 - ratio)) < FILTERS_TOGETHER:
        raise UserError(
            f"--pruneRatio={ratio} leaves fewer than {FILTERS_TOGETHER} of a layer's {fewest} filters: give less"
        )
    smaller = copy.deepcopy(encoder).to("cpu").to(memory_format=torch.contiguous_format)
    for layer in smaller:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # the graph is followed from output to input, which in-place layers cut
    for copied, original in zip(smaller.parameters(), encoder.parameters(), strict=True):
        copied.requires_grad_(True)
        copied.grad = None if original.grad is None else original.grad.detach().cpu()  # a copy has none
    judge = getattr(torch_pruning.importance, f"Group{importance.title()}Importance")
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
    return [layer.out_channels for layer in encoder.prunable()]


def recluster(
    model: PlaceModel, training: TrainingSet, reading: Reading, seed: int, batch_size: int | None = None
) -> None:
    """Cluster the pruned backbone's local descriptors: other channels want other centres and another alpha."""
    if not isinstance(model.pool, ClusterPooling):
        return
    reader, clusters = reading.of(training.images.database_files), model.spec.clusters
    descriptors = sample_local_descriptors(model, reader, seed, batch_size, clusters)
    centroids = cluster(descriptors, clusters, seed)
    alpha = model.pool.init_from(*(torch.from_numpy(rows).to(model.device) for rows in (centroids, descriptors)))
    say(f"{clusters} new clusters, alpha {alpha:.2f}")
