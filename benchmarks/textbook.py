"""The textbook ways against which the fast code is timed: same results up to rounding, plainly computed.

The pooling loops over clusters and leaves the backward to autograd, images become normalised float32 in
the workers, descriptors go through an HDF5 file, and each query is mined on its own. All images of one call have to
come out at one size, and to lie upright: their EXIF orientation is not looked at.
"""

import copy
from collections.abc import Iterator, Sequence
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
from vpr.models.place_model import PlaceModel
from vpr.training.rules import TrainingRules

NEAREST_KEPT = 100  # of the sampled negatives, before those that do not violate are left out

Size = tuple[int, int] | None  # (height, width) in pixels to resize to; None keeps the images' own


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
        mean, std: [1, 3, 1, 1] in pixels of 0..255, with which the data set normalises images.
    """

    def __init__(self, encoder: nn.Sequential, pool: nn.Module, mean: torch.Tensor, std: torch.Tensor):
        super().__init__()
        self.encoder, self.pool = encoder, pool
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images float32 [B, 3, H, W] -> descriptors [B, dim] of length 1."""
        return self.pool(self.encoder(images))


def optimizer_of(model: nn.Module, rules: TrainingRules) -> torch.optim.Optimizer:
    """The paper's: stochastic gradient descent with momentum, on all that is not frozen."""
    trained = [value for value in model.parameters() if value.requires_grad]
    return torch.optim.SGD(trained, rules.lr, rules.momentum, weight_decay=rules.weight_decay)


def textbook_of(model: PlaceModel) -> TextbookModel:
    """The textbook model with copies of the same weights, frozen where the original's are.

    Raises:
        ValueError: the pooling is a NetVLAD of version 2 or one that takes its input as it is.
    """
    # NCHW is what most public code computes in; the fast model's weights lie channels last.
    encoder = copy.deepcopy(model.encoder).to(memory_format=torch.contiguous_format)
    pool = _textbook_pool(model.pool) if isinstance(model.pool, NetVLAD) else copy.deepcopy(model.pool)
    return TextbookModel(encoder, pool, model.mean.clone(), model.std.clone())


class NormalizedImages(Dataset):
    """Image files by index as float32 [3, H, W], decoded, resized and normalised by whoever asks for them.

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
            image = file.convert("RGB")
        if self.size is not None:
            image = image.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # uint8 [3, H, W]
        return (pixels.float().div(255) - self.mean) / self.std


def describe(model: TextbookModel, files: Sequence[Path], size: Size, batch_size: int, workers: int) -> np.ndarray:
    """Descriptors float32 [N, dim] of image files, in their order."""
    return np.concatenate([rows for _, rows in _described(model, files, size, batch_size, workers)])


def write_feature_cache(
    path: Path, model: TextbookModel, files: Sequence[Path], size: Size, batch_size: int, workers: int
) -> None:
    """Write the descriptors of image files into an HDF5 file: "features", float32 [N, dim]."""
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
    """Descriptors of image files batch by batch: the first one's row, float32 [b, dim]."""
    model.eval()
    loader = DataLoader(NormalizedImages(files, size, model.mean, model.std), batch_size, num_workers=workers)
    start = 0
    for images in loader:
        with torch.no_grad():
            rows = model(images.to(model.mean.device)).cpu().numpy()
        yield start, rows
        start += len(rows)
