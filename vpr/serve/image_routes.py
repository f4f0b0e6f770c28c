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

from vpr.database.records import Records
from vpr.report.interactive import thinned
from vpr.serve.keeping import NewImage, add, remove
from vpr.serve.problems import Problem
from vpr.serve.schemas import (
    BINARY,
    Added,
    ImageList,
    ListedImage,
    Places,
    Removed,
    body_of,
    errors,
    image_json,
    is_known,
    row_of,
)
from vpr.serve.service import Service

SHOWN_SIDE, SHOWN_KEPT = 640, 200  # pixels of a shown image's longest side, and how many of them are kept
MOST_LISTED = 1000  # images of a page
FILE_BYTES = 200_000_000  # of a database image that is shown, at most
CACHED = {"cache-control": "private, no-cache"}  # kept, and asked for again: the image may be replaced at any time
METRES = {name: {"type": "number", "description": "Metres."} for name in ("easting", "northing")}
DEGREES = {name: {"type": "number", "description": "Degrees."} for name in ("latitude", "longitude")}
BODY = body_of({"image": BINARY, "name": {"type": "string"}, **DEGREES, **METRES})
SEEN = errors(401, 403, 404, 429, 503) | {
    200: {"content": {"image/jpeg": {"schema": BINARY}}, "description": "The image."},
    304: {"description": "It is the one that If-None-Match names."},
}
ADDED = errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503) | {
    200: {"model": Added, "description": "That of its name was replaced."}
}
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

    @app.get("/map", name="get_map", response_model=Places, responses=errors(401, 403, 429))
    async def map_of_places() -> Response:
        """Places of the database's images, of many a part that covers all of them evenly."""
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

    @app.get("/images", name="list_images", response_model=ImageList, responses=errors(400, 401, 403, 429))
    async def list_images(
        after: Annotated[str, Query(max_length=1000, description="Names behind this one; `next` of the answer.")] = "",
        prefix: Annotated[str, Query(max_length=1000, description="Names that begin so.")] = "",
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="How many.")] = 100,
    ) -> Response:
        """The database's images by name, a page at a time."""
        page = await asyncio.to_thread(listed, after, prefix, limit)
        return Response(page.model_dump_json(), media_type="application/json")


def _changing_routes(app: FastAPI, service: Service, shown: dict[str, bytes]) -> None:
    """Add the routes that add and remove images; what was kept to be shown is dropped where one is removed."""

    def require_writable() -> None:
        if not service.settings.writable:
            raise Problem(403, "this server was started without --writable: nothing can be added or removed", True)

    @app.post("/images", status_code=201, response_model=Added, responses=ADDED, openapi_extra=BODY)
    async def add_image(
        request: Request,
        name: Annotated[str | None, Query(max_length=1000, description="A plain one such as street/12.jpg.")] = None,
        latitude: Annotated[float | None, Query(description="Degrees.")] = None,
        longitude: Annotated[float | None, Query(description="Degrees.")] = None,
        easting: Annotated[float | None, Query(description="Metres, in the database's UTM zone.")] = None,
        northing: Annotated[float | None, Query(description="Metres.")] = None,
    ) -> Response:
        """Add an image, or replace that of its name. Without a place the GPS in its EXIF is taken."""
        require_writable()
        said = {"name": name, "latitude": latitude, "longitude": longitude, "easting": easting, "northing": northing}
        async with service.bodies.form(request, 1) as form:
            number, new = await add(service, form.images[0], _new_image(said, form.fields))
        told = {"id": number, "new": new, "images": service.locator.images}
        return JSONResponse(told, 201 if new else 200, {"location": f"/images/{number}"} if new else {})

    @app.delete("/images/{image}", responses=errors(401, 403, 404, 409, 429, 503))
    async def remove_image(image: str) -> Removed:
        """Remove an image from the database."""
        require_writable()
        await remove(service, row_of(service.locator.records, image))
        shown.clear()
        return Removed(id=image, images=service.locator.images)


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


def _new_image(said: dict[str, Any], form: dict[str, str]) -> NewImage:
    """What a request says of an image, by its address or by fields of its form."""
    values = dict(said)
    for name in filter(form.__contains__, said):
        try:
            values[name] = form[name] if name == "name" else float(form[name])
        except ValueError as error:
            raise Problem(400, f"{name} is wanted as a number") from error
    if values["name"] is None:
        raise Problem(400, "name is wanted: that of the image in the database, such as street/12.jpg")
    return NewImage(**values)


def map_json(records: Records) -> dict[str, Any]:
    """Positions of images, column by column: easting and northing in metres, and latitude and longitude where known.

    Of many a part is taken that covers all of them evenly.
    """
    there = np.array([bool(name) for name in records.names], bool)  # those of removed images are empty
    rows = np.flatnonzero(there & np.isfinite(records.positions).all(axis=1))
    rows = rows[thinned(records.positions[rows])]
    easting, northing = records.positions[rows].round(2).T.tolist()
    latitude, longitude = records.degrees[rows].round(7).T.tolist() if records.zone else (None, None)
    return {
        "images": int(there.sum()),
        "zone": records.zone,
        "ids": [str(number) for number in records.ids[rows]],
        "names": [records.names[row] for row in rows],
        "easting": easting,
        "northing": northing,
        "latitude": latitude,
        "longitude": longitude,
    }
