"""A pinhole camera among vertical walls: which wall, at what depth and height, each pixel shows.

The optical axis stays level, so that vertical edges stay upright and every image column is one plan-view
ray; looking up or down a little is a shift of the horizon row, as with a shift lens.
"""

from dataclasses import dataclass, replace

import numpy as np

from toycity.city import Walls

GROUND = -1  # in a map of layers: no wall but the ground
LAYERS = 8  # nearest walls kept per column: roofs that rise behind lower roofs
SIGHT = 230.0  # metres, beyond every street's end


@dataclass(frozen=True)
class Camera:
    """Where a picture is taken and through which lens.

    Attributes:
        position [2]: local metres; height: of the lens above the ground, metres.
        heading: viewing direction, radians clockwise from grid north.
        field_of_view: horizontal, radians.
        width, rows: picture size in pixels.
        horizon: how far the horizon lies below the picture's centre, as a share of the picture height.
    """

    position: np.ndarray
    height: float
    heading: float
    field_of_view: float
    width: int
    rows: int
    horizon: float = 0.0

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return 0.5 * self.width / np.tan(0.5 * self.field_of_view)

    @property
    def horizon_row(self) -> float:
        """Row coordinate of the horizon; pixel r covers rows r to r + 1."""
        return self.rows * (0.5 + self.horizon)

    @property
    def forward(self) -> np.ndarray:
        """Unit viewing direction in plan [2]."""
        return np.array([np.sin(self.heading), np.cos(self.heading)])

    @property
    def right(self) -> np.ndarray:
        """Unit vector to the picture's right in plan [2]."""
        return np.array([np.cos(self.heading), -np.sin(self.heading)])

    def rays(self) -> np.ndarray:
        """Plan-view ray of each column [width, 2], scaled so that one step is one metre of depth."""
        across = (np.arange(self.width) + 0.5 - 0.5 * self.width) / self.focal
        return (self.forward + across[:, None] * self.right).astype(np.float32)

    def project(self, point: np.ndarray, height: float) -> tuple[float, float, float]:
        """Column, row and depth of the point `height` metres above local `point` [2]."""
        offset = np.asarray(point) - self.position
        depth = float(offset @ self.forward)
        column = 0.5 * self.width + self.focal * float(offset @ self.right) / depth
        return column, self.horizon_row + self.focal * (self.height - height) / depth, depth

    def enlarged(self, factor: int) -> "Camera":
        """The same view with `factor` times the pixels each way."""
        return replace(self, width=self.width * factor, rows=self.rows * factor)


@dataclass(frozen=True)
class Hits:
    """The LAYERS nearest walls along each column's ray, nearest first; all [LAYERS, width].

    Attributes:
        depths: along the optical axis, metres, inf where nothing more is hit.
        walls: wall index; along: where on the wall, 0 at its left end to 1 at its right end.
    """

    depths: np.ndarray
    walls: np.ndarray
    along: np.ndarray


def cast_rays(walls: Walls, camera: Camera) -> Hits:
    """Meet each column's ray with all walls that face the camera."""
    position = camera.position.astype(np.float32)
    chosen = np.flatnonzero(_may_be_seen(walls, camera))
    starts, spans = walls.starts[chosen] - position, walls.ends[chosen] - walls.starts[chosen]
    rays = camera.rays()
    # ray * depth = start + along * span, solved by cross products for all columns x walls at once
    crossing = rays[:, :1] * spans[:, 1] - rays[:, 1:] * spans[:, 0]  # [width, S]
    crossing = np.where(np.abs(crossing) < 1e-9, np.float32(1e-9), crossing)
    depths = (starts[:, 0] * spans[:, 1] - starts[:, 1] * spans[:, 0]) / crossing
    along = (starts[:, 0] * rays[:, 1:] - starts[:, 1] * rays[:, :1]) / crossing
    # The ends reach a hair further than the wall, so that no ray slips between two neighbours.
    depths[(depths < 0.05) | (np.abs(along - 0.5) > 0.5 + 1e-5)] = np.inf
    missing = LAYERS - depths.shape[1]
    if missing > 0:
        depths = np.pad(depths, ((0, 0), (0, missing)), constant_values=np.inf)
        along, chosen = np.pad(along, ((0, 0), (0, missing))), np.pad(chosen, (0, missing))
    nearest = np.argpartition(depths, LAYERS - 1, axis=1)[:, :LAYERS]  # [width, LAYERS]
    order = np.argsort(np.take_along_axis(depths, nearest, axis=1), axis=1)
    nearest = np.take_along_axis(nearest, order, axis=1)
    return Hits(
        depths=np.take_along_axis(depths, nearest, axis=1).T,
        walls=chosen[nearest].T,
        along=np.clip(np.take_along_axis(along, nearest, axis=1).T, 0, 0.99999),
    )


def _may_be_seen(walls: Walls, camera: Camera) -> np.ndarray:
    """Walls whose outside faces the camera and which lie at least partly ahead and in sight [S]."""
    position = camera.position.astype(np.float32)
    starts, ends = walls.starts - position, walls.ends - position
    # Seen from outside, a wall's start lies to the left of its end: clockwise around the camera.
    faces = starts[:, 0] * ends[:, 1] - starts[:, 1] * ends[:, 0] < 0
    feet = np.stack([starts, ends])  # [2, S, 2]
    depth, across = (feet @ axis.astype(np.float32) for axis in (camera.forward, camera.right))  # [2, S] each
    slope = np.float32(np.tan(0.5 * camera.field_of_view))
    # Left out: walls whose both ends lie beyond the same edge of the view.
    in_view = ((across + slope * depth).max(axis=0) > 0) & ((across - slope * depth).min(axis=0) < 0)
    return faces & in_view & (depth.max(axis=0) > 0) & (depth.min(axis=0) < SIGHT)


def visible_layers(hits: Hits, walls: Walls, camera: Camera) -> np.ndarray:
    """Which hit each pixel shows [rows, width]: 0 the nearest, LAYERS for sky, or GROUND.

    A pixel shows the nearest wall whose roof edge lies at or above it.
    """
    heights = walls.heights[hits.walls]
    with np.errstate(invalid="ignore"):
        rise = np.float32(camera.focal) * (heights - np.float32(camera.height)) / hits.depths
    # [LAYERS, width]; where nothing is hit the top lies below every pixel
    tops = np.where(np.isfinite(hits.depths), np.float32(camera.horizon_row) - rise, np.inf)
    bottoms = camera.horizon_row + camera.focal * camera.height / hits.depths[0]  # [width]
    centres = (np.arange(camera.rows, dtype=np.float32) + 0.5)[:, None]
    layer = np.full([camera.rows, camera.width], LAYERS, np.int8)
    for index in reversed(range(LAYERS)):
        if np.isfinite(tops[index]).any():
            np.copyto(layer, index, where=centres >= tops[index])
    np.copyto(layer, GROUND, where=centres >= bottoms)
    return layer
