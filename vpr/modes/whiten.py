"""--mode=whiten: learn PCA whitening of a model's descriptors on training database images."""

import argparse

import numpy as np
import torch

from vpr.cli.load import computing, model_of, whitening_choice
from vpr.cli.specs import device_of, places_spec, reading
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import load_places, training_set
from vpr.descriptors.describe import describe, describe_sizes
from vpr.models.place_model import PlaceModel
from vpr.models.whitening import StoredWhitening, learn_whitening, load_whitening, save_whitening
from vpr.runs.pytorch_model import whitening_recipe

DEFAULT_DIM = 4096  # the paper's


def run(options: argparse.Namespace) -> None:
    """Write the whitening of the run of --resume, or of the off-the-shelf model, where test looks for it."""
    device = device_of(options)
    places = places_spec(options)
    images = load_places(places, "train")
    loaded = model_of(options, device, whitened=False)
    chosen = np.random.default_rng(options.seed).permutation(len(images.database_files))[: options.nPCA]
    model = computing(loaded.model, options, device, len(chosen))
    assert isinstance(model, PlaceModel)  # the command line refuses exported files, whose whitening is inside
    if len(chosen) < 2:
        raise UserError(f"{images.places.name} has {len(chosen)} database images: whitening needs more")
    reader = reading(options, device).of(images.database_files)
    descriptors, sizes = describe(model, reader, np.sort(chosen).tolist(), options.cacheBatchSize, "descriptors")
    if not processes.is_main():
        return
    wanted = options.pcaDim or DEFAULT_DIM
    recipe = whitening_recipe(model, whitening_choice(options, device), *training_set(places))
    path = recipe.path(loaded.folder)
    # Fewer dimensions than before are a wish for tests to come: the others stay in the file.
    before = load_whitening(path).whitening if path.is_file() else None
    if is_adapted := before is not None and before.removed is not None:
        say(f"{path}, of --mode=adapt, is replaced: adapt again to have it back")
    kept = before.dim if before and not is_adapted else 0
    whitening = learn_whitening(torch.from_numpy(descriptors), max(wanted, kept))
    dim = min(wanted, whitening.dim)
    if dim < wanted:
        say(
            f"{len(descriptors)} images and {model.dim} dimensions give {dim} components: "
            f"descriptors have {dim} dimensions, not {wanted}"
        )
    save_whitening(path, StoredWhitening(whitening, dim, recipe, len(descriptors)))
    say(f"{model.name}; images {describe_sizes(sizes, resized=options.imageSize is not None)}")
    say(f"wrote {path}: {model.dim}-D -> {dim}-D, of {len(descriptors)} images")
    if dim < whitening.dim:
        say(f"it holds {whitening.dim} dimensions as before: --mode=test --pcaDim=N takes the first N of them")
