"""--mode=cluster: k-means of local descriptors from training images, the vocabulary NetVLAD starts from."""

import argparse
from pathlib import Path

from vpr.cli.specs import device_of, model_spec, places_spec, reading
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.own_folders import vocabulary_images
from vpr.data.places import training_set
from vpr.descriptors.vocabulary import IMAGES, cluster, sample_local_descriptors
from vpr.models.place_model import build_model
from vpr.models.poolings import POOLINGS
from vpr.runs.centroids import centroids_path, recipe_for, write_centroids


def run(options: argparse.Namespace) -> None:
    """Write the centroids file that train and test look for."""
    if not POOLINGS[options.pooling].clusters:
        raise UserError(f"--pooling={options.pooling} has no clusters: train and test it without --mode=cluster")
    device = device_of(options)
    places, read = places_spec(options), reading(options, device)
    images = vocabulary_images(places)
    model = build_model(model_spec(options)).to_device(device, options.precision)
    model.infer_by(options.backend, min(IMAGES, len(images.database_files)))
    recipe = recipe_for(model, *training_set(places), read.size)
    descriptors = sample_local_descriptors(
        model, read.of(images.database_files), options.seed, options.cacheBatchSize, options.num_clusters
    )  # fmt: skip
    if not processes.is_main():
        return
    centroids = cluster(descriptors, options.num_clusters, options.seed)
    path = centroids_path(Path(options.dataPath), recipe)
    write_centroids(path, recipe, centroids, descriptors)
    say(f"wrote {path}: {len(centroids)} centroids of {len(descriptors)} descriptors")
