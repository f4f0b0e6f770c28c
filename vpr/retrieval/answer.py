"""Where images were taken: the matches of each, their positions, and how sure the first is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpr.data.places import PlaceImages
from vpr.data.positions.coordinates import to_degrees
from vpr.retrieval.answer_features import Answers


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
    """An image with its matches, best first.

    Attributes:
        photo: its file.
        confidence: of the first match; None if unknown.
        confidence_kind: what that is, in words: a probability, or a ratio of distances.
        refused: whether the confidence is below what the user asked for: there is no answer, and the matches are
            only what came nearest.
    """

    photo: str
    confidence: float | None
    matches: list[Match]
    confidence_kind: str
    refused: bool

    @property
    def sure(self) -> str:
        """The confidence in words."""
        value = "unknown" if self.confidence is None else f"{self.confidence:.2f}"
        return f"no place found (confidence {value})" if self.refused else f"confidence {value}"

    def lines(self) -> str:
        """A small table."""
        rows = [
            f"  {rank:>2}  distance {match.distance_text()}  {match.place()}  {match.name}"
            for rank, match in enumerate(self.matches, start=1)
        ]
        return "\n".join([f"{self.photo}: {self.sure}", *rows])


@dataclass(frozen=True)
class Confidence:
    """How sure the answers are.

    Attributes:
        values: [M], NaN where unknown.
        kind: what they are, in words.
        least: images with less, or of unknown confidence, get no answer; None gives all an answer.
    """

    values: np.ndarray
    kind: str
    least: float | None = None


def locate(
    answers: Answers,
    files: Sequence[Path],
    database: PlaceImages,
    confidence: Confidence,
    top: int = 5,
    zone: str | None = None,
) -> list[Located]:
    """Images with their matches.

    Args:
        answers: what was found for the images of `files`.
        top: how many matches of each.
        zone: UTM zone of the database's metres; None if unknown.
    """
    places, located = database.places, []
    for file, hits, apart, value in zip(files, answers.found, answers.distances, confidence.values, strict=True):
        shown = [n for n in range(min(top, len(hits))) if hits[n] >= 0]
        matches = [
            match_of(places.database_names[hits[n]], apart[n], places.database_positions[hits[n]], zone) for n in shown
        ]
        sure = None if np.isnan(value) else float(value)
        refused = confidence.least is not None and (sure is None or sure < confidence.least)
        located.append(Located(str(file), sure, matches, confidence.kind, refused))
    return located


def match_of(name: str, distance: float, position: np.ndarray, zone: str | None) -> Match:
    """A database image as a match.

    Args:
        distance: of the descriptors; NaN where unknown.
        position: [2], UTM metres; NaN where unknown.
        zone: of these; None if unknown.
    """
    known = None if np.isnan(distance) else float(distance)
    if not np.isfinite(position).all():
        return Match(name, known, None, None, None, None, None)
    easting, northing = map(float, position)
    latitude, longitude = to_degrees(easting, northing, zone) if zone else (None, None)
    return Match(name, known, easting, northing, zone, latitude, longitude)
