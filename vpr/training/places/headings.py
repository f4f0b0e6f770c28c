"""Where images look, by their names, and in which of some sectors that is."""

import re
from collections.abc import Sequence

import numpy as np

YAW = re.compile(r"_yaw(\d+)(?=[._]|$)")  # Pittsburgh's: 1 to 12, each 30 degrees on
DEGREES_OF_YAW = 30.0
HEADING = 9  # of the fields of a name with @, which begins with one; as of `vpr.data.positions.of_images`


def headings_of(names: Sequence[str]) -> np.ndarray:
    """Degrees clockwise from north, or from any direction that all of a set have in common: float64 [N], NaN where a
    name does not tell."""
    return np.array([_heading(name) for name in names], float)


def sectors_of(headings: np.ndarray, count: int) -> np.ndarray:
    """int64 [N], the sector of each heading [N] in degrees: of `count` alike, the first around 0; -1 where unknown."""
    width, known = 360 / count, np.isfinite(headings)
    turned = (np.where(known, headings, 0) + width / 2) % 360
    return np.where(known, (turned // width).astype(np.int64) % count, -1)


def _heading(name: str) -> float:
    if found := YAW.search(name):
        return DEGREES_OF_YAW * (int(found[1]) - 1)
    try:
        return float(name.rpartition("/")[2].split("@")[HEADING])
    except (IndexError, ValueError):
        return np.nan
