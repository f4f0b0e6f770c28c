"""Which command usually comes after one, in full."""

import argparse
import shlex

from vpr.cli.flags import CLUSTER_FLAGS
from vpr.cli.options import command_line
from vpr.cli.parser import command
from vpr.data.catalogue import DATASETS, OWN

WITH_A_RUN = {"train": "test --split=test", "whiten": "test", "import": "test", "index": "locate"}


def next_command(options: argparse.Namespace) -> str:
    """The command that usually comes next; empty where none does."""
    after = WITH_A_RUN.get(options.mode)
    if options.mode == "cluster":
        from vpr.cli.specs import places_spec  # these import NumPy
        from vpr.data.places import has_split

        return command_line(options, "train" if has_split(places_spec(options), "train") else "index", CLUSTER_FLAGS)
    if after == "locate" and DATASETS[options.dataset].layout == OWN:
        words = [command(), after, f"--root={shlex.quote(options.root)}"]  # the folder knows its model
    elif after and (options.run or options.mode in ("train", "import")):
        words = [command(), after, f"--resume={shlex.quote(str(options.run))}" if options.run else "--resume"]
    elif after:
        words = [command_line(options, after, CLUSTER_FLAGS)]
    else:
        return ""
    return " ".join([*words, *["IMAGE.jpg"] * (after == "locate")])
