"""One image of unknown origin -> pixels, in a process of its own, which may hang or die. Imports no torch."""

import contextlib
import functools
import io
import math
import signal
import struct
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from PIL import Image, ImageOps

from vpr.data.images import HEIC_BRANDS, PNG_SIGNATURE, from_image, reads_heic, sized_pixels, upright
from vpr.data.positions.of_images import degrees_in_exif

LATER = 202  # not a refusal: the image is a large one, and waits for its turn
READY = b"ready"
# What a decoder answers: 0 or a status of HTTP, format, shape (bytes, 0, 0 of a thumbnail), latitude and longitude.
HEADER = struct.Struct("<HHIIIdd")
FORMATS, STATUSES, REASON_BYTES = ("JPEG", "PNG", "WEBP", "HEIF"), (LATER, 413, 415, 422), 500
SPARE_BYTES, BYTES_PER_PIXEL = 512 << 20, 32  # of memory that decoding may take


@dataclass(frozen=True)
class Wanted:
    """What an image is decoded to."""

    size: tuple[int, ...] | None = None  # as of `sized_pixels`
    longest_side: int | None = None
    max_pixels: int = 50_000_000  # that its header may tell of
    max_quick: int | None = None  # pixels above which it is not decoded yet, but told to be large (LATER)
    thumbnail: int = 0  # pixels of the longest side of a JPEG that is wanted in place of pixels; 0: pixels


@dataclass(frozen=True)
class Decoded:
    """A decoded image."""

    values: np.ndarray  # uint8 [H, W, 3]; of a thumbnail the bytes of its file, uint8 [n]
    format: str  # JPEG, PNG, WEBP or HEIF
    degrees: tuple[float, float] | None  # latitude and longitude that its EXIF tells


class Refused(Exception):
    """An image that is not decoded, with a status of HTTP and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def format_of(data: bytes) -> str | None:
    """The format of a file by its first bytes; None if it is none that is taken from strangers."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(PNG_SIGNATURE):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS and reads_heic():
        return "HEIF"
    return None


def decode_bytes(data: bytes, wanted: Wanted) -> Decoded:
    """Decode an image. A thumbnail is of the database's own files, which may be of any format that is read.
    Raises Refused: it is of another format (415), too large (413) or damaged (422)."""
    kind = format_of(data)

    def decoded(image: Image.Image) -> Decoded:
        pixels = image.width * image.height  # by the header: nothing is decoded yet
        if pixels > wanted.max_pixels:
            raise Refused(413, f"the image has {pixels} pixels, at most {wanted.max_pixels} are wanted")
        if wanted.max_quick is not None and pixels > wanted.max_quick:
            raise Refused(LATER, "the image is large")
        if wanted.thumbnail:
            return Decoded(_thumbnail(image, wanted.thumbnail), kind or str(image.format), None)
        degrees = degrees_in_exif(image)
        return Decoded(sized_pixels(image, wanted.size, wanted.longest_side), str(kind), degrees)

    if kind is None and not wanted.thumbnail:
        raise Refused(415, "the body is no image of the formats JPEG, PNG, WebP or HEIC that this server reads")
    try:
        return from_image(io.BytesIO(data), decoded, [kind] if kind else None)
    except Refused:
        raise
    except MemoryError as error:
        raise Refused(413, "the image takes too much memory to decode: send a smaller one") from error
    except Exception as error:  # Pillow raises a dozen kinds of errors on damaged files
        text = f"the image cannot be decoded: its {kind or 'image'} data are damaged or incomplete"
        raise Refused(422, text) from error


def _thumbnail(image: Image.Image, longest_side: int) -> np.ndarray:
    """A JPEG of an image, uint8 [n]; its metadata, such as where it was taken, stay behind."""
    image.draft("RGB", (longest_side, longest_side))  # a JPEG is decoded to an eighth if that suffices
    file = io.BytesIO()
    ImageOps.contain(upright(image), (longest_side, longest_side)).save(file, "JPEG", quality=85)
    return np.frombuffer(file.getvalue(), np.uint8)


def send(connection: Connection, answer: Decoded | Refused) -> None:
    """Send an image or a refusal: HEADER, then the values or the reason."""
    if isinstance(answer, Refused):
        connection.send_bytes(HEADER.pack(answer.status, 0, 0, 0, 0, math.nan, math.nan))
        connection.send_bytes(str(answer).encode()[:REASON_BYTES])
    else:
        shape, degrees = (*answer.values.shape, 0, 0)[:3], answer.degrees or (math.nan, math.nan)
        connection.send_bytes(HEADER.pack(0, FORMATS.index(answer.format), *shape, *degrees))
        connection.send_bytes(np.ascontiguousarray(answer.values).data.cast("B"))


def receive(connection: Connection, most: int) -> Decoded:
    """What a decoder answers, of at most so many bytes; trusted in nothing: an image may have taken the decoder over.
    Raises Refused: the image is refused; an OSError: it is no answer."""
    header = connection.recv_bytes(HEADER.size)
    if len(header) != HEADER.size:
        raise OSError("a decoder answers with too little")
    status, kind, *shape, latitude, longitude = HEADER.unpack(header)
    if status:
        if status not in STATUSES:
            raise OSError("a decoder answers with an unknown status")
        raise Refused(status, connection.recv_bytes(REASON_BYTES).decode("utf-8", "replace"))
    is_image = shape[1] > 0 and shape[2] == 3
    count = math.prod(shape) if is_image else shape[0]
    if not 0 < count <= most or kind >= len(FORMATS) or not (is_image or shape[1:] == [0, 0]):
        raise OSError("a decoder answers with an impossible image")
    values = np.frombuffer(bytearray(connection.recv_bytes(count)), np.uint8)
    if len(values) != count:
        raise OSError("a decoder answers with too little")
    known = abs(latitude) <= 90 and abs(longitude) <= 180  # not where they are NaN
    return Decoded(values.reshape(shape if is_image else -1), FORMATS[kind], (latitude, longitude) if known else None)


def decode_for(connection: Connection) -> None:
    """Decode what comes through a connection until it is closed: Wanted, then data -> an answer.

    Answers are bytes of a fixed form, see `send`: nothing in them is executed.
    """
    # The server decides when this process ends, not who stops it by a signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):  # the server has gone
        connection.send_bytes(READY)
        while True:
            wanted, data = connection.recv(), connection.recv_bytes()
            limit_memory(SPARE_BYTES + BYTES_PER_PIXEL * wanted.max_pixels)
            answer: Decoded | Refused
            try:
                answer = decode_bytes(data, wanted)
            except Refused as refused:
                answer = refused
            send(connection, answer)


@functools.cache
def limit_memory(count: int) -> None:
    """Let this process take so many bytes of address space beyond what it has now; where that can be limited."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (taken + count, hard))
