"""The vocabulary: local descriptors sampled from training photos, and their k-means."""

import argparse

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import Progress, say
from vpr.data.places import PlacePhotos
from vpr.data.reader import PhotoReader, in_batches
from vpr.descriptors.describe import automatic_batch_size, that_fit
from vpr.models.place_model import PlaceModel

PHOTOS = 500
DESCRIPTORS_PER_PHOTO = 100
ITERATIONS = 100


@torch.no_grad()
def sample_local_descriptors(
    model: PlaceModel, photos: PlacePhotos, options: argparse.Namespace, device: torch.device
) -> np.ndarray:
    """L2-normalised local descriptors of random places in random training database photos, float32 [N, D].

    With several processes each takes a share of the photos, and process 0 gets all descriptors.

    Raises:
        UserError: there are fewer than there shall be clusters.
    """
    reader = PhotoReader(photos.database_files, options.imageSize, options.threads, device)
    chosen = np.random.default_rng(options.seed).permutation(len(reader.files))[:PHOTOS]
    if len(chosen) < PHOTOS:
        say(f"{photos.places.name} has only {len(chosen)} database photos, not {PHOTOS}: taking all")
    model.eval()
    batches = in_batches(len(chosen), options.cacheBatchSize or automatic_batch_size(model, reader, device))
    mine, samples = batches[processes.rank() :: processes.world()], {}
    loaded = that_fit(reader.batches([[int(chosen[place]) for place in batch] for batch in mine]), model, device)
    with Progress("local descriptors", sum(map(len, mine))) as progress:
        for places, batch in zip(mine, loaded, strict=True):
            for group in batch:
                features = model.local_descriptors(group.values.to(device, non_blocking=True)).cpu()
                for place, feature in zip(group.places.tolist(), features, strict=True):
                    photo = int(chosen[places[place]])
                    samples[places[place]] = sample_places(feature, seed=[options.seed, photo])
            progress.advance(len(places))
    samples = {place: rows for part in processes.gather(samples) for place, rows in part.items()}
    descriptors = np.concatenate([samples[place] for place in sorted(samples)]) if samples else np.empty((0, 1), "f4")
    if not processes.is_main():
        return descriptors
    if len(descriptors) < options.num_clusters:
        raise UserError(
            f"{len(chosen)} photos gave {len(descriptors)} local descriptors, {options.num_clusters} clusters need at "
            "least as many: add photos or lower --num_clusters"
        )
    if len(descriptors) < DESCRIPTORS_PER_PHOTO * len(chosen):
        say(f"photos have fewer than {DESCRIPTORS_PER_PHOTO} places: {len(descriptors)} descriptors in all")
    return descriptors


def sample_places(feature: torch.Tensor, seed: list[int]) -> np.ndarray:
    """Up to 100 random places of a map [D, h, w], L2-normalised: [n, D]. The seed is the photo's own."""
    places = feature.flatten(1).T  # [h * w, D]
    chosen = np.random.default_rng(seed).permutation(len(places))[:DESCRIPTORS_PER_PHOTO]
    return F.normalize(places[torch.from_numpy(chosen)], dim=1).numpy()


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
    return kmeans.centroids.reshape(num_clusters, -1)
