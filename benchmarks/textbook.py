"""The textbook ways against which the fast code is timed: same results up to rounding, plainly computed.

The pooling loops over clusters and leaves the backward to autograd, photos become normalised float32 in
the workers, descriptors go through an HDF5 file, each query is mined on its own, and each tuple decodes
and describes its own photos. All photos of one call have to come out at one size, and to lie upright:
their EXIF orientation is not looked at.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.utils.data import DataLoader, Dataset

from netvlad import NetVLAD
from vpr.model import PlaceModel

NEAREST_KEPT = 100  # of the sampled negatives, before those that do not violate are left out

Size = tuple[int, int] | None  # (height, width) in pixels to resize to; None keeps the photos' own
Tuple = tuple[int, int, np.ndarray]  # query, of the queries; positive and negatives, of the database


class LoopNetVLAD(nn.Module):
    """NetVLAD, version 1, one cluster after the other; takes the state dict of `netvlad.NetVLAD`.

    Args:
        num_clusters: K.
        dim: D, the length of a local descriptor.
    """

    def __init__(self, num_clusters: int = 64, dim: int = 512):
        super().__init__()
        self.conv = nn.Conv2d(dim, num_clusters, kernel_size=1, bias=False)
        self.centroids = nn.Parameter(torch.rand(num_clusters, dim))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, H, W] -> [B, K * D]."""
        features = F.normalize(features, dim=1)
        assignment = F.softmax(self.conv(features).flatten(2), dim=1)  # [B, K, P], P = H * W places
        places = features.flatten(2)  # [B, D, P]
        vlad = places.new_zeros(len(places), *self.centroids.shape)  # [B, K, D]
        for k in range(len(self.centroids)):
            residuals = places[:, None] - self.centroids[None, k : k + 1, :, None]  # [B, 1, D, P]
            weighted = residuals * assignment[:, k : k + 1, None]
            vlad[:, k : k + 1] = weighted.sum(dim=-1)
        vlad = F.normalize(vlad, dim=2)  # intra-normalisation
        return F.normalize(vlad.flatten(1), dim=1)


class TextbookModel(nn.Module):
    """Trunk and pooling in float32, NCHW in memory.

    Attributes:
        mean, std: [1, 3, 1, 1] in pixels of 0..255, with which the data set normalises photos.
    """

    def __init__(self, encoder: nn.Sequential, pool: nn.Module, mean: torch.Tensor, std: torch.Tensor):
        super().__init__()
        self.encoder, self.pool = encoder, pool
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Normalised photos float32 [B, 3, H, W] -> descriptors [B, dim] of length 1."""
        return self.pool(self.encoder(photos))


def textbook_of(model: PlaceModel) -> TextbookModel:
    """The textbook model with copies of the same weights, frozen where the original's are.

    Raises:
        ValueError: the pooling is a NetVLAD of version 2 or one that takes its input as it is.
    """
    # NCHW is what most public code computes in; the fast model's weights lie channels last.
    encoder = copy.deepcopy(model.encoder).to(memory_format=torch.contiguous_format)
    pool = _textbook_pool(model.pool) if isinstance(model.pool, NetVLAD) else copy.deepcopy(model.pool)
    return TextbookModel(encoder, pool, model.mean.clone(), model.std.clone())


class NormalizedPhotos(Dataset):
    """Photo files by index as float32 [3, H, W], decoded, resized and normalised by whoever asks for them.

    Args:
        mean, std: [1, 3, 1, 1] in pixels of 0..255.
    """

    def __init__(self, files: Sequence[Path], size: Size, mean: torch.Tensor, std: torch.Tensor):
        self.files, self.size = files, size
        self.mean, self.std = (values.detach().cpu().view(3, 1, 1) / 255 for values in (mean, std))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index]) as file:
            photo = file.convert("RGB")
        if self.size is not None:
            photo = photo.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous()  # uint8 [3, H, W]
        return (pixels.float().div(255) - self.mean) / self.std


class TuplePhotos(Dataset):
    """Tuples by index as their photos, float32 [2 + negatives, 3, H, W]: query, positive, negatives."""

    def __init__(self, tuples: Sequence[Tuple], photos: NormalizedPhotos, database_count: int):
        self.tuples, self.photos, self.database_count = tuples, photos, database_count

    def __len__(self) -> int:
        return len(self.tuples)

    def __getitem__(self, index: int) -> torch.Tensor:
        query, positive, negatives = self.tuples[index]
        rows = [self.database_count + query, positive, *negatives.tolist()]
        return torch.stack([self.photos[row] for row in rows])


def describe(model: TextbookModel, files: Sequence[Path], size: Size, batch_size: int, workers: int) -> np.ndarray:
    """Descriptors float32 [N, dim] of photo files, in their order."""
    return np.concatenate([rows for _, rows in _described(model, files, size, batch_size, workers)])


def write_feature_cache(
    path: Path, model: TextbookModel, files: Sequence[Path], size: Size, batch_size: int, workers: int
) -> None:
    """Write the descriptors of photo files into an HDF5 file: "features", float32 [N, dim]."""
    with h5py.File(path, "w") as file:
        for start, rows in _described(model, files, size, batch_size, workers):
            features = file.require_dataset("features", (len(files), rows.shape[1]), np.float32)
            features[start : start + len(rows)] = rows


def mine_query(
    features: h5py.Dataset,
    query_row: int,
    positives: np.ndarray,
    not_negatives: np.ndarray,
    database_count: int,
    generator: np.random.Generator,
    sample: int,
    negatives: int,
    margin: float,
) -> tuple[int, np.ndarray] | None:
    """Choose a query's nearest positive and its hard negatives from descriptors on disk.

    Args:
        features: [N, dim], the database's rows first.
        query_row: the query's row in `features`.
        positives, not_negatives: database indices; there is at least one positive.
        sample: random negatives drawn.
        negatives: hard negatives kept, at most.
        margin: in squared distance; a negative is hard if d^2 < d^2(positive) + margin.

    Returns:
        positive and negatives, nearest first, as database indices; None where no negative is hard.
    """
    query = features[query_row][None]  # [1, dim]
    positives = np.sort(positives)  # HDF5 reads rows in ascending order only
    distance, place = NearestNeighbors(n_neighbors=1).fit(features[positives]).kneighbors(query)
    to_positive, positive = distance[0, 0] ** 2, int(positives[place[0, 0]])

    allowed = np.setdiff1d(np.arange(database_count), not_negatives)
    drawn = np.sort(generator.choice(allowed, min(sample, len(allowed)), replace=False))
    if len(drawn) == 0:
        return None
    nearest = NearestNeighbors(n_neighbors=min(NEAREST_KEPT, len(drawn))).fit(features[drawn])
    distance, places = nearest.kneighbors(query)
    hard = drawn[places[0][distance[0] ** 2 < to_positive + margin]][:negatives]
    return (positive, hard) if len(hard) else None


def train_tuples(
    model: TextbookModel,
    optimizer: torch.optim.Optimizer,
    tuples: Sequence[Tuple],
    files: Sequence[Path],
    database_count: int,
    size: Size,
    batch_size: int,
    margin: float,
    workers: int = 0,
) -> float:
    """One step for each batch of tuples. Photos that tuples share are decoded and described for each.

    Args:
        files: the database's photos, then the queries'; all of one size unless `size` resizes them.
        margin: in squared descriptor distance.

    Returns:
        the mean of the batches' losses; 0 where there are no tuples.
    """
    model.train()
    photos = NormalizedPhotos(files, size, model.mean, model.std)
    loader = DataLoader(
        TuplePhotos(tuples, photos, database_count), batch_size, num_workers=workers, collate_fn=_join_tuples
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
        size: (height, width) in pixels that photos are resized to; None where all have one size already.
        block: queries between two rounds of describing all photos.
        batch_size: tuples in a step.
        cache_batch_size: photos that are described at once.
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
        files: the database's photos, then the queries'.
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
        tuples = _mine_block(cache_path, queries, database_count, positives, not_negatives, generator, rules)
        loss = train_tuples(
            model, optimizer, tuples, files, database_count, rules.size, rules.batch_size, rules.margin, rules.workers
        )
        block_steps = math.ceil(len(tuples) / rules.batch_size)
        loss_sum, steps, count = loss_sum + loss * block_steps, steps + block_steps, count + len(tuples)
    return loss_sum / max(steps, 1), count


def _textbook_pool(pool: NetVLAD) -> LoopNetVLAD:
    if pool.vladv2 or not pool.normalize_input:
        raise ValueError("the textbook NetVLAD is version 1 and normalises its input")
    textbook = LoopNetVLAD(pool.num_clusters, pool.dim).to(pool.centroids.device)
    textbook.load_state_dict(pool.state_dict())
    for copied, original in zip(textbook.parameters(), pool.parameters(), strict=True):
        copied.requires_grad_(original.requires_grad)
    return textbook


def _described(
    model: TextbookModel, files: Sequence[Path], size: Size, batch_size: int, workers: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Descriptors of photo files batch by batch: the first one's row, float32 [b, dim]."""
    model.eval()
    loader = DataLoader(NormalizedPhotos(files, size, model.mean, model.std), batch_size, num_workers=workers)
    start = 0
    for photos in loader:
        with torch.no_grad():
            rows = model(photos.to(model.mean.device)).cpu().numpy()
        yield start, rows
        start += len(rows)


def _join_tuples(tuples: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Photos of tuples [n, 3, H, W] each -> all of them [sum, 3, H, W], and each tuple's number of photos."""
    return torch.cat(tuples), [len(photos) for photos in tuples]


def _violations_one_by_one(descriptors: torch.Tensor, lengths: list[int], margin: float) -> tuple[torch.Tensor, int]:
    """The sum of max(0, d^2(q, p) + margin - d^2(q, n)), pair by pair, and how many pairs violate.

    Args:
        descriptors: [sum of lengths, dim], of each tuple its query, its positive, its negatives.
        lengths: each tuple's number of photos.
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
) -> list[Tuple]:
    tuples = []
    with h5py.File(cache_path, "r") as file:
        for query in map(int, queries):
            mined = mine_query(
                file["features"], database_count + query, positives[query], not_negatives[query], database_count,
                generator, rules.sample, rules.negatives, rules.margin,
            )  # fmt: skip
            if mined:
                tuples.append((query, *mined))
    return tuples
