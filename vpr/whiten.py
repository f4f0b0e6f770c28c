"""--mode=whiten: learn PCA whitening of a model's descriptors on training database photos."""

import argparse

import numpy as np

from vpr import processes
from vpr.descriptors import describe, describe_sizes
from vpr.errors import UserError
from vpr.finished_model import load_finished
from vpr.images import PhotoReader
from vpr.model import choose_device, describe_model, device_line
from vpr.places import load_places
from vpr.progress import say
from vpr.whitening import learn_whitening, save_whitening, whitening_file

DEFAULT_DIM = 4096  # the paper's


def run(options: argparse.Namespace) -> None:
    """Write the whitening of the run of --resume, or of the off-the-shelf model, where test looks for it."""
    device = choose_device(options)
    say(device_line(device))
    photos = load_places(options, "train")
    finished = load_finished(options, whitened=False)
    model = finished.model.place(device, options.precision)
    chosen = np.random.default_rng(options.seed).permutation(len(photos.database_files))[: options.nPCA]
    if len(chosen) < 2:
        raise UserError(f"{photos.places.name} has {len(chosen)} database photos: whitening needs more")
    if len(chosen) < options.nPCA:
        say(f"{photos.places.name} has only {len(chosen)} database photos, not {options.nPCA}: taking all")
    reader = PhotoReader(photos.database_files, options.imageSize, options.threads, device)
    descriptors, sizes = describe(model, reader, np.sort(chosen).tolist(), options, device, "descriptors")
    if not processes.is_main():
        return
    wanted = options.pcaDim or DEFAULT_DIM
    whitening = learn_whitening(descriptors, wanted)
    if whitening.dim < wanted:
        say(
            f"{len(descriptors)} photos and {model.descriptor_dim} dimensions give {whitening.dim} components: "
            f"descriptors have {whitening.dim} dimensions, not {wanted}"
        )
    path = whitening_file(finished.folder, model)
    save_whitening(path, whitening)
    say(f"{describe_model(options, model)}; images {describe_sizes(sizes, resized=options.imageSize is not None)}")
    say(f"wrote {path}: {model.descriptor_dim}-D -> {whitening.dim}-D, of {len(descriptors)} photos")
