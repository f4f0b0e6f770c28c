"""HTTP as uvicorn speaks it, but for two things: slow clients are not waited for, and errors are JSON."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # in which a request's head must have come


class PatientProtocol(H11Protocol):
    """A connection that is closed if a request's head does not come: uvicorn would hold it for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
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
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
