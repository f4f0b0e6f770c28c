"""Requests' bodies: read within limits of size, time and memory. Names of files are not looked at."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from vpr.serve.problems import Problem, busy

BODIES_BYTES = 256_000_000  # of bodies that are in memory at once
DRAINED_SECONDS = 2.0  # that a refused body is read on, unkept: else its sender never sees the answer
MOST_PARTS, FIELD_BYTES = 64, 64 << 10  # files and fields of a form, as many of each; of a field
FORM = "multipart/form-data"
# What a body is, is read from its first bytes; the last is what curl says of any file unless it is told otherwise.
RAW = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
Result = TypeVar("Result")


class Room:
    """Counts bytes of memory that requests may take together; for one thread."""

    def __init__(self, most: int) -> None:
        """Bytes that may be taken; a single taker may have more."""
        self._most, self._taken = most, 0

    def take(self, count: int) -> None:
        """Take some, or give back where `count` is negative. Raises a Problem where they are not free."""
        if count > 0 and self._taken and self._taken + count > self._most:
            raise busy()
        self._taken += count

    @contextlib.contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Take some until the block ends. Raises a Problem where they are not free."""
        self.take(count)
        try:
            yield
        finally:
            self.take(-count)


@dataclass(frozen=True)
class Form:
    """What a request brought: image files as they came, and text by name."""

    images: list[bytes]
    fields: dict[str, list[str]]


class Bodies:
    """Reads bodies, within limits."""

    def __init__(self, most: int, seconds: float) -> None:
        """Limits: bytes of a body, and seconds in which it must have come."""
        self._most, self._seconds = most, seconds
        self._room = Room(max(BODIES_BYTES, 2 * most))

    @contextlib.asynccontextmanager
    async def form(self, request: Request, most_images: int) -> AsyncIterator[Form]:
        """What a request brings: a form's files and fields, or one file as the whole body.

        It takes room until the block ends.
        Raises a Problem: there is no image or the form is broken (400), the body did not come in time (408), it is too
        large or has too many images (413), it is no image and no form (415), or there is no room for it now (503).
        """
        body = _Body(request, self._most, self._room)
        try:
            form = await self._read(body)
            if not form.images:
                raise Problem(400, "there is no image: send it as the body, or as the part image of a form")
            if len(form.images) > most_images:
                raise Problem(413, f"found {len(form.images)} images in one request, at most {most_images} are taken")
            yield form
        finally:
            self._room.take(-body.count)

    async def _read(self, body: "_Body") -> Form:
        try:
            async with contextlib.aclosing(body.chunks()) as chunks:
                return await asyncio.wait_for(_form_of(body.request, chunks), self._seconds)
        except asyncio.TimeoutError as error:
            raise Problem(408, f"the body did not come within {self._seconds:g} s", close=True) from error
        except ClientDisconnect as error:
            raise Problem(400, "the body ended too soon", close=True) from error
        except MultiPartException as error:
            unread = not body.is_whole
            await body.drain()
            raise Problem(400, f"the form is broken: {error.message}", close=unread) from error
        except Problem:
            await body.drain()
            raise


class _Body:
    """A request's body, of which no more is read than may be."""

    def __init__(self, request: Request, most: int, room: Room) -> None:
        self.request, self._most, self._room = request, most, room
        self.count, self.is_whole = 0, False  # bytes that were read, for which room is taken; whether that is all
        self._too_large = Problem(413, f"the body is too large: at most {most / 1e6:g} MB are taken", close=True)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises a Problem as soon as it is known to be too large, or where there is no room."""
        declared = self.request.headers.get("content-length", "")
        if declared.isascii() and declared.isdecimal() and (len(declared) > 19 or int(declared) > self._most):
            raise self._too_large
        while not self.is_whole:
            chunk = await self._next()
            self._room.take(len(chunk))
            self.count += len(chunk)
            if self.count > self._most:
                raise self._too_large
            yield chunk

    async def _next(self) -> bytes:
        message = await self.request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self.is_whole = not message.get("more_body", False)
        return message.get("body", b"")

    async def drain(self) -> None:
        """Read on, and keep nothing; but not what a client holds back until it is told to go on."""

        async def read_on() -> None:
            left = 4 * self._most
            while left > 0 and not self.is_whole:
                left -= len(await self._next())

        if "expect" not in self.request.headers:
            with contextlib.suppress(asyncio.TimeoutError, ClientDisconnect):
                await asyncio.wait_for(read_on(), DRAINED_SECONDS)


async def _form_of(request: Request, chunks: AsyncGenerator[bytes, None]) -> Form:
    """See `Bodies.form`. Raises a MultiPartException where the form is broken."""
    kind = request.headers.get("content-type", "").strip().lower()
    if not kind.startswith(FORM):
        image = b"".join([chunk async for chunk in chunks])
        if kind and not kind.startswith(RAW):
            raise Problem(415, f"send an image as the body (Content-Type: image/jpeg), or as {FORM}")
        return Form([image] if image else [], {})
    parser = _Parser(request.headers, chunks, max_files=MOST_PARTS, max_fields=MOST_PARTS, max_part_size=FIELD_BYTES)
    parts = await parser.parse()
    try:
        if not parser.ended:
            raise MultiPartException("its last boundary is missing")
        files, fields = list[UploadFile](), dict[str, list[str]]()
        for name, each in parts.multi_items():
            files.append(each) if isinstance(each, UploadFile) else fields.setdefault(name, []).append(each)
        return Form([await file.read() for file in files], fields)
    finally:
        await parts.close()


class _Parser(MultiPartParser):
    """Starlette's, which keeps files in memory, takes a part named image for one, and knows a form that was cut off."""

    spool_max_size = 1 << 62
    ended = False

    def on_headers_finished(self) -> None:
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        if options.get(b"name") == b"image" and b"filename" not in options:
            part.content_disposition = b'form-data; name="image"; filename=""'
        super().on_headers_finished()

    def on_end(self) -> None:
        self.ended = True


async def while_there(request: Request, answer: Awaitable[Result]) -> Result:
    """The answer to a request whose body has come; it is given up if the client goes away, or the server ends."""
    answering = asyncio.ensure_future(answer)
    going = asyncio.ensure_future(request.receive())  # after the body nothing comes but the end of the connection
    try:
        await asyncio.wait({answering, going}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and going.result()["type"] == "http.disconnect":
            raise Problem(400, "the client went away", close=True)
        return await answering
    finally:
        going.cancel()
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
