"""--mode=index: describe a database once, for --mode=locate."""

import argparse
from pathlib import Path

from vpr.artifacts.database_index import WantedIndex, file_to_write, make_index
from vpr.cli.load import model_of
from vpr.cli.specs import places_spec, reading
from vpr.common.device import choose_device, device_line
from vpr.common.progress import say
from vpr.data.places import load_database


def run(options: argparse.Namespace) -> None:
    """Write the index of the database of --split."""
    places = places_spec(options)
    images = load_database(places, options.split, split_required="split" in options.given)
    device = choose_device(options.device)
    say(device_line(device))
    loaded = model_of(options, device)
    loaded.model.to_device(device, options.precision)
    path = Path(options.indexFile) if options.indexFile else file_to_write(loaded, images, places.root)
    wanted = WantedIndex(options.index, options.nprobe, options.seed)
    make_index(path, loaded, images, places.root, reading(options, device), wanted, options.cacheBatchSize)
