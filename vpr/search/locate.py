"""Where images were taken: the matches of each, their positions, and how sure the first is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpr.data.places import PlaceImages
from vpr.data.positions import to_degrees

LOOKED_AT = 100  # hits, among which one taken elsewhere is sought
ELSEWHERE = 25.0  # metres
CONFIDENCE = (
    "confidence: 1 - (descriptor distance of the best match) / (that of the best one taken over 25 m from it); "
    "near 0 another place looks as similar"
)
SCORE_CONFIDENCE = (
    "confidence: 1 - (score of the best match taken over 25 m from the first, by a second look) / (that of the first); "
    "near 0 another place looks as similar"
)

SEQUENCE_CONFIDENCE = SCORE_CONFIDENCE.replace("a second look", "sequences")


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
    found: np.ndarray,
    distances: np.ndarray,
    files: Sequence[Path],
    database: PlaceImages,
    top: int = 5,
    zone: str | None = None,
    scores: np.ndarray | None = None,
) -> list[Located]:
    """Images with their matches.

    Args:
        found: int64 [M, c] database indices for the images of `files`, best first; -1 is none.
        distances: [M, c], of the descriptors; NaN where unknown.
        top: how many matches of each.
        zone: UTM zone of the database's metres; None if unknown.
        scores: [M, K] of the first hits by a second look, or by sequences; None without.
    """
    places, located = database.places, []
    for row, (file, hits, apart) in enumerate(zip(files, found, distances, strict=True)):
        shown = [n for n in range(min(top, len(hits))) if hits[n] >= 0]
        matches = [
            _match(places.database_names[hits[n]], apart[n], places.database_positions[hits[n]], zone) for n in shown
        ]
        if scores is None:
            sure = confidence(hits, apart, places.database_positions)
        else:
            sure = score_confidence(hits[: scores.shape[1]], scores[row], places.database_positions)
        located.append(Located(str(file), sure, matches))
    return located


def confidence(hits: np.ndarray, distances: np.ndarray, positions: np.ndarray) -> float | None:
    """1 - d1 / d2, where d2 is the distance of the best hit taken over ELSEWHERE metres from the best of all.

    Where all hits lie there, the last one's distance stands for d2, which can only make the confidence too
    small. Where places are unknown, the second hit stands for another place. None with a single hit, and where
    distances are not known.
    """
    hits, distances = hits[hits >= 0], distances[hits >= 0]
    if len(hits) < 2 or np.isnan(distances).any():
        return None
    second = distances[_first_elsewhere(hits, positions)]
    return float(1 - distances[0] / second) if second > 0 else 0.0


def score_confidence(hits: np.ndarray, scores: np.ndarray, positions: np.ndarray) -> float | None:
    """1 - s2 / s1 of scores of a second look or of sequences, s2 that of the best hit elsewhere; see `confidence`."""
    hits, scores = hits[hits >= 0], scores[hits >= 0]
    if len(hits) < 2:
        return None
    second = max(float(scores[_first_elsewhere(hits, positions)]), 0.0)
    return 1 - second / float(scores[0]) if scores[0] > 0 else 0.0


def _first_elsewhere(hits: np.ndarray, positions: np.ndarray) -> int:
    """The place in a list of hits of the first one taken over ELSEWHERE metres from the best; the last without one."""
    metres = np.linalg.norm(positions[hits[1:]] - positions[hits[0]], axis=1)
    elsewhere = np.flatnonzero(~(metres <= ELSEWHERE))  # NaN, an unknown place, counts as another
    return 1 + int(elsewhere[0]) if len(elsewhere) else len(hits) - 1


def _match(name: str, distance: float, position: np.ndarray, zone: str | None) -> Match:
    known = None if np.isnan(distance) else float(distance)
    if not np.isfinite(position).all():
        return Match(name, known, None, None, None, None, None)
    easting, northing = map(float, position)
    latitude, longitude = to_degrees(easting, northing, zone) if zone else (None, None)
    return Match(name, known, easting, northing, zone, latitude, longitude)
