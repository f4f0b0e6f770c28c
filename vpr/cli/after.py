"""Which command usually comes after one, in full."""

import argparse
import shlex

from vpr.cli.flags import CLUSTER_FLAGS
from vpr.cli.options import command_line
from vpr.cli.parser import command
from vpr.data.catalogue import DATASETS, OWN
from vpr.models.spec import HUB

AFTER = {
    "train": "test --split=test", "whiten": "test", "adapt": "test", "import": "test",
    "test": "locate", "index": "locate", "locate": "serve",
}  # fmt: skip
OF_THE_SAME_IMAGES = ("test", "index", "locate")


def next_command(options: argparse.Namespace) -> str:
    """The command that usually comes next; empty where none does, or where only JSON is printed."""
    after, own = AFTER.get(options.mode), DATASETS[options.dataset].layout == OWN
    if options.mode == "cluster":
        return command_line(options, "train" if _has_split(options, "train") else "index", CLUSTER_FLAGS)
    if not after or options.json or options.loadDescriptors:
        return ""
    if own and options.mode == "adapt":
        after = "locate"
    if own and options.mode == "train" and not _has_split(options, "test"):
        after = "test"
    places = ["split"]  # those flags that name images
    if own and options.mode in ("adapt", "index", "locate"):  # the folder knows its model
        words = [command(), after, f"--root={shlex.quote(options.root)}"]
    elif options.run or options.mode in ("train", "import"):
        words = [command(), after, f"--resume={shlex.quote(str(options.run))}" if options.run else "--resume"]
        places = ["dataset", "root", "split"]
    elif (options.model or "").startswith(HUB):
        return ""
    else:
        words = [command_line(options, after, CLUSTER_FLAGS)]
    for name in places:
        if name in options.given and options.mode in OF_THE_SAME_IMAGES:
            words.append(shlex.quote(f"--{name}={getattr(options, name)}"))
    return " ".join([*words, *["IMAGE.jpg"] * (after == "locate")])


def _has_split(options: argparse.Namespace, split: str) -> bool:
    from vpr.cli.specs import places_spec  # these import NumPy
    from vpr.data.places import has_split

    return has_split(places_spec(options), split)
