"""The vocabulary: local descriptors sampled from training images, and their k-means."""

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import Progress, say
from vpr.data.reader import ImageReader, in_batches
from vpr.descriptors.describe import automatic_batch_size, that_fit
from vpr.models.place_model import PlaceModel

IMAGES = 500
DESCRIPTORS_PER_IMAGE = 100
ITERATIONS = 100


@torch.no_grad()
def sample_local_descriptors(
    model: PlaceModel,
    reader: ImageReader,
    seed: int,
    batch_size: int = 24,
    name: str = "",
    at_least: int = 1,
    images: int = IMAGES,
) -> np.ndarray:
    """L2-normalised local descriptors of random places in random images of a reader, float32 [N, D].

    With several processes each takes a share of the images, and process 0 gets all descriptors.

    Args:
        reader: of the training set's database images.
        batch_size: images at once; 0: as many as memory holds.
        name: of the set of images, for messages.
        at_least: how many descriptors are wanted: one for each cluster.
        images: of how many images.

    Raises:
        UserError: there are fewer than there shall be clusters.
    """
    chosen = np.random.default_rng(seed).permutation(len(reader.files))[:images]
    if len(chosen) < images:
        say(f"{name} has only {len(chosen)} database images, not {images}: taking all")
    model.eval()
    batches = in_batches(len(chosen), batch_size or automatic_batch_size(model, reader))
    own, samples = batches[processes.rank() :: processes.world()], {}
    loaded = that_fit(reader.batches([[int(chosen[place]) for place in batch] for batch in own]), model)
    with Progress("local descriptors", sum(map(len, own))) as progress:
        for places, batch in zip(own, loaded, strict=True):
            for group in batch:
                features = model.local_descriptors(group.values.to(model.device, non_blocking=True)).cpu()
                for place, feature in zip(group.places.tolist(), features, strict=True):
                    image = int(chosen[places[place]])
                    samples[places[place]] = sample_places(feature, seed=[seed, image])
            progress.advance(len(places))
    samples = {place: rows for part in processes.gather(samples) for place, rows in part.items()}
    descriptors = np.concatenate([samples[place] for place in sorted(samples)]) if samples else np.empty((0, 1), "f4")
    if not processes.is_main():
        return descriptors
    if len(descriptors) < at_least:
        raise UserError(
            f"{len(chosen)} images gave {len(descriptors)} local descriptors, {at_least} clusters need at "
            "least as many: add images or lower --num_clusters"
        )
    if len(descriptors) < DESCRIPTORS_PER_IMAGE * len(chosen):
        say(f"images have fewer than {DESCRIPTORS_PER_IMAGE} places: {len(descriptors)} descriptors in all")
    return descriptors


def sample_places(feature: torch.Tensor, seed: list[int]) -> np.ndarray:
    """Up to 100 random places of a map [D, h, w], L2-normalised: [n, D]. The seed is the image's own."""
    places = feature.flatten(1).T  # [h * w, D]
    chosen = np.random.default_rng(seed).permutation(len(places))[:DESCRIPTORS_PER_IMAGE]
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
    assert kmeans.centroids is not None  # it is trained
    return kmeans.centroids.reshape(num_clusters, -1)
