"""Where an image was taken: the database images that match it, their positions, and how sure the first is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vpr.data.positions.coordinates import to_degrees
from vpr.retrieval.answer_features import Uncertainty
from vpr.retrieval.matching import Matches, Verification


@dataclass(frozen=True)
class Match:
    """A database image that resembles an image."""

    name: str  # of the database image
    distance: float | None  # of the descriptors, 0 to 2; None where the index knows none
    easting: float | None  # UTM metres; None where unknown
    northing: float | None  # likewise
    zone: str | None  # None where the UTM zone is unknown
    latitude: float | None  # likewise
    longitude: float | None  # likewise
    # By which re-ranking or sequences order the matches, the greater the better; None where distances do.
    score: float | None = None

    def distance_text(self) -> str:
        """Its distance in words."""
        return "unknown" if self.distance is None else f"{self.distance:.3f}"

    def score_text(self) -> str:
        """Its score in words; empty where it has none."""
        return "" if self.score is None else f"score {self.score:.3f}  "

    def position_text(self) -> str:
        """Where it was taken, in words."""
        if self.easting is None:
            return "place unknown"
        metres = f"{self.easting:.1f} E {self.northing:.1f} N"
        return metres if self.zone is None else f"{metres} ({self.zone}) = {self.latitude:.6f}, {self.longitude:.6f}"


@dataclass(frozen=True)
class Answer:
    """Where an image was taken, as far as that is known."""

    matches: list[Match]  # best first
    files: list[Path]  # of the matches, where they lie or lay
    confidence: float | None  # of the first match; None if unknown
    confidence_kind: str  # what that is, in words: a probability, or a ratio of distances
    # Whether the confidence is below what was asked for: there is no answer, the matches are only what came nearest.
    refused: bool
    # Matches of local descriptors with the first match; None where they were not asked for.
    agreement: Matches | None = None
    # Of the first match, beside `agreement`; None where that is not by keypoints.
    verification: Verification | None = None
    # The median of the descriptors' distances to database images drawn at random; None if unknown.
    usual_distance: float | None = None
    uncertainty: Uncertainty | None = None  # of the place of the first match; None where positions do not tell
    model_seconds: float = 0.0  # that all images of a batch took together; 0 where that was not measured
    search_seconds: float = 0.0  # likewise

    @property
    def sure(self) -> str:
        """The confidence in words."""
        value = "unknown" if self.confidence is None else f"{self.confidence:.2f}"
        return f"no place found (confidence {value})" if self.refused else f"confidence {value}"

    def lines(self, image: str) -> str:
        """A small table of the matches of an image."""
        rows = [
            f"  {rank:>2}  {match.score_text()}distance {match.distance_text()}  {match.position_text()}  {match.name}"
            for rank, match in enumerate(self.matches, start=1)
        ]
        usual = "" if self.usual_distance is None else f"; random images are at distance {self.usual_distance:.3f}"
        return "\n".join([f"{image}: {self.sure}{usual}", *rows])

    def as_json(self, image: str) -> dict[str, Any]:
        """What --json prints of an image."""
        return {"photo": image, "matches": [vars(match) for match in self.matches], **self.how_sure()}

    def how_sure(self) -> dict[str, Any]:
        """What JSON has of that."""
        return {
            "confidence": self.confidence, "confidence_kind": self.confidence_kind, "refused": self.refused,
            "usual_distance": self.usual_distance, "uncertainty": self.uncertainty and vars(self.uncertainty),
        }  # fmt: skip


def match_of(name: str, distance: float, position: np.ndarray, zone: str | None, score: float = np.nan) -> Match:
    """A database image as a match: distance of the descriptors and position [2], UTM metres, and what orders the
    matches; NaN where unknown."""
    known, ordering = (None if np.isnan(value) else float(value) for value in (distance, score))
    if not np.isfinite(position).all():
        return Match(name, known, None, None, None, None, None, ordering)
    easting, northing = map(float, position)
    latitude, longitude = to_degrees(easting, northing, zone) if zone else (None, None)
    return Match(name, known, easting, northing, zone, latitude, longitude, ordering)
