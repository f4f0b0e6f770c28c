"""What every request passes first: whose it is, from where, and what goes back whatever happens."""

import asyncio
import datetime
import hmac
import json
import math
import re
import secrets
import time
from time import monotonic

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vpr.common.progress import say
from vpr.serve.problems import Problem
from vpr.serve.service import Metrics
from vpr.serve.settings import Settings

# What needs no token: it tells nothing of the images, and a browser asks for it before it has one.
OPEN = {"/", "/health", "/ready", "/docs", "/openapi.json", "/favicon.ico"}
OPEN_FOLDER = "/assets/"
VERSION = "/v1"  # before every address; without it addresses are those of the newest version
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
CROWDED = "crowded"  # in the state of a connection that came when there were too many
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
MOST_TRIES, TRIES_SECONDS, MOST_GUESSERS = 30, 60.0, 10_000  # wrong tokens of an address in a time; addresses
PROXIED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
HEAD_BYTES, MOST_HEADERS = 16 << 10, 100  # of a request
LOOPBACK = {"127.0.0.1", "::1"}
LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}


class Guard:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._local_names = LOCAL_NAMES | {f"[{settings.host}]" if ":" in settings.host else settings.host}
        self._wrong: dict[str, list[float]] = {}  # when wrong tokens came, by client
        self._left: dict[str, tuple[float, float]] = {}  # requests that a client may make at once, and since when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or not, and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, is_head = time.perf_counter(), 500, scope["method"] == "HEAD"
        if is_head:  # answered as GET, without the body
            scope = {**scope, "method": "GET"}
        asked = scope["path"]
        if asked.startswith(f"{VERSION}/"):
            raw = scope["raw_path"].removeprefix(VERSION.encode())
            scope = {**scope, "path": asked.removeprefix(VERSION), "raw_path": raw}
        named = Headers(scope=scope).get("x-request-id", "")
        request_id = named if REQUEST_ID.fullmatch(named) else secrets.token_hex(8)

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.body" and is_head:
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            problem = self._problem(scope)
            await (problem.response() if problem else self._app)(scope, receive, send_guarded)
        except asyncio.CancelledError:  # the time has passed that it had when the server was to end
            await Problem(503, "the server is ending", close=True).response()(scope, receive, send_guarded)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - began
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if self._settings.access_log:
                now = datetime.datetime.now(datetime.timezone.utc)
                line = {
                    "time": now.isoformat(timespec="milliseconds"), "id": request_id,
                    "client": client_of(scope), "method": "HEAD" if is_head else scope["method"], "path": asked,
                    "status": status, "ms": round(1000 * seconds, 1),
                }  # fmt: skip
                say(json.dumps(line))

    def _problem(self, scope: Scope) -> Problem | None:
        """Why a request is not let through."""
        headers, path, token = Headers(scope=scope), scope["path"], self._settings.token
        if scope.get("state", {}).get(CROWDED) and path != "/health":  # whether the server runs is told all the same
            return Problem(503, "the server has too many connections: ask again in a moment", close=True, seconds=2)
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in headers.raw)
        if size > HEAD_BYTES or len(headers.raw) > MOST_HEADERS:
            return Problem(400, "the address and the headers are too large", close=True)
        if token is None and self._settings.is_local and _host_name(headers) not in self._local_names:
            # A page of another site whose name was made to mean this machine (DNS rebinding).
            return Problem(403, "this server answers to the name of its own machine alone", close=True)
        if token is None and any(name in headers for name in PROXIED):
            return Problem(403, "a server without a token answers no proxy: start it with a token", close=True)
        is_open = path in OPEN or path.startswith(OPEN_FOLDER)
        if not is_open and self._settings.rate and (problem := self._rate_problem(client_of(scope))):
            return problem
        if token and not is_open and (problem := self._token_problem(scope, headers.get("authorization"), token)):
            return problem
        if scope["method"] not in SAFE_METHODS and _from_elsewhere(headers):
            return Problem(403, "a page of another site may not send anything here", close=True)
        return None

    def _token_problem(self, scope: Scope, brought: str | None, token: str) -> Problem | None:
        """Why a token that was brought does not let its client in; who has guessed too often is not even told."""
        now, client = monotonic(), client_of(scope)
        if brought is not None:
            wrong = [when for when in self._wrong.get(client, ()) if now - when < TRIES_SECONDS]
            if len(wrong) >= MOST_TRIES:
                seconds = math.ceil(wrong[0] + TRIES_SECONDS - now)
                return Problem(429, "too many wrong tokens came from this address: wait", close=True, seconds=seconds)
            kind, _, word = brought.partition(" ")
            # Both are compared, in a time that tells nothing of them.
            may_all, may_ask = (
                hmac.compare_digest(word.strip().encode(), each.encode()) and kind.lower() == "bearer"
                for each in (token, self._settings.read_token or token)
            )
            if may_all or (may_ask and not _changes(scope)):
                return None
            if may_ask:
                text = "this token may ask, but neither add nor remove images"
                return Problem(403, text, close=True, code="read_only")
            self._wrong.pop(client, None)
            self._wrong[client] = [*wrong, now]
            if len(self._wrong) > MOST_GUESSERS:
                del self._wrong[next(iter(self._wrong))]
        return Problem(401, "a token is wanted: send the header Authorization: Bearer TOKEN", close=True)

    def _rate_problem(self, client: str) -> Problem | None:
        """Why a client that asks too often is sent away: it may ask twice as often as on the average, for a second."""
        now, rate = monotonic(), self._settings.rate
        most = max(1.0, 2 * rate)
        left, since = self._left.pop(client, (most, now))
        left = min(most, left + rate * (now - since))
        self._left[client] = max(0.0, left - 1), now
        if len(self._left) > MOST_GUESSERS:
            del self._left[next(iter(self._left))]
        if left >= 1:
            return None
        self._left[client] = left, now
        text = f"more than {rate:g} requests a second came from this address: wait"
        return Problem(429, text, close=True, seconds=math.ceil((1 - left) / rate), code="too_often")


def _changes(scope: Scope) -> bool:
    """Whether a request would change the database."""
    return scope["method"] not in SAFE_METHODS and scope["path"].startswith("/images")


def client_of(scope: Scope) -> str:
    """The address of who asks; behind a proxy on this machine, that which the proxy says it has the request from."""
    address = (scope.get("client") or ("", 0))[0]
    forwarded = Headers(scope=scope).get("x-forwarded-for", "")
    return forwarded.rpartition(",")[2].strip()[:64] or address if address in LOOPBACK else address


def _host_name(headers: Headers) -> str:
    """The name that a request asked for, without its port."""
    host = headers.get("host", "").lower()
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]


def _from_elsewhere(headers: Headers) -> bool:
    """Whether a browser sent a request for a page of another origin; other programs say nothing of origins."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return True
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()
