"""Daylight, evening, dusk and night: the colours of sun and sky, and who stands in whose shadow."""

from dataclasses import dataclass

import numpy as np

from toycity.city import HEIGHT_MAP_CELL, Quarter, height_map

LONGEST_SHADOW = 60.0  # metres


@dataclass(frozen=True)
class Light:
    """One state of the sky. Colours are linear light, 1 is white paper in full daylight.

    Attributes:
        azimuth, elevation: of the sun, radians (azimuth clockwise from grid north).
        sun, ambient, horizon, zenith: colours of direct light, sky light, and the sky's two ends.
        clouds: 0 for a clear sky to 1 for a mottled one.
        lit_share: share of windows that are lit; glow: how bright they and the lamps are.
        haze_length: metres after which the haze has taken over 63 %.
    """

    azimuth: float
    elevation: float
    sun: tuple[float, float, float]
    ambient: tuple[float, float, float]
    horizon: tuple[float, float, float]
    zenith: tuple[float, float, float]
    clouds: float = 0.3
    lit_share: float = 0.0
    glow: float = 0.0
    haze_length: float = 450.0

    @property
    def towards_sun(self) -> np.ndarray:
        """Unit vector in plan towards the sun [2]."""
        return np.array([np.sin(self.azimuth), np.cos(self.azimuth)])


def survey_light() -> Light:
    """The ordinary daylight in which the whole database was photographed."""
    return Light(
        azimuth=np.deg2rad(200.0),
        elevation=np.deg2rad(50.0),
        sun=(0.62, 0.60, 0.54),
        ambient=(0.44, 0.46, 0.50),
        horizon=(0.78, 0.85, 0.92),
        zenith=(0.30, 0.50, 0.82),
    )


def shadow_map(quarter: Quarter, light: Light) -> tuple[np.ndarray, np.ndarray]:
    """Up to which height each plan cell lies in the shadow of the houses.

    Returns:
        heights [rows, columns] float32 in metres (0 where the sun reaches the ground) and the corner [2].
    """
    key = (round(light.azimuth, 4), round(light.elevation, 4))
    if key not in quarter.shadow_maps:
        quarter.shadow_maps[key] = _march_shadows(quarter, light)
    return quarter.shadow_maps[key]


def _march_shadows(quarter: Quarter, light: Light) -> tuple[np.ndarray, np.ndarray]:
    roofs, corner = height_map(quarter)
    slope = np.tan(light.elevation)
    reach = min(LONGEST_SHADOW, float(roofs.max()) / slope)
    shadows = np.zeros_like(roofs)
    # A roof `distance` metres towards the sun shades everything here below its height - distance * slope.
    # The first step is longer than a cell: a sunlit wall must not lie in its own house's shadow.
    for distance in np.arange(1.0, reach, 1.2 * HEIGHT_MAP_CELL):
        step = np.round(light.towards_sun * distance / HEIGHT_MAP_CELL).astype(int)
        here, there = _overlap(roofs.shape[1], step[0]), _overlap(roofs.shape[0], step[1])
        shaded = roofs[there[1], here[1]] - np.float32(distance * slope)
        target = shadows[there[0], here[0]]
        np.maximum(target, shaded, out=target)
    return shadows, corner


def _overlap(size: int, step: int) -> tuple[slice, slice]:
    """Cells that have a neighbour `step` cells further, and those neighbours."""
    return slice(max(0, -step), size - max(0, step)), slice(max(0, step), size - max(0, -step))


def shadow_height(quarter: Quarter, light: Light, points: np.ndarray) -> np.ndarray:
    """Metres up to which local points [N, 2] lie in shadow [N], interpolated between plan cells."""
    shadows, corner = shadow_map(quarter, light)
    cells = (points - corner.astype(np.float32)) / np.float32(HEIGHT_MAP_CELL) - np.float32(0.5)
    base = np.floor(cells)
    part = (cells - base).astype(np.float32)
    column = np.clip(base[:, 0].astype(np.int32), 0, shadows.shape[1] - 2)
    row = np.clip(base[:, 1].astype(np.int32), 0, shadows.shape[0] - 2)
    low = shadows[row, column] * (1 - part[:, 0]) + shadows[row, column + 1] * part[:, 0]
    high = shadows[row + 1, column] * (1 - part[:, 0]) + shadows[row + 1, column + 1] * part[:, 0]
    return low * (1 - part[:, 1]) + high * part[:, 1]
