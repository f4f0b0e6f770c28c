"""Servers in a thread of the tests' process, and clients that ask them."""

import contextlib
import http.client
import io
import json
import threading
import time

import uvicorn
from PIL import Image

from vpr.serve.app import make_app
from vpr.serve.guard import HEAD_BYTES
from vpr.serve.server import PatientProtocol, listen
from vpr.serve.settings import Settings


def as_bytes(file_or_image, kind="PNG", **settings):
    """The bytes of an image file."""
    if not isinstance(file_or_image, Image.Image):
        return file_or_image.read_bytes()
    stream = io.BytesIO()
    file_or_image.save(stream, kind, **settings)
    return stream.getvalue()


class Client:
    """Asks a server; gives status, JSON (or bytes) and headers."""

    def __init__(self, port, headers=None):
        self.port, self.headers = port, headers or {}

    def __call__(self, method, path, body=None, headers=None, timeout=20):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body, {**self.headers, **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(content) if is_json and content else content, answer.headers

    def locate(self, image, query="", **named):
        return self("POST", f"/locate{query}", image, {"content-type": "image/png"}, **named)


def form(*parts):
    """A multipart body of (name, file name or None, content), and its content type."""
    lines = []
    for name, filename, content in parts:
        shown = f'; filename="{filename}"' if filename is not None else ""
        lines += [f'--limit\r\ncontent-disposition: form-data; name="{name}"{shown}\r\n\r\n'.encode(), content, b"\r\n"]
    return b"".join([*lines, b"--limit--\r\n"]), {"content-type": "multipart/form-data; boundary=limit"}


@contextlib.contextmanager
def serving(locator, **settings):
    """A server in a thread of this process; gives its client."""
    connections = settings.pop("connections", None)
    chosen = Settings(port=0, decoders=settings.pop("decoders", 1), **settings)
    app, listening = make_app(locator, chosen), listen(chosen.host, 0)
    config = uvicorn.Config(
        app, http=PatientProtocol, ws="none", log_level="error", h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=20, timeout_keep_alive=1, limit_concurrency=connections,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        client = Client(listening.getsockname()[1])
        client.server, client.app = server, app
        yield client
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
