"""--mode=train: weakly supervised training on tuples of query, positive and hard negatives.

Epoch: a fresh permutation of the queries, in blocks. Block: describe all training photos with the
model as it is, mine the block's tuples from these descriptors, take gradient steps on them. After the
epoch: validate, keep the best. A checkpoint follows each block and each epoch. With pretrained weights
all passes start from what the frozen layers made of each photo, computed once (`vpr/trunk_cache.py`).
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

from vpr.artifacts.runs import save_checkpoint
from vpr.cli.specs import places_spec
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.memory import out_of_memory_says, where_it_fits
from vpr.common.progress import Progress, say
from vpr.data.places import PlacePhotos, load_places, require_queries
from vpr.descriptors.describe import Source, describe, describe_batch
from vpr.models.place_model import PlaceModel
from vpr.training.log import peak_memory_mb
from vpr.training.losses import select_rows, triplet_violations
from vpr.training.mining import MiningRules, TrainingTuple, batches_of_queries, mine
from vpr.training.state import TrainingState


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """The training split with, for each query, its potential positives and what may not be a negative."""

    photos: PlacePhotos
    positives: list[np.ndarray]
    not_negatives: list[np.ndarray]
    usable: np.ndarray  # queries that have a positive


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the photos of the two splits come from, each the database's, then the queries'."""

    training: Source
    validation: Source


def train_epoch(
    state: TrainingState,
    training: TrainingSet,
    source: Source,
    options: argparse.Namespace,
    device: torch.device,
    folder: Path,
) -> int:
    """Train on all queries once, from the block on at which the state stands.

    Returns:
        photos that went through the model, each time they did.
    """
    position, photos = state.position, 0
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(options, position.epoch)
    blocks = query_blocks(training.usable, options, position.epoch)
    while position.blocks_done < len(blocks):
        name = f"epoch {position.epoch} block {position.blocks_done + 1}/{len(blocks)}"
        queries = blocks[position.blocks_done]
        tuples = mine_block(state, training, source, queries, options, device, name)
        batches = batches_of_queries(queries, tuples, options.batchSize)
        train_block(state, source, len(training.photos.database_files), batches, options, device, name)
        photos += len(training.photos.database_files) + len(queries)
        photos += sum(2 + len(each.negatives) for each in tuples)
        position.blocks_done += 1
        _save(folder, state, options)
    return photos


def learning_rate(options: argparse.Namespace, epoch: int) -> float:
    """The rate of an epoch (from 1): multiplied by lrGamma every lrStep epochs."""
    return options.lr * options.lrGamma ** ((epoch - 1) // options.lrStep)


def query_blocks(usable: np.ndarray, options: argparse.Namespace, epoch: int) -> list[np.ndarray]:
    """A fresh permutation of the queries, cut where descriptors are refreshed.

    The interval doubles with each drop of the learning rate: the slower the model changes, the longer
    its descriptors stay true (the original release does so).
    """
    order = np.random.default_rng([options.seed, epoch]).permutation(usable)
    if options.cacheRefreshRate == 0:
        return [order]
    interval = options.cacheRefreshRate * 2 ** ((epoch - 1) // options.lrStep)
    return [order[start : start + interval] for start in range(0, len(order), interval)]


def mine_block(
    state: TrainingState,
    training: TrainingSet,
    source: Source,
    queries: np.ndarray,
    options: argparse.Namespace,
    device: torch.device,
    name: str,
) -> list[TrainingTuple]:
    """Describe the database and the block's queries with the model as it is, and choose tuples."""
    database_size = len(training.photos.database_files)
    photos = [*range(database_size), *(database_size + queries).tolist()]
    descriptors, _ = describe(state.model, source, photos, options.cacheBatchSize, f"{name}: descriptors")
    if not processes.is_main():
        return processes.broadcast(None)
    descriptors = where_it_fits(descriptors, device)
    tuples = mine(
        queries,
        descriptors[:database_size],
        descriptors[database_size:],
        training.positives,
        training.not_negatives,
        state.remembered,
        MiningRules(options.nNeg, options.nNegSample, options.margin, options.seed),
        state.position.epoch,
    )
    return processes.broadcast(tuples)


def load_training_set(options: argparse.Namespace) -> TrainingSet:
    """The training split. Queries without a potential positive are left out, aloud."""
    photos = load_places(places_spec(options), "train")
    require_queries(photos)
    positives = photos.places.training_positives()
    usable = np.flatnonzero([len(indices) > 0 for indices in positives])
    say(
        f"{photos.places.name}: {len(photos.database_files)} database photos, {len(usable)} queries; "
        f"{len(positives) - len(usable)} queries without a potential positive are left out"
    )
    if len(photos.database_files) < 2 * options.nNeg or len(usable) < options.batchSize:
        raise UserError(
            f"{photos.places.name} has {len(photos.database_files)} database photos and {len(usable)} usable queries: "
            f"training needs {2 * options.nNeg} (2 x --nNeg) and {options.batchSize} (--batchSize) at least; "
            "add photos, or cluster and test without training"
        )
    return TrainingSet(photos, positives, photos.places.not_negatives(), usable)


def _save(folder: Path, state: TrainingState, options: argparse.Namespace, best: bool = False) -> None:
    if processes.is_main():
        save_checkpoint(folder, state.checkpoint(options), best)


def _out_of_patience(state: TrainingState, options: argparse.Namespace) -> bool:
    stop = 0 < options.patience <= state.position.epochs_without_gain
    if stop:
        say(f"no better validation for {state.position.epochs_without_gain} epochs: stopping")
    return stop


def _epoch_row(
    state: TrainingState, photos: int, seconds: float, options: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """The figures of the epoch under way, by the columns of metrics.csv."""
    position = state.position
    return {
        "epoch": position.epoch,
        "loss": position.loss_sum / max(position.batches, 1),
        "tuples": position.tuples,
        "violating_per_tuple": position.violating / max(position.tuples, 1),
        "learning_rate": learning_rate(options, position.epoch),
        "seconds": seconds,
        "images_per_second": photos / seconds,
        "memory_mb": peak_memory_mb(device),
    }


def train_block(
    state: TrainingState,
    source: Source,
    database_size: int,
    batches: list[list[TrainingTuple]],
    options: argparse.Namespace,
    device: torch.device,
    name: str,
) -> None:
    """One optimiser step for each batch of tuples. Each process takes its share of every batch.

    Args:
        batches: the tuples of each batch of queries, at least one each.
    """
    describer = processes.in_parallel(BatchDescriber(state.model.train()))
    # A process without a tuple takes the first: all have to take part in every step.
    shares = [batch[processes.rank() :: processes.world()] or batch[:1] for batch in batches]
    wanted = [photos_of_tuples(share, database_size) for share in shares]
    loaded = source.batches([photos for photos, *_ in wanted])
    count = sum(map(len, batches))
    with Progress(f"{name}: training", count, "tuples") as progress, out_of_memory_says("lower --batchSize"):
        for batch, (_, query, positive, negative, owner), photos in zip(batches, wanted, loaded, strict=True):
            descriptors = describer(photos)
            violation, violating = triplet_violations(
                *(select_rows(descriptors, rows) for rows in (query, positive, negative)),
                torch.as_tensor(owner, device=device), options.margin,
            )  # fmt: skip
            if processes.rank() >= len(batch):
                violation, violating = 0 * violation, 0
            take_step(state, violation, violating)
            state.position.tuples += len(batch)
            progress.advance(len(batch))


class BatchDescriber(torch.nn.Module):
    """`describe_batch` as a module with one forward for a step, as DistributedDataParallel wants it."""

    def __init__(self, model: PlaceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: list) -> torch.Tensor:
        """Photos of a step by size -> their descriptors [B, descriptor_dim]."""
        return describe_batch(self.model, batch)


def take_step(state: TrainingState, violation: torch.Tensor, violating: int) -> None:
    """One step down the gradient of the loss: all processes' violations over the number of violating pairs."""
    position = state.position
    total, pairs = processes.all_reduce_sum(violation.item(), violating)
    state.optimizer.zero_grad()
    if pairs:  # without one there is nothing to learn, and momentum alone shall not move
        state.scaler.scale(violation / pairs).backward()  # gradients, like the loss, are sums over the processes
        state.scaler.step(state.optimizer)
        state.scaler.update()
    position.steps += 1
    position.loss_sum += total / max(pairs, 1)
    position.violating += int(pairs)
    position.batches += 1


def photos_of_tuples(tuples: list[TrainingTuple], database_size: int) -> tuple[np.ndarray, ...]:
    """The distinct photos of a batch of tuples, and where each tuple's photos are among them.

    Returns:
        photos: indices into the split's files; a photo that several tuples share is there once.
        query, positive: [T], negative: [N]: places in `photos`.
        owner: [N], the tuple of each negative.
    """
    query = [item.query + database_size for item in tuples]
    positive = [item.positive for item in tuples]
    negative = np.concatenate([item.negatives for item in tuples])
    owner = np.repeat(np.arange(len(tuples)), [len(item.negatives) for item in tuples])
    photos, places = np.unique(np.concatenate([query, positive, negative]), return_inverse=True)
    count = len(tuples)
    return photos, places[:count], places[count : 2 * count], places[2 * count :], owner
