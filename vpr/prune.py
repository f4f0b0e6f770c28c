"""--mode=prune: drop the filters of a run's trunk that matter least, and start a new, smaller run from the rest.

Filters go whole, with what reads them, by the dependency graph of Torch-Pruning (Fang et al., CVPR 2023): the
model left is an ordinary dense one. How much a filter matters: the first-order Taylor term of the training
loss on mined tuples (Molchanov et al., ICLR 2017), or the size of its weights. Those left then learn to
stand in for those gone (`vpr/reconstruction.py`), before the ordinary training.
"""

import argparse
import copy
import importlib.util
from pathlib import Path

import torch
from torch import nn

from netvlad import NetVLAD
from vpr import train
from vpr.cluster import cluster, sample_local_descriptors
from vpr.descriptors import describe_batch
from vpr.errors import UserError
from vpr.flags import LAYERS
from vpr.images import PhotoReader
from vpr.loss import select_rows, triplet_violations
from vpr.mining import batches_of_queries
from vpr.model import PlaceModel, build_model, choose_device, describe_model, device_line
from vpr.onnx_model import INSTALL
from vpr.places import PlacePhotos
from vpr.progress import Progress, say
from vpr.reconstruction import distill, reconstruct, whole_trunk_trained
from vpr.runs import create_run
from vpr.steps import photos_of_tuples
from vpr.training_state import TrainingState, load_model, new_state, run_flags, splits_of
from vpr.validation import find_split, measure_split, select

TUPLES = 64  # on which filters are judged
FILTERS_TOGETHER = 8  # what is left is a multiple, as processors like it
LARGEST_SCALE = 2.0**16  # of the loss, for gradients in float16


def run(options: argparse.Namespace) -> None:
    """Make the pruned run; with --nEpochs also train it."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise UserError(f"--mode=prune needs torch-pruning, which is not installed: {INSTALL}")
    if not options.run:
        raise UserError("--mode=prune starts from a trained run: train first, then give --resume [DIR]")
    device = choose_device(options)
    say(device_line(device))
    training = train.load_training_set(options)
    validation, reason = find_split(options, "val")
    if validation is None:
        say(f"{reason}: the first validation of a training after this replaces the pruned model as the best one")
    model, _ = load_model(options, options.run, options.ckpt)
    model.place(device, options.precision)
    if options.importance == "taylor":
        accumulate_gradients(model, training, options, device)
    encoder, kept = prune_trunk(model.encoder, options.pruneRatio, options.importance)
    changed = {"channels": filters_of(encoder), "trainFrom": options.given.get("trainFrom", LAYERS[options.arch][0])}
    smaller = argparse.Namespace(**{**vars(options), **changed})
    pruned = build_model(smaller, pretrained=False)
    pruned.encoder.load_state_dict(encoder.state_dict())
    pruned.place(device, options.precision)
    reader = PhotoReader(training.photos.files, options.imageSize, options.threads, device)
    reconstruct(pruned, model, kept, reader, options.seed)
    if options.distill:
        distill(pruned, model, kept[-1], reader, options.distill, options.seed)
    start_anew(pruned, training, smaller, device)
    state = new_state(pruned, smaller, splits_of(training.photos, *([validation] if validation else [])), device)
    if validation is not None:
        measure_first(state, validation, smaller, device)
    folder = create_run(
        Path(options.runsPath), options.arch, f"{options.pooling}_pruned", run_flags(smaller, pruned),
        options.savePath, state.checkpoint(smaller), best=True,
    )  # fmt: skip
    before, after = (sum(value.numel() for value in part.parameters()) for part in (model.encoder, encoder))
    say(f"{describe_model(smaller, pruned)}\ntrunk: {before / 1e6:.2f} -> {after / 1e6:.2f} million parameters")
    say(f"run: {folder}")
    if "nEpochs" in options.given:
        train.run(argparse.Namespace(**{**vars(smaller), "mode": "train", "run": folder, "ckpt": "latest"}))
    else:
        say(f"train it: python main.py --mode=train --resume={folder}")


def measure_first(
    state: TrainingState, validation: PlacePhotos, options: argparse.Namespace, device: torch.device
) -> None:
    """Take the model's recalls on val as the best so far: a training has to better them to replace it."""
    reader = validation.reader(options.imageSize, options.threads, device)
    evaluation, _ = measure_split(state.model, validation, reader, options, device)
    select(state.position, evaluation.recalls, state.position.epoch - 1)
    say(f"pruned, before any training: {evaluation.lines()}")


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
    model: PlaceModel, training: train.TrainingSet, options: argparse.Namespace, device: torch.device
) -> None:
    """Leave in all weights of the trunk their gradient of the loss on mined tuples.

    Raises:
        UserError: no query has a hard negative.
    """
    state = new_state(model, options, splits_of(training.photos), device)
    reader = PhotoReader(training.photos.files, options.imageSize, options.threads, device)
    queries = train.query_blocks(training.usable, options, 1)[0][: 2 * TUPLES]
    tuples = train.mine_block(state, training, reader, queries, options, device, "pruning")[:TUPLES]
    if not tuples:
        raise UserError("no query has a negative within the margin: raise --margin, or use --importance=magnitude")
    batches = batches_of_queries(queries, tuples, options.batchSize)
    wanted = [photos_of_tuples(batch, len(training.photos.database_files)) for batch in batches]
    weights, scale = list(model.encoder.parameters()), LARGEST_SCALE if model.dtype == torch.float16 else 1.0
    with whole_trunk_trained(model), Progress("pruning: gradients", len(tuples), "tuples") as progress:
        loaded = reader.batches([photos for photos, *_ in wanted])
        for batch, (_, query, positive, negative, owner), photos in zip(batches, wanted, loaded, strict=True):
            descriptors = describe_batch(model, photos, device)
            violation, violating = triplet_violations(
                *(select_rows(descriptors, rows) for rows in (query, positive, negative)),
                torch.as_tensor(owner, device=device), options.margin,
            )  # fmt: skip
            found, scale = scaled_gradients(violation / max(violating, 1), weights, scale)
            for value, gradient in zip(weights, found, strict=True):
                value.grad = gradient if value.grad is None else value.grad + gradient
            progress.advance(len(batch))


def prune_trunk(encoder: nn.Sequential, ratio: float, importance: str) -> tuple[nn.Sequential, list[torch.Tensor]]:
    """A copy of a trunk without the share `ratio` of each convolution's filters, and the indices of those kept.

    Args:
        importance: taylor, from the gradients in its weights, or magnitude.

    Raises:
        UserError: nothing is left of a layer.
    """
    import torch_pruning

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


def filters_of(encoder: nn.Sequential) -> list[int]:
    """How many filters each convolution has."""
    return [layer.out_channels for layer in encoder if isinstance(layer, nn.Conv2d)]


def start_anew(
    model: PlaceModel, training: train.TrainingSet, options: argparse.Namespace, device: torch.device
) -> None:
    """Cluster the pruned trunk's local descriptors: other channels want other centres and another alpha."""
    if not isinstance(model.pool, NetVLAD):
        return
    descriptors = sample_local_descriptors(model, training.photos, options, device)
    centroids = cluster(descriptors, options.num_clusters, options.seed)
    alpha = model.pool.init_params(*(torch.from_numpy(rows).to(device) for rows in (centroids, descriptors)))
    say(f"{options.num_clusters} new clusters, alpha {alpha:.2f}")
