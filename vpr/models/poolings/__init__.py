"""Poolings: maps of local descriptors to one descriptor. A new one is a file in this folder and a line in the table.

This table needs no torch, so that the command line can read it. The file of an entry has

    build(name, dim, spec) -> Pooling            see base.py
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A pooling that --pooling names.

    Attributes:
        module: its file in this folder.
        clusters: whether it is a `ClusterPooling`, which starts from what --mode=cluster makes.
        class_token: whether it takes a vision transformer's class token instead of the map.
    """

    module: str
    clusters: bool = False
    class_token: bool = False


POOLINGS = {
    "netvlad": Entry("netvlad_pooling", clusters=True),
    "max": Entry("max_avg"),
    "avg": Entry("max_avg"),
    "gem": Entry("gem"),
    "cls": Entry("cls", class_token=True),
}
