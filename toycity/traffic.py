"""What gets in the way of a picture: parked and passing vehicles, pedestrians and tree trunks."""

import numpy as np

from toycity.city import Quarter
from toycity.render import Billboard
from toycity.streets import SIDEWALK, kerb_distances

# Share of each kind and how near to the lens one may stand, metres.
KINDS = {"car": (0.45, 4.5), "van": (0.17, 5.5), "pedestrian": (0.30, 2.8), "trunk": (0.08, 3.0)}


def scatter_traffic(
    quarter: Quarter, random: np.random.Generator, camera_position: np.ndarray, ahead: np.ndarray, count: int
) -> list[Billboard]:
    """Place up to `count` things around the point `ahead` [2], not too near the camera; local metres."""
    kinds, rules = list(KINDS), np.array(list(KINDS.values()))
    placed: list[Billboard] = []
    for _ in range(8 * count):
        if len(placed) == count:
            break
        kind = kinds[random.choice(len(kinds), p=rules[:, 0])]
        position = ahead + random.normal(0, 6.0, 2)
        variant = int(random.integers(12))
        lattice = quarter.plan.to_lattice(position)
        gap_a, gap_b = kerb_distances(quarter.plan, lattice)
        if _belongs(kind, min(gap_a, gap_b)) and np.hypot(*(position - camera_position)) > KINDS[kind][1]:
            along = np.array([0.0, 1.0]) if gap_a < gap_b else np.array([1.0, 0.0])
            direction = quarter.plan.to_local(lattice + along) - position
            placed.append(Billboard(kind, variant, position, direction / np.hypot(*direction)))
    return placed


def _belongs(kind: str, gap: float) -> bool:
    """Vehicles keep to the road, trunks to the pavement's edge; people go anywhere on the street."""
    if kind in ("car", "van"):
        return gap < -1.0
    if kind == "trunk":
        return 0.5 < gap < 1.3
    return gap < SIDEWALK - 0.8
