"""HTTP as uvicorn speaks it, but slow and idle clients are not waited for, and errors are JSON."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vpr.serve.guard import CROWDED

HEAD_SECONDS = 10.0  # in which a request's head must have come


class PatientProtocol(H11Protocol):
    """A connection that is closed if a request's head does not come: uvicorn would hold it for ever.

    Where there are more than `limit_concurrency`, the longest idle ones are closed for new ones. If none is idle, a new
    one is answered by `Guard`, as JSON, counted, and with an answer for /health; uvicorn would turn all away.
    """

    _timer: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
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
        """See `H11Protocol`."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if not self.is_idle:
            self._wait_no_longer()
        elif self._timer is None:
            self._wait()  # a head has begun to come, on a connection that is used again

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._wait_no_longer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has a head of more than uvicorn takes."""
        text = json.dumps({"error": "this is no request of HTTP, or its headers are too large"}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text)),
                   (b"connection", b"close")]  # fmt: skip
        try:
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=text), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer is being sent already
            pass
        self.transport.close()

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
