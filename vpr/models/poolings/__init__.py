"""Poolings: maps of local descriptors to one descriptor. A new one is a file in this folder and a line in the table.

base.py             What every pooling answers, and how one is found by its name
gem.py              generalised-mean pooling, GeM (Radenovic et al.)
global_pooling.py   maximum and mean of each channel, class token
hard_vlad.py        VLAD with hard assignment (AnyLoc, Keetha et al.)
netvlad_pooling.py  NetVLAD, the layer of netvlad.py, as a pooling of a model
"""

from dataclasses import dataclass

from vpr.common.errors import UserError


@dataclass(frozen=True)
class Entry:
    """A pooling that --pooling names, or a form of netvlad that --vladAssign names."""

    module: str  # its file in this folder
    clusters: bool = False  # whether it is a `ClusterPooling`, which starts from what --mode=cluster makes
    class_token: bool = False  # whether it takes a vision transformer's class token instead of the map


POOLINGS = {
    "netvlad": Entry("netvlad_pooling", clusters=True),
    "max": Entry("global_pooling"),
    "avg": Entry("global_pooling"),
    "gem": Entry("gem"),
    "cls": Entry("global_pooling", class_token=True),
}

# How netvlad assigns local descriptors to clusters.
ASSIGNMENTS = {"soft": POOLINGS["netvlad"], "hard": Entry("hard_vlad", clusters=True)}


def pooling_entry(pooling: str, vlad_assign: str, cluster_dim: int | None, vladv2: bool) -> Entry:
    """The entry of the pooling that some flags describe; UserError where they contradict each other or name none."""
    if pooling not in POOLINGS:
        raise UserError(f"pooling {pooling!r} is unknown, wanted one of {', '.join(POOLINGS)}: name another")
    if vlad_assign not in ASSIGNMENTS:
        raise UserError(f"--vladAssign={vlad_assign} is unknown, wanted one of {', '.join(ASSIGNMENTS)}: name another")
    if vlad_assign != "soft" and pooling != "netvlad":
        raise UserError(f"--vladAssign={vlad_assign} is a form of netvlad, not of --pooling={pooling}: drop one")
    if vlad_assign != "soft" and vladv2:
        raise UserError(f"--vladv2 is a soft assignment, --vladAssign={vlad_assign} is another: drop one")
    if cluster_dim is not None and not POOLINGS[pooling].clusters:
        raise UserError(f"--clusterDim={cluster_dim} maps clusters, --pooling={pooling} has none: drop one")
    return ASSIGNMENTS[vlad_assign] if pooling == "netvlad" else POOLINGS[pooling]
