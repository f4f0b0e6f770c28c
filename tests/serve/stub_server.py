"""A server that answers by the contract of the page, without a model: what is asked of it is kept."""

import http.server
import io
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from vpr.serve.page import asset, page_headers, page_html

COUNT, ZONE = 12, "17N"
HTML, DRIVE = "text/html; charset=utf-8", Path(__file__).with_name("drive_page.js").read_bytes()
NAMES = [f"street/{n:02d}.jpg" for n in range(COUNT)]
NAMES[3] = "<img src=x onerror=\"document.title='broken'\">.jpg"
POSITIONS = [(500_000.0 + 40 * (n % 4), 4_480_000.0 + 30 * (n // 4)) for n in range(COUNT)]
DEGREES = [(40.47 + 0.0003 * (n // 4), -81.0 + 0.0005 * (n % 4)) for n in range(COUNT)]


def jpeg(shade: int, size: tuple[int, int] = (64, 48)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 255 - shade, 120)).save(stream, format="JPEG")
    return stream.getvalue()


def match(n: int, distance: float) -> dict:
    (easting, northing), (latitude, longitude) = POSITIONS[n], DEGREES[n]
    return {
        "id": str(2**62 + n), "name": NAMES[n], "easting": easting, "northing": northing, "zone": ZONE,
        "latitude": latitude, "longitude": longitude, "distance": distance, "score": None,
        "image": f"/images/{2**62 + n}",
    }  # fmt: skip


def answer(shown: list[int], **changes) -> dict:
    """The answer that the database images `shown` match."""
    agreement = [{"query": [0.1 * n, 0.2], "hit": [0.1 * n, 0.3], "weight": 0.1 * n} for n in range(1, 9)]
    usual = {
        "matches": [match(n, 0.5 + 0.05 * rank) for rank, n in enumerate(shown)], "confidence": 0.93,
        "confidence_kind": "probability that the first match is right", "refused": False, "model": "a model",
        "images": COUNT, "usual_distance": 1.25, "timing": {"decode_ms": 99.0, "total_ms": 12.5},
        "agreement": agreement,
    }  # fmt: skip
    return {**usual, **changes}


def map_of_all() -> dict:
    columns = zip(*(pair + degrees for pair, degrees in zip(POSITIONS, DEGREES, strict=True)), strict=True)
    named = dict(zip(("easting", "northing", "latitude", "longitude"), map(list, columns), strict=True))
    return {"images": COUNT, "zone": ZONE, "ids": [str(2**62 + n) for n in range(COUNT)], "names": NAMES, **named}


class Stub(http.server.BaseHTTPRequestHandler):
    """Answers by the lists and settings of its server."""

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        if path == "/":
            text, headers = page_html().replace("<head>", '<head><script src="drive.js"></script>'), page_headers()
            policy = headers["content-security-policy"].replace(
                "; frame-ancestors 'none'", ""
            )  # `frames` are around it
            self._send(200, text.encode(), HTML, {**headers, "content-security-policy": policy})
        elif path == "/frames":
            self._send(200, self.server.frames.encode(), HTML)
        elif path == "/drive.js":
            self._send(200, self.server.drive, "text/javascript")
        elif path.startswith("/assets/"):
            kind, content = asset(path.removeprefix("/assets/"))
            self._send(200, content, kind)
        elif self._has_token() and path == "/map":
            self._send(200, json.dumps(map_of_all()).encode())
        elif self._has_token():
            self._send(200, jpeg(20 * (int(path.rsplit("/", 1)[1]) - 2**62)), "image/jpeg")
        else:
            self._refuse()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._has_token():
            self._refuse()
            return
        asked = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        self.server.asked.append({**asked, "bytes": len(body), "type": self.headers["Content-Type"]})
        status, content = self.server.answers.pop(0)
        headers = {"Retry-After": "0.2"} if status == 503 else {}
        self._send(status, json.dumps(content).encode(), headers=headers)

    def _has_token(self):
        return self.server.token is None or self.headers["Authorization"] == f"Bearer {self.server.token}"

    def _refuse(self):
        self._send(401, b'{"error": "a token is wanted"}')

    def _send(self, status, content, kind="application/json", headers=None):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Nothing."""


@contextmanager
def stub_server(answers, token=None, drive=DRIVE) -> Iterator[http.server.ThreadingHTTPServer]:
    """A running server.

    Args:
        answers: (status, JSON) of each image that is sent, in order.
        drive: the script that drives its page, in UTF-8.
    """
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub) as server:
        server.answers, server.token, server.drive, server.asked = list(answers), token, drive, []
        server.address = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
