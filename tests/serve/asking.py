"""Servers in a thread of the tests' process, and clients that ask them."""

import contextlib
import functools
import http.client
import io
import json
import threading
import time
from unittest import mock

from PIL import Image

from vpr.serve.app import make_app
from vpr.serve.decoders import Decoders
from vpr.serve.server import Server, listen
from vpr.serve.settings import Settings

TOKEN = "a long enough token"
PNG = {"content-type": "image/png"}


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
        return self("POST", f"/locate{query}", image, PNG, **named)

    def metric(self, name):
        """A number of /metrics."""
        lines = self("GET", "/metrics")[1].decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def wait_until_underway(self, count):
        """Until so many images are."""
        while self.metric("vpr_queue_images") != count:
            pass


def form(*parts):
    """A multipart body of (name, file name or None, content), and its content type."""
    lines = []
    for name, filename, content in parts:
        shown = f'; filename="{filename}"' if filename is not None else ""
        lines += [f'--limit\r\ncontent-disposition: form-data; name="{name}"{shown}\r\n\r\n'.encode(), content, b"\r\n"]
    return b"".join([*lines, b"--limit--\r\n"]), {"content-type": "multipart/form-data; boundary=limit"}


@functools.cache
def decoders():
    """Those of all servers of the tests: each process takes a second to begin."""
    kept = Decoders(2, 10.0)
    kept.end, kept.close = kept.close, lambda: None
    return kept


@contextlib.contextmanager
def serving(locator, **settings):
    """A server in a thread of this process; gives its client."""
    chosen = Settings(port=0, **settings)
    server, listening = Server(make_app(locator, chosen), chosen), listen(chosen.host, 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    with mock.patch("vpr.serve.service.Decoders", lambda *_: decoders()):
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
    try:
        yield Client(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextlib.contextmanager
def asking_at_once(client, image, query, count):
    """Threads that ask a question until the block ends; gives the statuses of their answers, which come by then."""
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(client.locate(image, query)[0])) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield statuses
    for thread in threads:
        thread.join()
