"""Starts and stops the server."""

import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.retrieval.locator import Locator
from vpr.serve.app import make_app
from vpr.serve.guard import HEAD_BYTES
from vpr.serve.protocol import PatientProtocol
from vpr.serve.settings import Settings

KEEP_ALIVE = 30  # seconds that an idle connection is kept
BACKLOG = 256
CONNECTIONS = 4  # for each image that may be underway, and as many for the rest


class Server(uvicorn.Server):
    """Says where it listens once it does."""

    address: str = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        say(f"listening at {self.address} (Ctrl-C ends it)")


def run(settings: Settings, locator: Locator) -> None:
    """Serve until a signal comes (SIGINT, SIGTERM), then finish what has begun.

    Raises:
        UserError: the settings are not safe, or the port is taken.
    """
    app, listening = make_app(locator, settings), listen(settings.host, settings.port)
    config = uvicorn.Config(
        app, http=PatientProtocol, ws="none", lifespan="on", log_level="warning", access_log=False,
        server_header=False, proxy_headers=False, h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=settings.stop_seconds,
        limit_concurrency=CONNECTIONS * settings.queue + CONNECTIONS, backlog=BACKLOG,
    )  # fmt: skip
    for note in settings.notes():
        say(note)
    server = Server(config)
    host, port = listening.getsockname()[:2]
    server.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with listening, _signals_that_end_nothing_else():
        server.run(sockets=[listening])
    say("all that had begun is finished")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the host is not of this machine, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {host}:{port} ({error}): choose another --port, or --host") from error
    return listening


@contextlib.contextmanager
def _signals_that_end_nothing_else() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when all is done; then it shall do nothing."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
