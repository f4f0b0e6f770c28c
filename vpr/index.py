"""--mode=index: describe a database once, for --mode=locate."""

import argparse

from vpr.database_index import index_file, make_index
from vpr.finished_model import load_finished
from vpr.model import choose_device, device_line
from vpr.places import load_database
from vpr.progress import say


def run(options: argparse.Namespace) -> None:
    """Write the index of the database of --split."""
    photos = load_database(options)
    device = choose_device(options)
    say(device_line(device))
    finished = load_finished(options)
    finished.model.place(device, options.precision)
    make_index(index_file(finished, photos, options), finished, photos, options, device)
