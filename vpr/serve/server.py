"""Starts and stops the server, and speaks HTTP as uvicorn does, but waits for no slow or idle client."""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Iterator

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.retrieval.locator import Locator
from vpr.serve.app import make_app
from vpr.serve.guard import CROWDED, HEAD_BYTES
from vpr.serve.settings import Settings

HEAD_SECONDS = 10.0  # in which a request's head must have come
KEEP_ALIVE = 30  # seconds that an idle connection is kept
CONNECTIONS = 4  # for each image that may be underway, and as many for the rest


class Server(uvicorn.Server):
    """Says where it listens once it does."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        """Of an application of `make_app`; see `run`."""
        config = uvicorn.Config(
            app, http=PatientProtocol, ws="none", lifespan="on", log_level="warning", access_log=False,
            server_header=False, proxy_headers=False, h11_max_incomplete_event_size=HEAD_BYTES,
            timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=settings.stop_seconds,
            limit_concurrency=CONNECTIONS * settings.queue + CONNECTIONS, backlog=256,
        )  # fmt: skip
        super().__init__(config)
        self._header = "-H 'Authorization: Bearer TOKEN' " if settings.token else ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            host, port = listening.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            say(f"listening at {address} (Ctrl-C ends it)")
            say(f"next: open it in a browser, or curl {self._header}--data-binary @IMAGE.jpg '{address}/locate?top=3'")


def run(settings: Settings, locator: Locator) -> None:
    """Serve until a signal comes (SIGINT, SIGTERM), then finish what has begun.
    Raises a UserError where the settings are not safe, or the port is taken."""
    server, listening = Server(make_app(locator, settings), settings), listen(settings.host, settings.port)
    for note in settings.notes():
        say(note)
    with listening, _signals_that_end_nothing_else():
        server.run(sockets=[listening])
    say("all that had begun is finished")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises a UserError: a host of another machine, a port that is taken or not allowed."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            stack.pop_all()  # it stays open
            return listening
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {host}:{port} ({error}): choose another --port, or --host") from error


@contextlib.contextmanager
def _signals_that_end_nothing_else() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when all is done; then it shall do nothing."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class PatientProtocol(H11Protocol):
    """A connection that is closed if a request's head does not come: uvicorn would hold it for ever.

    Where there are more than `limit_concurrency`, the longest idle ones are closed for new ones. If none is idle, a new
    one is answered by `Guard`, as JSON, counted, and with an answer for /health; uvicorn would turn all away.
    """

    _timer: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        most, self.limit_concurrency = self.limit_concurrency, None
        self._idle_since = self.loop.time()
        super().connection_made(transport)
        self._wait()
        if most is not None and len(self.connections) > most:
            others = [each for each in self.connections if isinstance(each, PatientProtocol) and each is not self]
            idle = [each for each in others if each.is_idle and not each.transport.is_closing()]
            for each in sorted(idle, key=lambda each: each._idle_since)[: len(self.connections) - most]:
                each.transport.close()
            if not idle:
                self.app_state = {**self.app_state, CROWDED: True}

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.is_idle:
            self._wait_no_longer()
        elif self._timer is None:
            self._wait()  # a head has begun to come, on a connection that is used again

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_longer()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._close)

    def _wait_no_longer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if self.is_idle:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has a head of more than uvicorn takes."""
        said = {"error": "this is no request of HTTP, or its headers are too large", "code": "wrong_request"}
        text = json.dumps(said).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text)),
                   (b"connection", b"close")]  # fmt: skip
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is being sent already
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=text), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
