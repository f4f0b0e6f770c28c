"""Requests' bodies: read within limits of size and time, and taken apart in memory. Files' names are not looked at."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from vpr.serve.problems import Problem
from vpr.serve.room import Room

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

BODIES_BYTES = 256_000_000  # of bodies that are in memory at once
DRAINED_SECONDS = 2.0  # that a body which is too large is read on, unkept: else its sender never sees the answer
MOST_PARTS, MOST_HEADERS, HEADER_BYTES, FIELD_BYTES = 64, 8, 1024, 1024
FORM = "multipart/form-data"
# What a body is, is read from its first bytes; the last is what curl says of any file unless it is told otherwise.
RAW = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")


Result = TypeVar("Result")


@dataclass(frozen=True)
class Form:
    """What a request brought.

    Attributes:
        images: files, as they came.
        fields: text, by name.
    """

    images: list[bytes] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


class Bodies:
    """Reads bodies, within limits."""

    def __init__(self, most: int, seconds: float) -> None:
        """Limits: bytes of a body, and seconds in which it must have come."""
        self._most, self._seconds = most, seconds
        self._room = Room(max(BODIES_BYTES, 2 * most))

    @contextlib.asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[bytearray]:
        """A request's whole body, which takes room until the block ends.

        Raises:
            Problem: it is too large (413), too slow (408), or there is no room for it now (503).
        """
        if _declared(request) > self._most:
            await self._drain(request)
            raise self._too_large()
        body = bytearray()
        try:
            if not await self._read_in_time(request, body):
                await self._drain(request)
                raise self._too_large()
            yield body
        finally:
            self._room.give(len(body))

    async def _read_in_time(self, request: Request, body: bytearray) -> bool:
        """See `_read`."""
        try:
            return await asyncio.wait_for(self._read(request, body), self._seconds)
        except asyncio.TimeoutError as error:
            raise Problem(408, f"the body did not come within {self._seconds:g} s", close=True) from error
        except ClientDisconnect as error:
            raise Problem(400, "the body ended too soon", close=True) from error

    async def _read(self, request: Request, body: bytearray) -> bool:
        """Read a body; gives whether it is as small as it has to be."""
        async for chunk in request.stream():
            self._room.take(len(chunk))
            body += chunk
            if len(body) > self._most:
                return False
        return True

    def _too_large(self) -> Problem:
        return Problem(413, f"the body is too large: at most {self._most / 1e6:g} MB are taken", close=True)

    async def _drain(self, request: Request) -> None:
        """Read on, and keep nothing; but not what a client holds back until it is told to go on."""
        if "expect" in request.headers:
            return

        async def read_on() -> None:
            left = 4 * self._most
            while left > 0:
                message = await request.receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return

        try:
            await asyncio.wait_for(read_on(), DRAINED_SECONDS)
        except asyncio.TimeoutError:
            return


async def while_there(request: Request, answer: Awaitable[Result]) -> Result:
    """The answer to a request whose body has come; it is given up if the client goes away."""
    answering = asyncio.ensure_future(answer)
    going = asyncio.ensure_future(request.receive())  # after the body nothing comes but the end of the connection
    try:
        await asyncio.wait({answering, going}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and going.result()["type"] == "http.disconnect":
            answering.cancel()
            await asyncio.wait({answering})
            raise Problem(400, "the client went away", close=True)
        return await answering
    finally:
        going.cancel()


def _declared(request: Request) -> int:
    """The length that a request says its body has."""
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0


@contextlib.asynccontextmanager
async def form_of(request: Request, bodies: Bodies, most_images: int) -> AsyncIterator[Form]:
    """What a request brings: a form's files and fields, or one file as the whole body; see `Bodies.of`.

    Raises:
        Problem: there is no image (400), there are too many (413), the form is broken (400), or it is none (415).
    """
    kind = request.headers.get("content-type", "").strip().lower()
    async with bodies.of(request) as body:
        if kind.startswith(FORM):
            # In a thread: bodies can be made that take a second, in which nobody else would be heard.
            form = await asyncio.to_thread(parse_form, bytes(body), request.headers["content-type"])
        elif not kind or kind.startswith(RAW):
            form = Form([bytes(body)] if body else [])
        else:
            raise Problem(415, f"send an image as the body (Content-Type: image/jpeg), or as {FORM}")
        if not form.images:
            raise Problem(400, "there is no image: send it as the body, or as the part image of a form")
        if len(form.images) > most_images:
            raise Problem(413, f"found {len(form.images)} images in one request, at most {most_images} are taken")
        yield form


def parse_form(body: bytes, content_type: str) -> Form:
    """A form's parts: those with a file name, or named image, are images; other ones fields.

    Raises:
        Problem: it is broken, or has too many parts or headers.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= 200:
        raise Problem(400, "the form has no boundary, or one of more than 200 characters")
    reader = _Parts()
    try:
        parser = MultipartParser(
            boundary, reader.callbacks(), max_header_count=MOST_HEADERS, max_header_size=HEADER_BYTES
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, "the form is broken: its parts cannot be told apart") from error
    if not reader.ended:
        raise Problem(400, "the form is incomplete: its last boundary is missing")
    return reader.form


class _Parts:
    """Collects a form's parts as the parser finds them."""

    def __init__(self) -> None:
        self.form, self.ended, self._count = Form(), False, 0
        self._header, self._value, self._disposition, self._data = b"", b"", b"", bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        """By the parser's names."""
        return {
            "on_part_begin": self._begin, "on_header_field": self._add_header, "on_header_value": self._add_value,
            "on_header_end": self._end_header, "on_part_data": self._add_data, "on_part_end": self._end_part,
            "on_end": self._end,
        }  # fmt: skip

    def _begin(self) -> None:
        self._count += 1
        if self._count > MOST_PARTS:
            raise Problem(400, f"the form has more than {MOST_PARTS} parts")
        self._disposition, self._data = b"", bytearray()

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _end_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options or name == "image":
            self.form.images.append(bytes(self._data))
        elif len(self._data) > FIELD_BYTES:
            raise Problem(400, f"a field of the form has more than {FIELD_BYTES} bytes")
        else:
            self.form.fields[name] = self._data.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True
