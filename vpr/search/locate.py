"""Where images were taken: the matches of each, their positions, and how sure the first is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vpr.data.places import PlaceImages
from vpr.data.positions import to_degrees
from vpr.search.database import DatabaseIndex

LOOKED_AT = 100  # hits, among which one taken elsewhere is sought
ELSEWHERE = 25.0  # metres
CONFIDENCE = (
    "confidence: 1 - (descriptor distance of the best match) / (that of the best one taken over 25 m from it); "
    "near 0 another place looks as similar"
)


@dataclass(frozen=True)
class Match:
    """A database image that resembles an image.

    Attributes:
        name: of the database image.
        distance: of the descriptors, 0 to 2; None where the index knows none.
        easting, northing: UTM metres; None where unknown.
        zone, latitude, longitude: None where the UTM zone is unknown.
    """

    name: str
    distance: float | None
    easting: float | None
    northing: float | None
    zone: str | None
    latitude: float | None
    longitude: float | None

    def distance_text(self) -> str:
        """Its distance in words."""
        return "unknown" if self.distance is None else f"{self.distance:.3f}"

    def place(self) -> str:
        """Its place in words."""
        if self.easting is None:
            return "place unknown"
        metres = f"{self.easting:.1f} E {self.northing:.1f} N"
        return metres if self.zone is None else f"{metres} ({self.zone}) = {self.latitude:.6f}, {self.longitude:.6f}"


@dataclass(frozen=True)
class Located:
    """An image with its matches, best first, and the confidence of the first (see CONFIDENCE); None if unknown."""

    photo: str
    confidence: float | None
    matches: list[Match]

    def lines(self) -> str:
        """A small table."""
        sure = "unknown" if self.confidence is None else f"{self.confidence:.2f}"
        rows = [
            f"  {rank:>2}  distance {match.distance_text()}  {match.place()}  {match.name}"
            for rank, match in enumerate(self.matches, start=1)
        ]
        return "\n".join([f"{self.photo}: confidence {sure}", *rows])


def locate(
    descriptors: torch.Tensor,
    files: Sequence[Path],
    index: DatabaseIndex,
    database: PlaceImages,
    top: int = 5,
    zone: str | None = None,
) -> tuple[list[Located], np.ndarray]:
    """The matches of described images, and all hits that were looked at.

    Args:
        descriptors: [M, dim], of `files`.
        top: how many matches of each.
        zone: UTM zone of the database's metres; None if unknown.

    Returns:
        an image with its matches for each file, and database indices int64 [M, at most LOOKED_AT or `top`].
    """
    places = database.places
    found, distances = index.search(descriptors, max(LOOKED_AT, top))
    located = []
    for file, hits, apart in zip(files, found, distances, strict=True):
        shown = [n for n in range(min(top, len(hits))) if hits[n] >= 0]
        matches = [
            _match(places.database_names[hits[n]], apart[n], places.database_positions[hits[n]], zone) for n in shown
        ]
        located.append(Located(str(file), confidence(hits, apart, places.database_positions), matches))
    return located, found


def confidence(hits: np.ndarray, distances: np.ndarray, positions: np.ndarray) -> float | None:
    """1 - d1 / d2, where d2 is the distance of the best hit taken over ELSEWHERE metres from the best of all.

    Where all hits lie there, the last one's distance stands for d2, which can only make the confidence too
    small. Where places are unknown, the second hit stands for another place. None with a single hit, and where
    distances are not known.
    """
    hits, distances = hits[hits >= 0], distances[hits >= 0]
    if len(hits) < 2 or np.isnan(distances).any():
        return None
    metres = np.linalg.norm(positions[hits[1:]] - positions[hits[0]], axis=1)
    elsewhere = np.flatnonzero(~(metres <= ELSEWHERE))  # NaN, an unknown place, counts as another
    second = distances[1 + elsewhere[0]] if len(elsewhere) else distances[-1]
    return float(1 - distances[0] / second) if second > 0 else 0.0


def _match(name: str, distance: float, position: np.ndarray, zone: str | None) -> Match:
    known = None if np.isnan(distance) else float(distance)
    if not np.isfinite(position).all():
        return Match(name, known, None, None, None, None, None)
    easting, northing = map(float, position)
    latitude, longitude = to_degrees(easting, northing, zone) if zone else (None, None)
    return Match(name, known, easting, northing, zone, latitude, longitude)
