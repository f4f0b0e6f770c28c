"""What requests ask and what answers look like, in Python, as JSON, and as /openapi.json describes them."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.requests import Request

from vpr.data.names import as_text
from vpr.database.filters import SearchFilter, read_box, read_condition, read_near
from vpr.database.records import Records, record_id
from vpr.retrieval.answer import Answer
from vpr.retrieval.answer import Match as FoundMatch
from vpr.retrieval.answer_features import Uncertainty
from vpr.retrieval.matching import Verification
from vpr.serve.problems import Problem, wrong


class Shape(BaseModel):
    """Has the fields that are named, and no others."""

    model_config = ConfigDict(extra="forbid")


class Placed(Shape):
    """A database image; places are null where they are unknown."""

    id: str = Field(description="A whole number below 2^63.")
    name: str
    easting: float | None = Field(description="Metres.")
    northing: float | None = Field(description="Metres.")
    latitude: float | None = Field(description="WGS 84, degrees.")
    longitude: float | None = Field(description="WGS 84, degrees.")


class Match(Placed):
    """A database image that matches; places are null where they are unknown."""

    zone: str | None = Field(description="UTM zone and hemisphere.", examples=["17N"])
    distance: float | None = Field(description="Of the descriptors, 0 to 2.")
    score: float | None = Field(description="Of re-ranking, which orders the matches; null where distances do.")
    image: str = Field(description="Address of the image at this server.")


class Timing(Shape):
    """Milliseconds; of model and search those of all images that were described together."""

    decode_ms: float
    wait_ms: float
    model_ms: float
    search_ms: float
    total_ms: float


class Agreement(Shape):
    """Points of two images that agree: x and y from 0 to 1."""

    query: tuple[float, float]
    hit: tuple[float, float]
    weight: float = Field(ge=0, le=1)


class SeenBefore(Shape):
    """The earlier frame of the same session that is most like this one."""

    frame: int = Field(description="Of the session, from 0.")
    score: float = Field(description="A mean cosine: the greater, the more likely it is the same place.")


class Located(Shape):
    """Where an image was taken, as far as that is known."""

    matches: list[Match] = Field(description="Best first.")
    confidence: float | None
    confidence_kind: str = Field(description="What the confidence is, in words.")
    usual_distance: float | None = Field(description="Median of those of database images at random: what chance gets.")
    refused: bool = Field(description="Whether the confidence is below what is wanted: then there is no answer.")
    model: str
    images: int = Field(description="Of the database.")
    timing: Timing
    agreement: list[Agreement] | None = Field(description="With the first match, the heaviest first.")
    verification: Verification | None = Field(
        description="Of the first match, beside `agreement`: the fundamental matrix takes (x, y, 1) in pixels of the "
        "image at query_size (width, height) to lines in the match at hit_size; null: it is not verified by keypoints."
    )
    uncertainty: Uncertainty | None = Field(description="Of the first match's place; null: positions do not tell.")
    seen_before: SeenBefore | None = Field(description="Null without a session, and while all its frames are too new.")


class Error(Shape):
    """What is wrong, in one sentence, and in one word for programs."""

    error: str
    code: str = Field(description="Of the kind of error.", examples=["too_large"])


class ErrorOfOne(Error):
    """What is wrong with one image of several."""

    status: int = Field(description="That it would have had by itself.")


class LocatedBatch(Shape):
    """Answers or errors, in the order of the images."""

    answers: list[Located | ErrorOfOne]


class Added(Shape):
    """An image that was added or replaced."""

    id: str
    new: bool
    images: int = Field(description="Of the database.")


class AddedBatch(Shape):
    """What became of each image, in their order."""

    answers: list[Added | ErrorOfOne]


class Removed(Shape):
    """An image that was removed."""

    id: str
    images: int = Field(description="Of the database.")


class ListedImage(Placed):
    """A database image with what its table says; places are null where they are unknown."""

    columns: dict[str, str | float | None] = Field(description="Of the images' table.")


class ImageList(Shape):
    """Some of the database's images, by name."""

    images: list[ListedImage]
    next: str | None = Field(description="`after` of the next page; null: this is the last.")


class Places(Shape):
    """Places of database images, column by column."""

    images: int = Field(description="Of the database; the columns may have fewer.")
    zone: str | None
    ids: list[str]
    names: list[str]
    easting: list[float]
    northing: list[float]
    latitude: list[float] | None
    longitude: list[float] | None


class Change(BaseModel):
    """What a request says of an image's place and columns; null is not said."""

    latitude: float | None = Field(None, description="Degrees.")
    longitude: float | None = Field(None, description="Degrees.")
    easting: float | None = Field(None, description="Metres, in the database's UTM zone.")
    northing: float | None = Field(None, description="Metres.")
    column: list[Annotated[str, StringConstraints(max_length=200)]] = Field(
        [], max_length=32, description="NAME=VALUE, as `where` asks for; without a value there is none any more."
    )


class Addition(Change):
    """What a request says of an image that it adds."""

    name: str | None = Field(None, max_length=1000, description="A plain one such as street/12.jpg.")


def said_of(values: Any) -> Addition:
    """What is said of an image, by name. Raises a Problem where that means nothing."""
    try:
        said = Addition.model_validate(values)
    except ValidationError as error:
        raise wrong(error.errors()) from error
    if said.name is None:
        raise Problem(400, "name is wanted: that of the image in the database, such as street/12.jpg")
    return said


class Health(Shape):
    """The server runs."""

    status: Literal["ok"]


class Ready(Shape):
    """The server answers."""

    status: Literal["ready"]
    images: int = Field(description="Of the database.")


MEANINGS = {
    400: "A parameter, a form or a name is not what is wanted.",
    401: "The token is missing or wrong.",
    403: "The server is not writable, or does not answer to whom asks.",
    404: "There is no such image.",
    408: "The body did not come in time.",
    409: "Another program has written the database, which this server can no longer change.",
    413: "The body or the image is too large, or there are too many images.",
    415: "No image of a format that is read.",
    422: "The image cannot be decoded or described, or the index cannot serve what is asked.",
    429: "Too many wrong tokens came from this address.",
    503: "Too much to do, or the engine is away: ask again after the seconds of Retry-After.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route, as FastAPI's `responses`: those that are named, and any other."""
    meanings: dict[int | str, str] = {"default": "Any other error."}
    meanings |= {status: MEANINGS[status] for status in statuses}
    return {status: {"model": Error, "description": meaning} for status, meaning in meanings.items()}


BINARY = {"type": "string", "format": "binary"}


def body_of(form: dict[str, Any], raw: bool = True) -> dict[str, Any]:
    """A request's body, as FastAPI's `openapi_extra`: a form with these fields or, if raw, an image by itself."""
    schema = {"type": "object", "properties": form, "required": ["image"]}
    image = {"image/*": {"schema": BINARY}, "application/octet-stream": {"schema": BINARY}} if raw else {}
    return {"requestBody": {"required": True, "content": {**image, "multipart/form-data": {"schema": schema}}}}


def search_filter(near: str | None, box: str | None, where: Sequence[str], records: Records) -> SearchFilter | None:
    """Which images are searched.
    Raises a Problem: the text means nothing (400), or the images have no such column or no known positions (422)."""
    if not (near or box or where):
        return None
    try:
        around, inside = read_near(near) if near else None, read_box(box) if box else None
        wanted = SearchFilter(around, inside, tuple(map(read_condition, where)))
    except ValueError as error:
        raise Problem(400, str(error)) from error
    if any(condition.column not in records.columns for condition in wanted.where):
        raise Problem(422, "the images have no such column as where names")
    if (near or box) and len(records) and records.zone is None:
        raise Problem(422, "the images' latitude and longitude are unknown: ask without near and box")
    return wanted


def match_json(number: int, match: FoundMatch) -> dict[str, Any]:
    """A match; its id is text, since JavaScript has no whole numbers of 63 bits."""
    values = {**vars(match), "id": str(number), "name": as_text(match.name), "image": f"/images/{number}"}
    return {name: values[name] for name in Match.model_fields}


def image_json(records: Records, row: int) -> dict[str, Any]:
    """What is known of a database image, as `ListedImage` has it."""
    values = [*records.positions[row].tolist(), *records.degrees[row].tolist()]
    places = zip(("easting", "northing", "latitude", "longitude"), values, strict=True)
    return {
        "id": str(record_id(records.names[row])),
        "name": as_text(records.names[row]),
        **{name: value if math.isfinite(value) else None for name, value in places},
        "columns": {name: column[row] for name, column in records.columns.items()},
    }


def answer_json(answer: Answer, model: str, images: int, timing: dict[str, float]) -> dict[str, Any]:
    """An answer of a model of a name, by so many images; timing in milliseconds, by what took them."""
    agreement = None
    if (same := answer.agreement) is not None:
        columns = (values.round(4).tolist() for values in (same.query_points, same.hit_points, same.weights))
        agreement = [dict(zip(("query", "hit", "weight"), one, strict=True)) for one in zip(*columns, strict=True)]
    matches = [match_json(record_id(match.name), match) for match in answer.matches]
    about = {"model": model, "images": images, "timing": timing}
    return {"matches": matches, **answer.how_sure(), **about, "agreement": agreement,
            "verification": answer.verification and vars(answer.verification)}  # fmt: skip


def one_of_several(answer: Any) -> Any:
    """What became of one image of several, as JSON; an error of a server's own is raised."""
    if isinstance(answer, Problem):
        return {"error": answer.text, "code": answer.code, "status": answer.status}
    if isinstance(answer, BaseException):
        raise answer
    return answer.model_dump() if isinstance(answer, Shape) else answer


def is_known(request: Request, tag: str) -> bool:
    """Whether the client has what an ETag (with its quotes, without a comma) names.

    Then If-None-Match lists it, weak or strong, or is * (RFC 9110, 13.1.2).
    """
    listed = ",".join(request.headers.getlist("if-none-match")).split(",")
    return any(each.strip().removeprefix("W/") in (tag, "*") for each in listed)
