"""A request's parameters -> what is asked, and the answer -> JSON."""

from collections.abc import Sequence
from typing import Any

from vpr.data.names import as_text
from vpr.database.filters import SearchFilter, read_box, read_condition, read_near
from vpr.database.records import Records, record_id
from vpr.retrieval.answer import Answer, Match
from vpr.serve.problems import Problem


def search_filter(near: str | None, box: str | None, where: Sequence[str], records: Records) -> SearchFilter | None:
    """Which images are searched.

    Raises:
        Problem: the text means nothing (400), or the images have no such column or no known places (422).
    """
    if not (near or box or where):
        return None
    try:
        wanted = SearchFilter(
            read_near(near) if near else None, read_box(box) if box else None, tuple(map(read_condition, where))
        )
    except ValueError as error:
        raise Problem(400, str(error)) from error
    if any(condition.column not in records.columns for condition in wanted.where):
        raise Problem(422, "the images have no such column as where names")
    if (near or box) and len(records) and records.zone is None:
        raise Problem(422, "the images' latitude and longitude are unknown: ask without near and box")
    return wanted


def match_json(number: int, match: Match) -> dict[str, Any]:
    """A match; its id is text, since JavaScript has no whole numbers of 63 bits."""
    return {
        "id": str(number), "name": as_text(match.name), "easting": match.easting, "northing": match.northing,
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
        "matches": [match_json(record_id(match.name), match) for match in answer.matches],
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
