"""The page at /, made of the same parts as the report: where was this image taken?

Its script asks `POST /locate`, `GET /map` and `GET /images/{id}` of the same server and nothing of any other, but for
street tiles where the user named a server of these.
"""

import asyncio
import functools
import hashlib
import re
import urllib.parse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from vpr.common.errors import UserError
from vpr.report import interactive
from vpr.report.html import rendered
from vpr.serve.problems import Problem
from vpr.serve.schemas import is_known

HERE = Path(__file__).parent
TEMPLATE, DOCS = HERE / "page.html", HERE / "docs.html"
SCRIPT, STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
ASSETS = {
    "style.css": (STYLE, interactive.STYLE),
    "page.css": (STYLE, HERE / "page.css"),
    "figures.js": (SCRIPT, interactive.FIGURES),
    "client.js": (SCRIPT, HERE / "client.js"),
    "answer.js": (SCRIPT, HERE / "answer.js"),
    "page.js": (SCRIPT, HERE / "page.js"),
}
COORDINATES = ("{z}", "{x}", "{y}")  # of a tile, in an address


@dataclass(frozen=True)
class Tiles:
    """Street tiles."""

    address: str  # of a tile, with {z}, {x} and {y}
    attribution: str  # whom they are owed to
    link: str = ""  # what the attribution leads to; empty: nothing

    @property
    def origin(self) -> str:
        """Scheme and host of the address, as a Content-Security-Policy names them."""
        parts = urllib.parse.urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}"


KNOWN_TILES = {
    "osm": Tiles(
        "https://tile.openstreetmap.org/{z}/{x}/{y}.png",
        "© OpenStreetMap contributors",
        "https://www.openstreetmap.org/copyright",
    )
}


def street_tiles(text: str) -> Tiles:
    """Street tiles by a name of KNOWN_TILES or by their address. Raises a UserError where it is neither."""
    if text in KNOWN_TILES:
        return KNOWN_TILES[text]
    parts = urllib.parse.urlsplit(text)
    plain = text.isascii() and text.isprintable() and not set(text) & set(" '\";,<>")
    has_host = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    if not (plain and has_host and all(text.count(part) == 1 and part not in parts.netloc for part in COORDINATES)):
        wanted = f"{', '.join(KNOWN_TILES)}, or an address such as https://HOST/{{z}}/{{x}}/{{y}}.png"
        raise UserError(f"--tiles={text} names no street tiles: wanted {wanted}")
    return Tiles(text, str(parts.hostname))


def page_html(tiles: Tiles | None = None) -> str:
    """The page, which loads the rest by `asset`; without street tiles it needs no network but this server."""
    data: dict[str, Any] = {"tiles": asdict(tiles) if tiles else None, "figure": None, "tiled_figure": None}
    if interactive.bokeh_script() is not None:
        data["figure"] = interactive.map_figure()
        if tiles:
            address = re.sub(r"\{[xyz]\}", lambda found: found[0].upper(), tiles.address)  # as Bokeh writes them
            data["tiled_figure"] = interactive.map_figure(address)
    return rendered(TEMPLATE, data=data)


def asset(name: str) -> tuple[str, bytes] | None:
    """The type and the content of a file of the page; None where there is none of this name."""
    if name == "bokeh.min.js" and (script := interactive.bokeh_script()) is not None:
        return SCRIPT, script.encode()
    if name not in ASSETS:
        return None
    kind, file = ASSETS[name]
    return kind, file.read_bytes()


def page_headers(tiles: Tiles | None = None) -> dict[str, str]:
    """Headers of the page: nothing but this server's own scripts run, and no other host is asked but that of tiles.

    Servers of tiles want to be told whose page asks them: these are sent the server's origin, and nothing more.
    """
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self' 'unsafe-inline'",  # Bokeh's own
        "img-src": f"'self' data: blob:{f' {tiles.origin}' if tiles else ''}",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "referrer-policy": "strict-origin-when-cross-origin" if tiles else "no-referrer",
    }


def page_routes(app: FastAPI, named: str | None) -> None:
    """Routes of the page at / and of its files, which need no token; with street tiles if named.
    Raises a UserError as of `street_tiles`."""
    tiles = street_tiles(named) if named else None
    html = functools.cache(lambda: page_html(tiles))  # made when it is first asked for: that takes a second

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(await asyncio.to_thread(html), headers=page_headers(tiles))

    @app.get("/assets/{name}", include_in_schema=False)
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
