"""A quarter of the toy city: its houses as vertical walls, their textures in one atlas, trees and lamps."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress, pairwise

import numpy as np
from PIL import Image, ImageDraw

from toycity.facades import FacadeStyle, draw_facade, draw_party_wall, draw_style
from toycity.streets import OUTSKIRTS, SIDEWALK, StreetPlan, draw_street_plan

SPLITS = ("train", "val", "test")
SIDES = ("south", "east", "north", "west")  # of a house, counter-clockwise
HOUSE_DEPTH = 12.0  # metres from the street front to the yard
MIP_LEVELS = 5
TWIN_SHARE = 0.12  # houses that repeat an earlier house of their quarter
HEIGHT_MAP_CELL = 0.5  # metres
KINDS = {"plan": 0, "houses": 1, "panorama": 2, "query": 3, "order": 4, "furniture": 5}


def generator(seed: int, quarter: int, kind: str, index: int = 0) -> np.random.Generator:
    """The random numbers of one thing alone, so that any image can be redrawn without the others."""
    return np.random.default_rng([seed, quarter, KINDS[kind], index])


@dataclass(frozen=True)
class Walls:
    """S vertical walls standing on the ground, local metres.

    Attributes:
        starts [S, 2], ends [S, 2]: left and right foot as seen from outside.
        heights [S]: metres.
        textures [S]: index into the atlas.
    """

    starts: np.ndarray
    ends: np.ndarray
    heights: np.ndarray
    textures: np.ndarray

    @cached_property
    def normals(self) -> np.ndarray:
        """Unit vectors pointing outside [S, 2]."""
        along = self.ends - self.starts
        along = along / np.linalg.norm(along, axis=1, keepdims=True)
        return np.stack([along[:, 1], -along[:, 0]], axis=1)

    def subset(self, chosen: np.ndarray) -> "Walls":
        """The walls named by an index array or a mask."""
        return Walls(self.starts[chosen], self.ends[chosen], self.heights[chosen], self.textures[chosen])


@dataclass(frozen=True)
class Atlas:
    """All textures with their mip levels in one row of texels.

    Attributes:
        texels [T, 4]: uint8, red, green, blue and readiness to shine at night.
        offsets, rows, columns: [textures, MIP_LEVELS] where each level starts and its size.
    """

    texels: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class Furniture:
    """A tree or lamp at a fixed place: kind, look and local position [2] in metres."""

    kind: str
    variant: int
    position: np.ndarray


@dataclass(frozen=True)
class Quarter:
    """One quarter: plan, walls, textures, street furniture and its place on the UTM grid.

    Attributes:
        footprints [houses, 4, 2]: corners in local metres; house_heights [houses].
        origin [2]: UTM easting and northing of the local origin, metres.
    """

    plan: StreetPlan
    walls: Walls
    atlas: Atlas
    footprints: np.ndarray
    house_heights: np.ndarray
    furniture: list[Furniture]
    origin: np.ndarray
    shadow_maps: dict = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class House:
    """A lattice rectangle (least a, least b, greatest a, greatest b) and which sides front a street."""

    bounds: tuple[float, float, float, float]
    fronts: frozenset[str]


def build_quarter(seed: int, quarter: int) -> Quarter:
    """Lay out and paint quarter 0, 1 or 2; the same seed always gives the same quarter."""
    plan = draw_street_plan(generator(seed, quarter, "plan"))
    random = generator(seed, quarter, "houses")
    houses = [house for block in _blocks(plan) for house in _houses_of_block(random, *block)]
    houses += _closing_houses(plan)
    styles = _draw_styles(random, len(houses))
    pieces, textures, footprints = [], [], []
    for house, style in zip(houses, styles, strict=True):
        corners = plan.to_local(_corners(house.bounds))  # [4, 2], counter-clockwise
        footprints.append(corners)
        textures.append(draw_party_wall(style, HOUSE_DEPTH))
        plain = len(textures) - 1
        for side, start, end in zip(SIDES, corners, np.roll(corners, -1, axis=0), strict=True):
            if side in house.fronts:
                textures.append(draw_facade(style, float(np.linalg.norm(end - start))))
            pieces.append((start, end, style.height, len(textures) - 1 if side in house.fronts else plain))
    starts, ends, heights, indices = (np.array(column) for column in zip(*pieces, strict=True))
    return Quarter(
        plan=plan,
        walls=Walls(starts.astype(np.float32), ends.astype(np.float32), heights.astype(np.float32), indices),
        atlas=pack_atlas(textures),
        footprints=np.array(footprints),
        house_heights=np.array([style.height for style in styles]),
        furniture=_place_furniture(generator(seed, quarter, "furniture"), plan),
        origin=np.array([585000.0 + 3000.0 * quarter, 4477000.0 + 2000.0 * quarter]),
    )


def pack_atlas(textures: list[np.ndarray]) -> Atlas:
    """Put textures [rows, columns, 4] and their averaged-down levels into one atlas."""
    texels, levels, filled = [], [], 0
    for texture in textures:
        for _ in range(MIP_LEVELS):
            levels.append((filled, *texture.shape[:2]))
            texels.append(texture.reshape(-1, 4))
            filled += len(texels[-1])
            texture = _halved(texture)
    offsets, rows, columns = np.array(levels, np.int32).reshape(len(textures), MIP_LEVELS, 3).transpose(2, 0, 1)
    return Atlas(np.concatenate(texels), offsets, rows, columns)


def _halved(texture: np.ndarray) -> np.ndarray:
    """Average 2 x 2 texels, keeping at least one: [rows, columns, 4] to [rows/2, columns/2, 4]."""
    rows, columns = (size - size % 2 if size > 1 else 1 for size in texture.shape[:2])
    steps_down, steps_across = min(2, rows), min(2, columns)
    total = np.zeros([rows // steps_down, columns // steps_across, 4], np.uint16)
    for down in range(steps_down):
        for across in range(steps_across):
            total += texture[down:rows:steps_down, across:columns:steps_across]
    return (total // (steps_down * steps_across)).astype(np.uint8)


def height_map(quarter: Quarter) -> tuple[np.ndarray, np.ndarray]:
    """Roof heights on a plan raster, and the local metres of its first cell.

    Returns:
        heights [rows, columns] float32 (row along y, column along x) and corner [2].
    """
    corner = quarter.footprints.min(axis=(0, 1)) - 5.0
    columns, rows = np.ceil((quarter.footprints.max(axis=(0, 1)) + 5.0 - corner) / HEIGHT_MAP_CELL).astype(int)
    raster = Image.new("F", (int(columns), int(rows)))
    draw = ImageDraw.Draw(raster)
    for corners, height in zip(quarter.footprints, quarter.house_heights, strict=True):
        draw.polygon([tuple(cell) for cell in (corners - corner) / HEIGHT_MAP_CELL], fill=float(height))
    return np.asarray(raster), corner


def _draw_styles(random: np.random.Generator, count: int) -> list[FacadeStyle]:
    styles: list[FacadeStyle] = []
    for _ in range(count):
        twin = styles and random.random() < TWIN_SHARE
        styles.append(styles[random.integers(len(styles))] if twin else draw_style(random))
    return styles


def _blocks(plan: StreetPlan) -> Iterator[tuple[tuple[float, float, float, float], frozenset[str]]]:
    """The built blocks between the streets as (bounds, sides that front a street)."""
    least_a, greatest_a, least_b, greatest_b = plan.extent()
    spans_a = _spans(plan.avenues, plan.avenue_halves, least_a, greatest_a)
    spans_b = _spans(plan.streets, plan.street_halves, least_b, greatest_b)
    for column, (west, east) in enumerate(spans_a):
        for row, (south, north) in enumerate(spans_b):
            inside = row > 0, column < len(spans_a) - 1, row < len(spans_b) - 1, column > 0  # by SIDES
            yield (west, south, east, north), frozenset(compress(SIDES, inside))


def _spans(lines: np.ndarray, halves: np.ndarray, least: float, greatest: float) -> list[tuple[float, float]]:
    kerbs = halves + SIDEWALK
    lows = np.concatenate([[least], lines + kerbs])
    highs = np.concatenate([lines - kerbs, [greatest]])
    return list(zip(lows, highs, strict=True))


def _houses_of_block(
    random: np.random.Generator, bounds: tuple[float, float, float, float], fronts: frozenset[str]
) -> Iterator[House]:
    """Rows of houses along each street side; the corner houses belong to the south and north rows."""
    west, south, east, north = bounds
    for side, low, high in (("south", south, south + HOUSE_DEPTH), ("north", north - HOUSE_DEPTH, north)):
        if side in fronts:
            for left, right in _split(random, west, east):
                corner = {"west"} if left == west else {"east"} if right == east else set()
                yield House((left, low, right, high), frozenset(({side} | corner) & fronts))
    first = south + HOUSE_DEPTH * ("south" in fronts)
    last = north - HOUSE_DEPTH * ("north" in fronts)
    for side, low, high in (("west", west, west + HOUSE_DEPTH), ("east", east - HOUSE_DEPTH, east)):
        if side in fronts:
            for bottom, top in _split(random, first, last):
                yield House((low, bottom, high, top), frozenset({side}))


def _split(random: np.random.Generator, start: float, end: float) -> list[tuple[float, float]]:
    """Cut a block side into house widths of 6 to 18 m, now and then with an alley between two."""
    widths: list[float] = []
    while sum(widths) < end - start - 5.0:
        widths.append(random.uniform(6.5, 17.0))
    edges = start + np.concatenate([[0], np.cumsum(widths)]) * (end - start) / sum(widths)
    edges[-1] = end
    houses = []
    for left, right in pairwise(edges):
        alley = 2.5 if right < end and right - left > 9 and random.random() < 0.1 else 0.0
        houses.append((left, right - alley))
    return houses


def _closing_houses(plan: StreetPlan) -> list[House]:
    """A house across the outer end of every street, so that no view ends in nothing."""
    west, east, south, north = plan.extent()
    houses = []
    for line, half in zip(plan.streets, plan.street_halves + SIDEWALK, strict=True):
        houses.append(House((west - HOUSE_DEPTH, line - half, west, line + half), frozenset({"east"})))
        houses.append(House((east, line - half, east + HOUSE_DEPTH, line + half), frozenset({"west"})))
    for line, half in zip(plan.avenues, plan.avenue_halves + SIDEWALK, strict=True):
        houses.append(House((line - half, south - HOUSE_DEPTH, line + half, south), frozenset({"north"})))
        houses.append(House((line - half, north, line + half, north + HOUSE_DEPTH), frozenset({"south"})))
    return houses


def _corners(bounds: tuple[float, float, float, float]) -> np.ndarray:
    west, south, east, north = bounds
    return np.array([[west, south], [east, south], [east, north], [west, north]])


def _place_furniture(random: np.random.Generator, plan: StreetPlan) -> list[Furniture]:
    """Lamps at steady distances and trees in some stretches, both just behind the kerb."""
    lines = [(0, a, half, plan.streets) for a, half in zip(plan.avenues, plan.avenue_halves, strict=True)]
    lines += [(1, b, half, plan.avenues) for b, half in zip(plan.streets, plan.street_halves, strict=True)]
    placed = []
    for fixed_axis, line, half, crossings in lines:
        for side in (-1, 1):
            treed = random.random() < 0.6
            along = crossings[0] - OUTSKIRTS + random.uniform(2, 12)
            while along < crossings[-1] + OUTSKIRTS:
                if np.abs(along - crossings).min() > 9.0 and random.random() < 0.7:
                    across = line + side * (half + 0.8)
                    point = np.array([across, along] if fixed_axis == 0 else [along, across])
                    kind = "tree" if treed and random.random() < 0.6 else "lamp"
                    placed.append(Furniture(kind, int(random.integers(6)), plan.to_local(point)))
                along += random.uniform(9, 17)
    return placed
