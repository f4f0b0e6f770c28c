"""--mode=index: describe a database once, for --mode=locate."""

import argparse

from vpr.artifacts.database_index import file_to_write, make_index
from vpr.artifacts.model import load_finished
from vpr.cli.specs import places_spec
from vpr.common.device import choose_device, device_line
from vpr.common.progress import say
from vpr.data.places import load_database


def run(options: argparse.Namespace) -> None:
    """Write the index of the database of --split."""
    photos = load_database(places_spec(options), options.split, split_required="split" in options.given)
    device = choose_device(options.device)
    say(device_line(device))
    finished = load_finished(options)
    finished.model.to_device(device, options.precision)
    path = file_to_write(finished, photos, options)
    make_index(path, finished, photos, options, device, options.index)
