"""A request's parameters -> what is asked, and the answer -> JSON."""

import math
from collections.abc import Sequence
from typing import Any

from vpr.data.records import Records, Value
from vpr.search.filters import COMPARISONS, Condition, SearchFilter
from vpr.search.locate import Match
from vpr.serve.locator import Answer
from vpr.serve.problems import Problem


def search_filter(
    near: str | None, box: str | None, where: Sequence[str], records: Records
) -> SearchFilter | None:  # fmt: skip
    """Which images are searched.

    Raises:
        Problem: the text means nothing (400), or the images have no such column or no known places (422).
    """
    if not (near or box or where):
        return None
    wanted = SearchFilter(_near(near), _box(box), tuple(map(_condition, where)))
    for condition in wanted.where:
        if condition.column not in records.columns:
            raise Problem(422, "the images have no such column as where names")
    if (near or box) and len(records) and records.zone is None:
        raise Problem(422, "the images' latitude and longitude are unknown: ask without near and box")
    return wanted


def _near(text: str | None) -> tuple[float, float, float] | None:
    if not text:
        return None
    latitude, longitude, metres = _numbers(text, 3, "near=LATITUDE,LONGITUDE,METRES")
    if abs(latitude) > 90 or abs(longitude) > 180 or metres <= 0:
        raise Problem(400, "near is wanted as LATITUDE,LONGITUDE,METRES: degrees, and more than 0 metres")
    return latitude, longitude, metres


def _box(text: str | None) -> tuple[float, float, float, float] | None:
    if not text:
        return None
    south, west, north, east = _numbers(text, 4, "box=SOUTH,WEST,NORTH,EAST")
    if not -90 <= south <= north <= 90 or abs(west) > 180 or abs(east) > 180:
        raise Problem(400, "box is wanted as SOUTH,WEST,NORTH,EAST in degrees, south below north")
    return south, west, north, east


def _numbers(text: str, count: int, wanted: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise Problem(400, f"wanted {wanted}, numbers with commas between them")
    return values


def _condition(text: str) -> Condition:
    """COLUMN=VALUE, !=, >= or <=; a value that is a number is compared as one."""
    for comparison in sorted(COMPARISONS, key=len, reverse=True):
        column, found, value = text.partition(comparison)
        if found and column.strip():
            return Condition(column.strip(), comparison, _value(value.strip()))
    raise Problem(400, "where is wanted as COLUMN=VALUE, COLUMN!=VALUE, COLUMN>=VALUE or COLUMN<=VALUE")


def _value(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text


def match_json(number: int, match: Match) -> dict[str, Any]:
    """A match; its id is text, since JavaScript has no whole numbers of 63 bits."""
    return {
        "id": str(number), "name": match.name, "easting": match.easting, "northing": match.northing,
        "zone": match.zone, "latitude": match.latitude, "longitude": match.longitude, "distance": match.distance,
        "image": f"/images/{number}",
    }  # fmt: skip


def answer_json(answer: Answer, model: str, images: int, timing: dict[str, float]) -> dict[str, Any]:
    """An answer.

    Args:
        model: its name.
        images: how many the database has.
        timing: milliseconds, by what took them.
    """
    same = answer.agreement
    return {
        "matches": [match_json(*each) for each in zip(answer.ids, answer.matches, strict=True)],
        "confidence": answer.confidence,
        "confidence_kind": answer.confidence_kind,
        "refused": answer.refused,
        "model": model,
        "images": images,
        "timing": {name: round(value, 2) for name, value in timing.items()},
        "agreement": None if same is None else [
            {"query": query, "hit": hit, "weight": weight}
            for query, hit, weight in zip(
                same.query_points.round(4).tolist(), same.hit_points.round(4).tolist(),
                same.weights.round(4).tolist(), strict=True,
            )
        ],
    }  # fmt: skip


def row_of(records: Records, number: str) -> int:
    """The row of an image by its id.

    Raises:
        Problem: there is none.
    """
    if number.isascii() and number.isdecimal() and len(number) < 20:
        for row in (records.ids == int(number)).nonzero()[0] if int(number) < 1 << 63 else ():
            if records.names[row]:  # that of a removed image is empty
                return int(row)
    raise Problem(404, "there is no image of this id")
