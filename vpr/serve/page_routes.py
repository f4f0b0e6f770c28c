"""Routes of the page at / and of its files; they need no token."""

import asyncio
import functools
import hashlib

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from vpr.serve.conditional import is_known
from vpr.serve.page import asset, page_headers, page_html, street_tiles
from vpr.serve.problems import Problem
from vpr.serve.settings import Settings


def page_routes(app: FastAPI, settings: Settings) -> None:
    """Add the routes.

    Raises:
        UserError: the settings' street tiles are none.
    """
    tiles = street_tiles(settings.tiles) if settings.tiles else None
    html = functools.cache(lambda: page_html(tiles))  # made when it is first asked for: that takes a second

    @app.get("/", include_in_schema=False, response_model=None)
    async def page() -> Response:
        return HTMLResponse(await asyncio.to_thread(html), headers=page_headers(tiles))

    @app.get("/assets/{name}", include_in_schema=False, response_model=None)
    async def assets(name: str, request: Request) -> Response:
        found = await asyncio.to_thread(asset, name)
        if found is None:
            raise Problem(404, "there is nothing at this address")
        kind, content = found
        # Asked for again each time, but not sent again: an updated server's page never runs with old scripts.
        headers = {"cache-control": "no-cache", "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
        if is_known(request, headers["etag"]):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)
