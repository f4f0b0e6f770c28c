"""Asks a server where images were taken; one file of the standard library alone, to be copied to where images are made.

    with Client("http://127.0.0.1:8000") as client:
        print(client.locate("frame.jpg", top=3)["matches"])

One that is busy is asked again.
"""

import http.client
import json
import os
import secrets
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

VERSION = "/v1"
MOST_TRIES, LONGEST_PAUSE = 5, 30.0  # while the server is busy; seconds
AT_ONCE = 16  # images of a request
RAW = "application/octet-stream"
Image = bytes | str | os.PathLike  # the bytes of an image file, or the file


class ServerError(Exception):
    """An error that the server told."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(f"error {status}: {text}")
        self.status = status  # of HTTP
        self.code = code  # what kind of error it is, such as too_large or busy


class Client:
    """One connection to a server, which is kept: opening one takes as long as a small network. For one thread."""

    def __init__(self, server: str, token: str | None = None, timeout: float = 60.0) -> None:
        """Nothing is sent yet.
        Raises a ValueError: the address is none of a server.

        Args:
            server: such as http://127.0.0.1:8000.
            token: the word that the server wants; None: that of the environment, VPR_TOKEN, if any.
            timeout: seconds to wait for an answer.
        """
        address = urllib.parse.urlsplit(server)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise ValueError(f"found the server {server}, wanted an address such as http://127.0.0.1:8000")
        connect = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._connection, self._path = connect(address.netloc, timeout=timeout), address.path.rstrip("/")
        token = os.environ.get("VPR_TOKEN") if token is None else token
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def locate(self, image: Image, **asked: Any) -> dict[str, Any]:
        """Where an image was taken, as /v1/locate answers: `matches`, `confidence`, `refused`, ...;
        with `agreement` points in common with the first match and, by keypoints, `verification`: the number of matches,
        those that agree, and the fundamental matrix.
        `asked`: top, near, box, where (several in a list), rerank, agreement, and session, a camera's name, whose
        frames come in order.
        Raises a ServerError: the server does not answer it; an OSError: the server is not reached, or the file not
        read.
        """
        return self.ask("POST", f"/locate{_query(asked)}", _bytes_of(image))

    def add(self, image: Image, name: str, **said: Any) -> dict[str, Any]:
        """Add an image to the database, or replace that of its name: `latitude` and `longitude`, or `easting` and
        `northing`, unless its EXIF has a place; `column`, such as ["night=yes"]. Raises as `locate`."""
        return self.ask("POST", f"/images{_query({'name': name, **said})}", _bytes_of(image))

    def add_many(self, images: Sequence[tuple[Image, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Add images of each of which the name and the rest are said as to `add`, many at a time; what became of each,
        as of `add` or with an `error`. Raises as `locate`; what was added before that stays."""
        answers, mark = [], secrets.token_hex(16)
        head = f'--{mark}\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
        for start in range(0, len(images), AT_ONCE):
            some = images[start : start + AT_ONCE]
            parts = [("images", json.dumps([said for _, said in some]).encode())]
            parts += [("image", _bytes_of(image)) for image, _ in some]
            body = b"".join((head % name).encode() + content + b"\r\n" for name, content in parts)
            kind = f"multipart/form-data; boundary={mark}"
            answers += self.ask("POST", "/images/batch", body + f"--{mark}--\r\n".encode(), kind=kind)["answers"]
        return answers

    def change(self, number: str, **said: Any) -> dict[str, Any]:
        """Change an image's place or columns, as to `add`, by its id. Raises as `locate`."""
        return self.ask("PATCH", f"/images/{number}{_query(said)}")

    def remove(self, number: str) -> dict[str, Any]:
        """Remove an image from the database, by its id. Raises as `locate`."""
        return self.ask("DELETE", f"/images/{number}")

    def images(self, prefix: str = "") -> Iterator[dict[str, Any]]:
        """The database's images whose names begin so, by name: `id`, `name`, places, `columns`. Raises as `locate`."""
        after = ""
        while True:
            page = self.ask("GET", f"/images{_query({'after': after, 'prefix': prefix, 'limit': 1000})}")
            yield from page["images"]
            if (after := page["next"]) is None:
                return

    def places(self) -> dict[str, Any]:
        """Names, ids and places of the database's images. Raises as `locate`."""
        return self.ask("GET", "/map")

    def is_ready(self) -> bool:
        """Whether the server answers now."""
        try:
            return self.ask("GET", "/ready", tries=1)["status"] == "ready"
        except (OSError, ServerError, http.client.HTTPException):
            return False

    def ask(
        self, method: str, path: str, body: bytes | None = None, tries: int = MOST_TRIES, kind: str = RAW
    ) -> dict[str, Any]:
        """The answer to a request; one that comes while the server is busy is made again. Raises as `locate`."""
        headers = {**self._headers, **({"Content-Type": kind} if body is not None else {})}
        for left in reversed(range(tries)):
            try:
                self._connection.request(method, f"{self._path}{VERSION}{path}", body, headers)
                response = self._connection.getresponse()
                status, content = response.status, response.read()
            except (http.client.HTTPException, ConnectionError) as error:
                self._connection.close()  # it is opened again by the next request
                if isinstance(error, ConnectionRefusedError) or not left:
                    raise
                continue
            if status in (429, 503) and left:
                time.sleep(min(LONGEST_PAUSE, float(response.headers.get("retry-after", 1))))
                continue
            return _checked(status, content)
        raise AssertionError("a request is tried at least once")


def _checked(status: int, content: bytes) -> dict[str, Any]:
    """An answer's JSON. Raises a ServerError of another status, or of an answer that is none of this server."""
    try:
        answer = json.loads(content)
    except ValueError:
        raise ServerError(status, "", f"no answer of this kind of server, found {content[:60]!r}") from None
    if status >= 400:
        raise ServerError(status, answer.get("code", ""), answer.get("error", "for no stated reason"))
    return answer


def _query(asked: dict[str, Any]) -> str:
    """The parameters of an address; truth in small letters, as JSON has it."""
    words = {name: str(value).lower() if isinstance(value, bool) else value for name, value in asked.items()}
    return f"?{urllib.parse.urlencode(words, doseq=True)}" if words else ""


def _bytes_of(image: Image) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()
