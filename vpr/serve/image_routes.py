"""Routes of the database's images: to see, add and remove them, and their positions."""

import asyncio
import bisect
import json
from itertools import islice, takewhile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic_core import from_json

from vpr.database.records import Records
from vpr.report.interactive import thinned
from vpr.serve.keeping import add, change, remove
from vpr.serve.problems import Problem
from vpr.serve.schemas import (
    BINARY,
    Added,
    AddedBatch,
    Addition,
    Change,
    ImageList,
    ListedImage,
    Places,
    Removed,
    body_of,
    errors,
    image_json,
    is_known,
    one_of_several,
)
from vpr.serve.service import Service

SHOWN_SIDE, SHOWN_KEPT = 640, 200  # pixels of a shown image's longest side, and how many of them are kept
MOST_LISTED = 1000  # images of a page
FILE_BYTES = 200_000_000  # of a database image that is shown, at most
CACHED = {"cache-control": "private, no-cache"}  # kept, and asked for again: the image may be replaced at any time
BODY = body_of({"image": BINARY, **Addition.model_json_schema()["properties"]})
LIST = {"type": "array", "items": Addition.model_json_schema(), "description": "Of each image, in their order."}
SEVERAL = body_of({"image": {"type": "array", "items": BINARY}, "images": LIST}, raw=False)
SEEN = errors(401, 403, 404, 429, 503) | {
    200: {"content": {"image/jpeg": {"schema": BINARY}}, "description": "The image."},
    304: {"description": "It is the one that If-None-Match names."},
}
WRITING = errors(400, 401, 403, 408, 409, 413, 415, 422, 429, 503)
ADDED = WRITING | {200: {"model": Added, "description": "That of its name was replaced."}}
GONE = "the image's file is not there any more, or cannot be decoded"


def image_routes(app: FastAPI, service: Service) -> None:
    """Add the routes."""
    locator, shown = service.locator, dict[str, bytes]()
    latest: tuple[Records | None, bytes] = (None, b"")

    @app.get("/images/{image}", name="get_image", response_class=Response, responses=SEEN)
    async def image(image: str, request: Request) -> Response:
        """A database image as a JPEG of at most 640 pixels."""
        records = locator.records
        row = row_of(records, image)
        tag = f'"{records.hashes[row].tobytes().hex()[:32]}-{records.modified[row]:x}"'
        headers = {**CACHED, "etag": tag}
        if is_known(request, tag):
            return Response(status_code=304, headers=headers)
        if (jpeg := shown.get(image + tag)) is None:
            jpeg = shown[image + tag] = await _shown(service, records.file(row, locator.root))
            if len(shown) > SHOWN_KEPT:
                del shown[next(iter(shown))]
        return Response(jpeg, media_type="image/jpeg", headers=headers)

    def map_text() -> bytes:
        nonlocal latest
        records, (known, text) = locator.records, latest
        if records is not known:
            text = json.dumps(map_json(records), separators=(",", ":")).encode()
            latest = records, text
        return text

    @app.get("/map", name="get_map", response_model=Places, responses=errors(401, 403, 429, 503))
    async def map_of_places() -> Response:
        """Places of the database's images, of many a part that covers all of them evenly."""
        await service.follow()
        return Response(await asyncio.to_thread(map_text), media_type="application/json")

    _listing_route(app, service)
    _changing_routes(app, service, shown)


def _listing_route(app: FastAPI, service: Service) -> None:
    """Add the route that lists images; their names are sorted once, until others come."""
    sorted_names: tuple[Records | None, list[str]] = (None, [])

    def listed(after: str, prefix: str, limit: int) -> ImageList:
        nonlocal sorted_names
        records, (known, names) = service.locator.records, sorted_names
        if records is not known:
            names = sorted(filter(None, records.names))  # those of removed images are empty
            sorted_names = records, names
        start = max(bisect.bisect_right(names, after), bisect.bisect_left(names, prefix))
        chosen = list(takewhile(lambda name: name.startswith(prefix), islice(names, start, start + limit + 1)))
        rows = [records.row_of[name] for name in chosen[:limit]]
        return ImageList(
            images=[ListedImage(**image_json(records, row)) for row in rows],
            next=chosen[limit - 1] if len(chosen) > limit else None,
        )

    @app.get("/images", name="list_images", response_model=ImageList, responses=errors(400, 401, 403, 429, 503))
    async def list_images(
        after: Annotated[str, Query(max_length=1000, description="Names behind this one; `next` of the answer.")] = "",
        prefix: Annotated[str, Query(max_length=1000, description="Names that begin so.")] = "",
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="How many.")] = 100,
    ) -> Response:
        """The database's images by name, a page at a time."""
        await service.follow()
        page = await asyncio.to_thread(listed, after, prefix, limit)
        return Response(page.model_dump_json(), media_type="application/json")


def _changing_routes(app: FastAPI, service: Service, shown: dict[str, bytes]) -> None:
    """Add the routes that add and remove images; what was kept to be shown is dropped where one is removed."""

    def require_writable() -> None:
        if not service.settings.writable:
            raise Problem(403, "this server was started without --writable: nothing can be added or removed", True)

    @app.post("/images", status_code=201, response_model=Added, responses=ADDED, openapi_extra=BODY)
    async def add_image(request: Request, said: Annotated[Addition, Query()]) -> Response:
        """Add an image, or replace that of its name. Without a place the GPS in its EXIF is taken."""
        require_writable()
        async with service.bodies.form(request, 1) as form:
            fields = {name: texts if name == "column" else texts[-1] for name, texts in form.fields.items()}
            (told,) = await add(service, form.images, [{**said.model_dump(exclude_none=True), **fields}])
        if isinstance(told, BaseException):
            raise told
        headers = {"location": f"/images/{told.id}"} if told.new else {}
        return JSONResponse(told.model_dump(), 201 if told.new else 200, headers)

    @app.post("/images/batch", response_model=AddedBatch, responses=WRITING, openapi_extra=SEVERAL)
    async def add_images(request: Request) -> Response:
        """Add several images in one step, or replace those of their names; each is added, or has an error."""
        require_writable()
        async with service.bodies.form(request, service.settings.batch_requests) as form:
            try:
                said = from_json(form.fields.get("images", [""])[0])
            except ValueError:
                said = None
            if not isinstance(said, list) or len(said) != len(form.images):
                raise Problem(400, f"images is wanted as JSON: a list of what is said of the {len(form.images)} images")
            found = await add(service, form.images, said)
        return JSONResponse({"answers": [one_of_several(each) for each in found]})

    @app.patch("/images/{image}", response_model=ListedImage, responses=errors(400, 401, 403, 404, 409, 422, 429, 503))
    async def change_image(image: str, said: Annotated[Change, Query()]) -> ListedImage:
        """Change an image's place, or values of its columns; what is not said stays."""
        require_writable()
        records = service.locator.records
        name = records.names[row_of(records, image)]
        await change(service, name, said)
        records = service.locator.records
        return ListedImage(**image_json(records, records.row_of[name]))

    @app.delete("/images/{image}", responses=errors(401, 403, 404, 409, 429, 503))
    async def remove_image(image: str) -> Removed:
        """Remove an image from the database."""
        require_writable()
        await remove(service, row_of(service.locator.records, image))
        shown.clear()
        return Removed(id=image, images=service.locator.images)


def row_of(records: Records, number: str) -> int:
    """The row of an image by its id. Raises a Problem (404) where there is none."""
    if number.isascii() and number.isdecimal() and len(number) < 20:
        for row in (records.ids == int(number)).nonzero()[0] if int(number) < 1 << 63 else ():
            if records.names[row]:  # that of a removed image is empty
                return int(row)
    raise Problem(404, "there is no image of this id")


async def _shown(service: Service, file: Path) -> bytes:
    def read() -> bytes:
        if file.stat().st_size > FILE_BYTES:
            raise OSError("too large")
        return file.read_bytes()

    try:
        return await service.thumbnail(read, SHOWN_SIDE)
    except (OSError, Problem) as error:
        if isinstance(error, Problem) and error.status == 503:
            raise
        raise Problem(404, GONE) from error


def map_json(records: Records) -> dict[str, Any]:
    """Positions of images, column by column: easting and northing in metres, and latitude and longitude where known.

    Of many a part is taken that covers all of them evenly.
    """
    there = np.array([bool(name) for name in records.names], bool)  # those of removed images are empty
    rows = np.flatnonzero(there & np.isfinite(records.positions).all(axis=1))
    rows = rows[thinned(records.positions[rows])]
    easting, northing = records.positions[rows].round(2).T.tolist()
    latitude, longitude = records.degrees[rows].round(7).T.tolist() if records.zone else (None, None)
    places = {"easting": easting, "northing": northing, "latitude": latitude, "longitude": longitude}
    ids, names = [str(number) for number in records.ids[rows]], [records.names[row] for row in rows]
    return {"images": int(there.sum()), "zone": records.zone, "ids": ids, "names": names, **places}
