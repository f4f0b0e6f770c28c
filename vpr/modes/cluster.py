"""--mode=cluster: k-means of local descriptors from training photos, the vocabulary NetVLAD starts from."""

import argparse

from vpr.artifacts.centroids import centroids_path, recipe_for, write_centroids
from vpr.cli.specs import model_spec
from vpr.common import processes
from vpr.common.device import choose_device, device_line
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import load_places, training_set
from vpr.descriptors.vocabulary import cluster, sample_local_descriptors
from vpr.models.place_model import build_model


def run(options: argparse.Namespace) -> None:
    """Write the centroids file that train and test look for."""
    if options.pooling != "netvlad":
        raise UserError(f"--pooling={options.pooling} has no clusters: train and test it without --mode=cluster")
    device = choose_device(options)
    say(device_line(device))
    photos = load_places(options, "train")
    model = build_model(model_spec(options)).to_device(device, options.precision)
    recipe = recipe_for(options, model, *training_set(options))
    descriptors = sample_local_descriptors(model, photos, options, device)
    if not processes.is_main():
        return
    centroids = cluster(descriptors, options.num_clusters, options.seed)
    path = centroids_path(options, recipe)
    write_centroids(path, recipe, centroids, descriptors)
    say(f"wrote {path}: {len(centroids)} centroids of {len(descriptors)} descriptors")
