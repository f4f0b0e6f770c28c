"""Gradient steps on tuples: describe their photos, count violations, move the weights."""

import argparse

import numpy as np
import torch

from vpr import processes
from vpr.descriptors import Source, describe_batch
from vpr.loss import select_rows, triplet_violations
from vpr.memory import out_of_memory_says
from vpr.mining import TrainingTuple
from vpr.model import PlaceModel
from vpr.progress import Progress
from vpr.training_state import TrainingState


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
    describer = processes.in_parallel(BatchDescriber(state.model.train(), device))
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

    def __init__(self, model: PlaceModel, device: torch.device):
        super().__init__()
        self.model, self.device = model, device

    def forward(self, batch: list) -> torch.Tensor:
        """Photos of a step by size -> their descriptors [B, descriptor_dim]."""
        return describe_batch(self.model, batch, self.device)


def take_step(state: TrainingState, violation: torch.Tensor, violating: int) -> None:
    """One step down the gradient of the loss: all processes' violations over the number of violating pairs."""
    position = state.position
    total, pairs = processes.sums(violation.item(), violating)
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
