"""The textbook way to train: each tuple describes its own images, and pairs are gone through one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.textbook import NormalizedImages, Size, TextbookModel, mine_query, write_feature_cache

Tuple = tuple[int, int, np.ndarray]  # query, of the queries; positive and negatives, of the database


class TupleImages(Dataset):
    """Tuples by index as their images, float32 [2 + negatives, 3, H, W]: query, positive, negatives."""

    def __init__(self, tuples: Sequence[Tuple], images: NormalizedImages, database_count: int):
        self.tuples, self.images, self.database_count = tuples, images, database_count

    def __len__(self) -> int:
        return len(self.tuples)

    def __getitem__(self, index: int) -> torch.Tensor:
        query, positive, negatives = self.tuples[index]
        rows = [self.database_count + query, positive, *negatives.tolist()]
        return torch.stack([self.images[row] for row in rows])


def train_tuples(
    model: TextbookModel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Sequence[Tuple]],
    files: Sequence[Path],
    database_count: int,
    size: Size,
    margin: float,
    workers: int = 0,
) -> float:
    """One step for each batch of tuples. Images that tuples share are decoded and described for each.

    Args:
        batches: tuples, at least one in each batch.
        files: the database's images, then the queries'; all of one size unless `size` resizes them.
        margin: in squared descriptor distance.

    Returns:
        the mean of the batches' losses; 0 where there are none.
    """
    model.train()
    images = NormalizedImages(files, size, model.mean, model.std)
    tuples, indices = [item for batch in batches for item in batch], iter(range(sum(map(len, batches))))
    loader = DataLoader(
        TupleImages(tuples, images, database_count),
        batch_sampler=[[next(indices) for _ in batch] for batch in batches],
        num_workers=workers,
        collate_fn=_join_tuples,
    )
    losses = []
    for values, lengths in loader:
        descriptors = model(values.to(model.mean.device))
        violation, violating = _violations_one_by_one(descriptors, lengths, margin)
        loss = violation / max(violating, 1)
        optimizer.zero_grad()
        if violating:  # momentum and weight decay alone shall not move the weights
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses)) if losses else 0.0


@dataclass(frozen=True)
class EpochRules:
    """How an epoch is trained.

    Attributes:
        size: (height, width) in pixels that images are resized to; None where all have one size already.
        block: queries between two rounds of describing all images.
        batch_size: queries in a step; those without a violating negative are skipped.
        cache_batch_size: images that are described at once.
        workers: processes that decode; 0 decodes in this one.
        sample, negatives, margin: as in `mine_query`.
        seed: of the draws.
    """

    size: Size
    block: int
    batch_size: int
    cache_batch_size: int
    workers: int
    sample: int
    negatives: int
    margin: float
    seed: int = 0


def train_epoch(
    model: TextbookModel,
    optimizer: torch.optim.Optimizer,
    files: Sequence[Path],
    database_count: int,
    order: Sequence[int],
    positives: Sequence[np.ndarray],
    not_negatives: Sequence[np.ndarray],
    cache_path: Path,
    rules: EpochRules,
) -> tuple[float, int]:
    """Train on queries once: describe everything, mine a block, train its tuples, and so on.

    Args:
        files: the database's images, then the queries'.
        order: queries, indices from 0, each with at least one positive.
        positives, not_negatives: for every query of the set, database indices.
        cache_path: the HDF5 file that holds the descriptors; written anew for each block.

    Returns:
        the mean loss of all steps, and the number of tuples.
    """
    generator = np.random.default_rng(rules.seed)
    loss_sum, steps, count = 0.0, 0, 0
    for start in range(0, len(order), rules.block):
        queries = order[start : start + rules.block]
        write_feature_cache(cache_path, model, files, rules.size, rules.cache_batch_size, rules.workers)
        mined = _mine_block(cache_path, queries, database_count, positives, not_negatives, generator, rules)
        batches = [mined[first : first + rules.batch_size] for first in range(0, len(mined), rules.batch_size)]
        batches = [[item for item in batch if item] for batch in batches]
        batches = [batch for batch in batches if batch]
        loss = train_tuples(model, optimizer, batches, files, database_count, rules.size, rules.margin, rules.workers)
        loss_sum, steps = loss_sum + loss * len(batches), steps + len(batches)
        count += sum(map(len, batches))
    return loss_sum / max(steps, 1), count


def _join_tuples(tuples: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Images of tuples [n, 3, H, W] each -> all of them [sum, 3, H, W], and each tuple's number of images."""
    return torch.cat(tuples), [len(images) for images in tuples]


def _violations_one_by_one(descriptors: torch.Tensor, lengths: list[int], margin: float) -> tuple[torch.Tensor, int]:
    """The sum of max(0, d^2(q, p) + margin - d^2(q, n)), pair by pair, and how many pairs violate.

    Args:
        descriptors: [sum of lengths, dim], of each tuple its query, its positive, its negatives.
        lengths: each tuple's number of images.
    """
    total = descriptors.new_zeros(())
    violating = torch.zeros((), dtype=torch.int64, device=descriptors.device)
    for rows in descriptors.split(lengths):
        query, positive, *negatives = rows
        for negative in negatives:
            to_positive = (query - positive).pow(2).sum()
            to_negative = (query - negative).pow(2).sum()
            violation = (to_positive + margin - to_negative).clamp_min(0)
            total = total + violation
            violating = violating + (violation > 0)
    return total, int(violating)


def _mine_block(
    cache_path: Path,
    queries: Sequence[int],
    database_count: int,
    positives: Sequence[np.ndarray],
    not_negatives: Sequence[np.ndarray],
    generator: np.random.Generator,
    rules: EpochRules,
) -> list[Tuple | None]:
    """The tuple of each query; None for one that has no violating negative."""
    tuples = []
    with h5py.File(cache_path, "r") as file:
        for query in map(int, queries):
            mined = mine_query(
                file["features"], database_count + query, positives[query], not_negatives[query], database_count,
                generator, rules.sample, rules.negatives, rules.margin,
            )  # fmt: skip
            tuples.append((query, *mined) if mined else None)
    return tuples
