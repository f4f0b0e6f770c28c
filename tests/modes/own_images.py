"""Folders of own images for the tests of modes, and the flags of the small model that describes them."""

import itertools
import json

from drawing import draw_image

MODEL = ["--arch=alexnet", "--fromscratch", "--pooling=avg", "--threads=0", "--device=cpu"]
FP32 = [*MODEL, "--precision=fp32"]


def image_name(metres, mark):
    """The name of an image so many metres east of the first one, in zone 17N."""
    return f"@{585000 + metres}@4477000@17@T@{mark}@.png"


def draw_split(root, database, queries=0, step=30, sizes=((96, 72),), query_size=(96, 72), alike=True):
    """Draws the split val of a folder: database images in a row, `step` metres apart, and queries 3 m beside them.

    Args:
        sizes: (width, height) in pixels of database images, in turn.
        alike: whether each query shows what the database image beside it shows.
    """
    for n, size in zip(range(database), itertools.cycle(sizes), strict=False):
        draw_image(root / "val" / "database" / image_name(step * n, n), size, [2, n])
    for n in range(queries):
        draw_image(root / "val" / "queries" / image_name(step * n + 3, f"q{n}"), query_size, [2 if alike else 1, n])
    return root


def database_names(root):
    """Names of the database's files, in the order of its descriptors."""
    return sorted(path.name for path in (root / "val" / "database").iterdir())


def a_query(root):
    return next((root / "val" / "queries").iterdir())


def names_found(out):
    """The names of each image's matches, of what locate printed as JSON."""
    return [[match["name"] for match in answer["matches"]] for answer in json.loads(out)]
