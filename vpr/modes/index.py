"""--mode=index: describe a database once, for --mode=locate, hloc and COLMAP."""

import argparse
from pathlib import Path

import torch

from vpr.artifacts.database_index import WantedIndex, file_to_write, make_index
from vpr.artifacts.hloc import write_hloc_files
from vpr.cli.load import model_of
from vpr.cli.specs import hloc_files, places_spec, reading
from vpr.common.device import choose_device, device_line
from vpr.common.progress import say
from vpr.data.places import load_database


def run(options: argparse.Namespace) -> None:
    """Write the index of the database of --split, and the files of hloc and COLMAP that are wanted."""
    places = places_spec(options)
    images = load_database(places, options.split, split_required="split" in options.given)
    hloc = hloc_files(options)
    hloc.check(images, places.root)
    device = choose_device(options.device)
    say(device_line(device))
    loaded = model_of(options, device)
    loaded.model.to_device(device, options.precision)
    path = Path(options.indexFile) if options.indexFile else file_to_write(loaded, images, places.root)
    wanted = WantedIndex(
        options.index, options.nprobe, options.seed, options.localDim if options.localDescriptors else 0
    )
    read = reading(options, device)

    def interchange(descriptors: torch.Tensor) -> None:
        write_hloc_files(hloc, images, places.root, descriptors)

    make_index(path, loaded, images, places.root, read, wanted, options.cacheBatchSize, interchange)
