"""Where pictures are taken: the survey's panoramas, and queries near them that show something."""

from dataclasses import replace

import numpy as np

from toycity.camera import Camera, cast_rays
from toycity.city import Quarter
from toycity.conditions import Difficulty
from toycity.streets import SIDEWALK, kerb_distances

HEADINGS = 8  # per panorama, 45 degrees apart
SURVEY_LENS_HEIGHT = 2.4  # metres
SURVEY_FIELD_OF_VIEW = np.deg2rad(68.0)
SURVEY_HORIZON = 0.14  # the survey camera looks up a little: more facade, less asphalt


def survey_camera(position: np.ndarray, yaw: int, size: tuple[int, int]) -> Camera:
    """Camera of heading `yaw` (1 to HEADINGS; 1 looks to grid north) at a local position [2]."""
    heading = 2 * np.pi * (yaw - 1) / HEADINGS
    return Camera(position, SURVEY_LENS_HEIGHT, heading, SURVEY_FIELD_OF_VIEW, *size, horizon=SURVEY_HORIZON)


def draw_query_camera(
    quarter: Quarter, stations: np.ndarray, random: np.random.Generator, difficulty: Difficulty, size: tuple[int, int]
) -> Camera:
    """A camera 1.5 to 6 m from one of the stations [N, 2] (local metres) that sees houses well."""
    for _ in range(200):
        turn = float(np.deg2rad(random.uniform(-1, 1) * difficulty.turn))
        bearing, distance = random.uniform(0, 2 * np.pi), random.uniform(1.5, 6.0)
        station = stations[random.integers(len(stations))]
        position = station + distance * np.array([np.sin(bearing), np.cos(bearing)])
        camera = Camera(
            position=position,
            height=float(random.uniform(1.45, 1.9)),
            heading=2 * np.pi * int(random.integers(HEADINGS)) / HEADINGS + turn,
            field_of_view=float(np.deg2rad(random.uniform(*difficulty.field_of_view))),
            width=size[0],
            rows=size[1],
            horizon=SURVEY_HORIZON + float(random.uniform(-1, 1)) * difficulty.tilt,
        )
        clear = min(kerb_distances(quarter.plan, quarter.plan.to_lattice(position))) < SIDEWALK - 1.2
        if clear and _shows_houses(quarter, camera):
            return camera
    raise RuntimeError("found no viewpoint for a query: the quarter's streets are too narrow or too open")


def _shows_houses(quarter: Quarter, camera: Camera) -> bool:
    """Whether houses fill much of the view, neither right before the lens nor all far down the street."""
    depths = cast_rays(quarter.walls, replace(camera, width=40)).depths[0]
    fair = (depths > 4.5) & (depths < 28.0)
    return bool(depths.min() > 2.2 and fair.mean() > 0.6 and np.median(depths) > 6.0)
