"""The street plan of one quarter: avenues crossing streets, gently bent, and what their ground looks like.

The plan is a plain grid in lattice metres (a to the right, b upwards): avenues run along b at fixed a,
streets run along a at fixed b. A smooth bend and a rotation carry the lattice into the quarter's local
metres (x east, y north); both have closed-form inverses, so any ground point can be looked up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIDEWALK = 3.2  # metres from the kerb to the house fronts
OUTSKIRTS = 42.0  # metres of built-up street beyond the outermost crossings
SURVEYED_OUTSKIRTS = 22.0  # how much of that is surveyed by database cameras

ASPHALT, PAVING, KERB, PAINT, YARD = np.array(
    [(0.33, 0.33, 0.35), (0.60, 0.57, 0.53), (0.72, 0.71, 0.69), (0.93, 0.93, 0.90), (0.36, 0.42, 0.28)], np.float32
)[..., None]


@dataclass(frozen=True)
class StreetPlan:
    """Centre lines and widths of a quarter's streets, metres.

    Attributes:
        avenues [A], avenue_halves [A]: lattice a of each avenue and half its road width.
        streets [B], street_halves [B]: lattice b of each street and half its road width.
        bends [2]: how far the bend pushes a and b aside; wavelengths [2] and phases [2] of the bend.
        rotation: turn of the whole quarter, radians.
        grain [256, 256]: blotches of asphalt and paving in -1 to 1.
    """

    avenues: np.ndarray
    avenue_halves: np.ndarray
    streets: np.ndarray
    street_halves: np.ndarray
    bends: np.ndarray
    wavelengths: np.ndarray
    phases: np.ndarray
    rotation: float
    grain: np.ndarray

    def to_local(self, lattice: np.ndarray) -> np.ndarray:
        """Lattice points [..., 2] to local metres [..., 2]."""
        x = lattice[..., 0] + self._push(0, lattice[..., 1])
        y = lattice[..., 1] + self._push(1, x)
        cosine, sine = math.cos(self.rotation), math.sin(self.rotation)
        return np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)

    def to_lattice(self, local: np.ndarray) -> np.ndarray:
        """Local metres [..., 2] to lattice points [..., 2]: the exact inverse of `to_local`."""
        cosine, sine = math.cos(self.rotation), math.sin(self.rotation)
        x = cosine * local[..., 0] + sine * local[..., 1]
        y = cosine * local[..., 1] - sine * local[..., 0]
        b = y - self._push(1, x)
        return np.stack([x - self._push(0, b), b], axis=-1)

    def _push(self, axis: int, where: np.ndarray) -> np.ndarray:
        wave = np.float32(2 * np.pi / self.wavelengths[axis])
        return np.float32(self.bends[axis]) * np.sin(where * wave + np.float32(self.phases[axis]))

    def extent(self) -> tuple[float, float, float, float]:
        """Lattice bounds of the built-up area: least a, greatest a, least b, greatest b."""
        avenues, streets = self.avenues, self.streets
        return avenues[0] - OUTSKIRTS, avenues[-1] + OUTSKIRTS, streets[0] - OUTSKIRTS, streets[-1] + OUTSKIRTS


def draw_street_plan(random: np.random.Generator) -> StreetPlan:
    """A plan of three avenues and two streets with blocks and widths of their own."""
    avenues = np.concatenate([[0.0], np.cumsum(random.uniform(54.0, 74.0, 2))])
    streets = np.concatenate([[0.0], np.cumsum(random.uniform(56.0, 70.0, 1))])
    grain = random.normal(size=[256, 256])
    blurred = sum(np.roll(grain, (i, j), (0, 1)) for i in range(3) for j in range(3)) / 3.0
    return StreetPlan(
        avenues=avenues,
        avenue_halves=random.uniform(3.2, 5.6, 3),
        streets=streets,
        street_halves=random.uniform(3.0, 6.2, 2),
        bends=random.uniform(4.0, 9.0, 2) * random.choice([-1, 1], 2),
        wavelengths=random.uniform(150.0, 240.0, 2),
        phases=random.uniform(0, 2 * np.pi, 2),
        rotation=float(random.uniform(-0.6, 0.6)),
        grain=np.clip(0.5 * grain + 0.5 * blurred, -2, 2).astype(np.float32) / 2,
    )


def survey_stations(plan: StreetPlan, count: int) -> np.ndarray:
    """`count` camera stations about 10 m apart along all centre lines: lattice points [count, 2]."""
    spacing = 10.2
    while len(points := _stations_every(plan, spacing)) < count:
        spacing *= 0.99
    return points[:count]


def _stations_every(plan: StreetPlan, spacing: float) -> np.ndarray:
    reach = SURVEYED_OUTSKIRTS
    lines = [(1, b, plan.avenues[0] - reach, plan.avenues[-1] + reach) for b in plan.streets]
    lines += [(0, a, plan.streets[0] - reach, plan.streets[-1] + reach) for a in plan.avenues]
    points: list[np.ndarray] = []
    for fixed_axis, fixed, start, end in lines:
        for along in np.arange(start, end, spacing):
            point = np.array([along, fixed] if fixed_axis == 1 else [fixed, along])
            # A crossing is surveyed once, not once per street.
            if all(np.hypot(*(point - other)) > 0.6 * spacing for other in points):
                points.append(point)
    return np.array(points)


def ground_albedo(plan: StreetPlan, local: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """What lies on the ground: road, markings, crossings, kerbs, pavement and yards.

    Args:
        local: ground points in local metres [N, 2].
        footprint: size of a pixel on the ground at each point, metres [N]; edges are that soft.

    Returns:
        sRGB-like colours [3, N] in 0-1.
    """
    lattice = plan.to_lattice(local)
    a, b = lattice[:, 0], lattice[:, 1]
    offset_a, gap_a = _nearest_line(a, plan.avenues, plan.avenue_halves)
    offset_b, gap_b = _nearest_line(b, plan.streets, plan.street_halves)
    gap = np.minimum(gap_a, gap_b)  # below 0 on a road, metres from its kerb otherwise
    soft = np.maximum(footprint, 0.02)

    def inside(distance: np.ndarray) -> np.ndarray:
        return np.clip(distance / soft + 0.5, 0, 1)

    on_road, on_walk = inside(-gap), inside(SIDEWALK + 0.4 - gap)
    painted = np.maximum(
        _markings(inside, offset_a, gap_a, b, gap_b, soft), _markings(inside, offset_b, gap_b, a, gap_a, soft)
    )
    colour = YARD + on_walk * (PAVING - YARD)
    colour += on_road * (ASPHALT - colour)
    colour += inside(0.12 - np.abs(gap - 0.12)) * (KERB - colour)
    colour += (0.85 * painted * on_road) * (PAINT - colour)
    slabs = on_walk * (1 - on_road) * inside(np.abs((a + b) % 1.2 - 0.6) - 0.56)
    cell = (lattice * np.float32(4.0)).astype(np.int32) & 255
    grain = plan.grain.reshape(-1).take(256 * cell[:, 0] + cell[:, 1]) * np.clip(0.3 / soft, 0, 1)
    return colour * (1 - 0.12 * slabs + 0.10 * grain)


def kerb_distances(plan: StreetPlan, lattice: np.ndarray) -> tuple[float, float]:
    """Metres of a lattice point [2] beyond the kerbs of the nearest avenue and street; negative on a road."""
    avenue = np.abs(lattice[0] - plan.avenues) - plan.avenue_halves
    street = np.abs(lattice[1] - plan.streets) - plan.street_halves
    return float(avenue.min()), float(street.min())


def _nearest_line(where: np.ndarray, lines: np.ndarray, halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed metres from the nearest centre line and metres beyond its kerb, both [N]."""
    offset, gap = np.full_like(where, 1e3), np.full_like(where, 1e3)
    for line, half in zip(lines.astype(np.float32), halves.astype(np.float32), strict=True):
        this = where - line
        beyond = np.abs(this) - half
        nearer = beyond < gap
        offset, gap = np.where(nearer, this, offset), np.where(nearer, beyond, gap)
    return offset, gap


def _markings(
    inside: Callable[[np.ndarray], np.ndarray],
    offset: np.ndarray,
    gap: np.ndarray,
    along: np.ndarray,
    crossing_gap: np.ndarray,
    soft: np.ndarray,
) -> np.ndarray:
    """Share of paint [N]: the dashed centre line, and a zebra before each crossing street."""
    away = np.clip(crossing_gap - 4.5, 0, 1)
    dashes = inside(1.2 - np.abs(along % 5.0 - 2.5)) * inside(0.09 - np.abs(offset)) * away
    stripes = inside(0.26 - np.abs(offset % 1.05 - 0.52)) * inside(-0.4 - gap)
    zebra = stripes * inside(1.2 - np.abs(crossing_gap - 2.0))
    return np.maximum(dashes, zebra) * np.clip(1.2 - soft, 0, 1)
