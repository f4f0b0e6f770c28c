"""The vocabulary: local descriptors sampled from training images, and their k-means."""

import functools
from collections import ChainMap

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import Progress, say
from vpr.data.reader import ImageReader
from vpr.descriptors.batches import over_images
from vpr.models.place_model import PlaceModel

IMAGES = 500
DESCRIPTORS_PER_IMAGE = 100
ITERATIONS = 100


def sample_local_descriptors(
    model: PlaceModel,
    reader: ImageReader,
    seed: int,
    batch_size: int | None = None,
    at_least: int = 1,
    images: int = IMAGES,
) -> np.ndarray:
    """L2-normalised local descriptors at random positions in random images of a reader, float32 [N, D].

    With several processes each takes a share of the images, and process 0 gets all descriptors.
    Raises a UserError: there are fewer than there shall be clusters.

    Args:
        reader: of the training set's database images.
        batch_size: images at once; 0: as many as memory holds.
        at_least: how many descriptors are wanted: one for each cluster.
        images: of how many images.
    """
    chosen = np.random.default_rng(seed).permutation(len(reader.files))[:images].tolist()
    compute = functools.partial(model.of_array, model.local_descriptors)
    maps = over_images(compute, model, reader, chosen, batch_size, "local descriptors")
    own = {position: sample_of_map(feature, seed=[seed, chosen[position]]) for position, feature in maps}
    samples = dict(ChainMap(*processes.gather(own)))
    rows = [samples[position] for position in sorted(samples)]
    descriptors = np.concatenate(rows) if rows else np.empty((0, 1), np.float32)
    if not processes.is_main():
        return descriptors
    if len(descriptors) < at_least:
        raise UserError(
            f"{len(chosen)} images gave {len(descriptors)} local descriptors, {at_least} clusters need at "
            "least as many: add images or lower --num_clusters"
        )
    if len(descriptors) < DESCRIPTORS_PER_IMAGE * len(chosen):
        say(f"images have fewer than {DESCRIPTORS_PER_IMAGE} local descriptors: {len(descriptors)} in all")
    return descriptors


def sample_of_map(feature: np.ndarray, seed: list[int]) -> np.ndarray:
    """Up to 100 random local descriptors of a map [D, h, w], L2-normalised: [n, D]. The seed is the image's own."""
    descriptors = torch.from_numpy(feature).flatten(1).T  # [h * w, D]
    chosen = np.random.default_rng(seed).permutation(len(descriptors))[:DESCRIPTORS_PER_IMAGE]
    return F.normalize(descriptors[torch.from_numpy(chosen)], dim=1).numpy()


def cluster(descriptors: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """FAISS k-means on all descriptors [N, D]: centroids [num_clusters, D]."""
    kmeans = faiss.Kmeans(
        descriptors.shape[1],
        num_clusters,
        niter=ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(descriptors),  # FAISS would quietly take 256 per centroid
    )
    with Progress("k-means", ITERATIONS, "iterations") as progress:
        kmeans.train(descriptors)
        progress.advance(ITERATIONS)
    assert kmeans.centroids is not None  # it is trained
    return kmeans.centroids.reshape(num_clusters, -1)
