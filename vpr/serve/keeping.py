"""Images that are added to the database by requests: their names, positions and files."""

import asyncio
import errno
import hashlib
import math
import re
import unicodedata
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.progress import say
from vpr.data.positions.coordinates import Position, is_place, metres_in_zone
from vpr.database.engine import WrittenByAnother
from vpr.database.records import Records, record_id
from vpr.serve.decoding import Decoded
from vpr.serve.problems import Problem
from vpr.serve.service import Service, pixels_of

LONGEST_NAME, LONGEST_PART, DEEPEST = 200, 100, 6  # characters; folders
PART_BYTES = 255  # that file systems have for a name
PART = re.compile(r"[\w@+=,()\[\]-][\w@+=,()\[\] .-]*")  # no dot in front, nothing that a shell or a disk minds
DEVICES = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9¹²³]|LPT[0-9¹²³]) *(\..*)?", re.IGNORECASE)  # Windows's, whatever ending
ENDINGS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "HEIF": (".heic", ".heif")}
FARTHEST = 1e8  # metres


@dataclass(frozen=True)
class NewImage:
    """What a request says of an image that it adds; None is not said."""

    name: str  # a path below the database's folder, with forward slashes
    latitude: float | None = None  # degrees
    longitude: float | None = None
    easting: float | None = None  # metres, in the zone of the database
    northing: float | None = None


def require_name(name: str, kind: str) -> None:
    """Raise a Problem unless a name is that of a file below a folder, with an ending of its format."""
    parts = name.split("/")
    if not 0 < len(name) <= LONGEST_NAME or len(parts) > DEEPEST:
        raise Problem(400, f"name is wanted with 1 to {LONGEST_NAME} characters and at most {DEEPEST - 1} folders")
    if not all(map(_is_plain, parts)):
        raise Problem(400, "name is wanted as a plain one such as street/12.jpg: letters, digits and @+=,()[]_- .")
    if any(len(part) > LONGEST_PART or len(part.encode()) > PART_BYTES for part in parts):
        raise Problem(400, f"name is wanted with at most {LONGEST_PART} characters and {PART_BYTES} bytes in each part")
    if not name.lower().endswith(ENDINGS[kind]):
        raise Problem(400, f"name is wanted with the ending of the image's format: {' or '.join(ENDINGS[kind])}")


def _is_plain(part: str) -> bool:
    """Whether a part of a path is a name on every system; accents and vowel signs count as letters but in front."""
    letters = part[:1] + "".join("m" if unicodedata.category(each)[0] == "M" else each for each in part[1:])
    ends_well = part[-1:] not in (".", " ") and " ." not in part
    return bool(PART.fullmatch(letters)) and ends_well and not DEVICES.fullmatch(part)


def name_for(name: str, records: Records) -> str:
    """A name in Unicode's composed form, or as the database has it: systems write one and the same in several forms."""
    composed = unicodedata.normalize("NFC", name)
    if name.isascii() or name in records.row_of or composed in records.row_of:
        return name if name in records.row_of else composed
    return next((known for known in records.names if unicodedata.normalize("NFC", known) == composed), composed)


def position_of(image: NewImage, decoded: Decoded, records: Records) -> Position:
    """Where an image was taken, as it is said or else as its EXIF has it; in the zone of the database.

    NaN where nothing says it and no image of the database has a position.

    Raises:
        Problem: nothing says it, or 0 and 0 degrees do, or only half of it is said (400), or it is not in the
            database's zone (422).
    """
    for pair in (("latitude", "longitude"), ("easting", "northing")):
        if sum(getattr(image, name) is None for name in pair) == 1:
            raise Problem(400, f"{' and '.join(pair)} are wanted together")
    if image.easting is not None and image.northing is not None:
        position = Position(image.easting, image.northing, records.zone)
        if not (abs(position.easting) <= FARTHEST and abs(position.northing) <= FARTHEST):  # so for NaN
            raise Problem(400, "easting and northing are wanted in metres")
        if not is_place(position):
            raise Problem(422, f"easting and northing are no place in the database's UTM zone {records.zone}")
        return position
    latitude, longitude = image.latitude, image.longitude
    if latitude is None or longitude is None:
        latitude, longitude = decoded.degrees or (0, 0)
    if latitude == longitude == 0:  # of a receiver without a fix
        if len(records) and not np.isfinite(records.positions).any():
            return Position(math.nan, math.nan, None)  # as all images of this database
        raise Problem(400, "its place is wanted: latitude and longitude, easting and northing, or GPS in the EXIF")
    if records.zone is None and np.isfinite(records.positions).any():
        raise Problem(422, "the database has metres without a UTM zone: give easting and northing")
    try:
        return metres_in_zone(latitude, longitude, records.zone)
    except ValueError as error:
        raise Problem(422, "latitude and longitude lie outside the database's UTM zone") from error


async def add(service: Service, data: bytes, image: NewImage) -> tuple[str, bool]:
    """Keep an image's file, describe the image, and add it; gives its id, and whether there was none of its name.

    Raises:
        Problem: it cannot be decoded or described, name or position are wrong, the engine cannot take it now (503), or
            another program writes the database (409).
    """
    with service.batcher.slots() as slots:
        decoded = await service.decode(data)
        image = replace(image, name=name_for(image.name, service.locator.records))
        require_name(image.name, decoded.format)
        position = position_of(image, decoded, service.locator.records)
        adding = service.batcher.call(lambda: _add(service, data, image.name, decoded, position), slots)
        return str(record_id(image.name)), await asyncio.wrap_future(adding)


def _add(service: Service, data: bytes, name: str, decoded: Decoded, position: Position) -> bool:
    """In the thread that asks the locator. Gives whether the name is new."""
    digest = hashlib.sha256(data).digest()
    is_new, earlier = name not in service.locator.records.row_of, _upload_of(service, name)
    # Of name and content: no two images share a file, and a new content never takes the place of an old one.
    folder = _uploads(service) / hashlib.sha256(digest + name.encode()).hexdigest()[:32]
    file, written = folder / name, False
    try:
        if not file.exists():
            written = True
            with atomic_write(file) as temporary:
                temporary.write_bytes(data)
        record = Records(
            [name], np.array([[position.easting, position.northing]]), position.zone, np.array([len(data)]),
            np.array([file.stat().st_mtime_ns]), np.frombuffer(digest, np.uint8)[None], [str(folder)],
        )  # fmt: skip
        service.locator.add(pixels_of(decoded), record)
    except BaseException as error:
        if written:
            _remove_file(service, file)
        if isinstance(error, UserError | OSError):
            raise _not_changed("added", error) from error
        raise
    if earlier and earlier != file:
        _remove_file(service, earlier)
    return is_new


async def remove(service: Service, row: int) -> None:
    """Remove an image from the database, and its file if a request brought it. Raises a Problem as `add` does."""
    name = service.locator.records.names[row]
    with service.batcher.slots() as slots:
        await asyncio.wrap_future(service.batcher.call(lambda: _remove(service, name), slots))


def _remove(service: Service, name: str) -> None:
    file = _upload_of(service, name)
    try:
        service.locator.remove(name)
    except UserError as error:
        raise _not_changed("removed", error) from error
    if file:
        _remove_file(service, file)


def _not_changed(change: str, error: UserError | OSError) -> Problem:
    """What a client is told whose image was not added or removed; the log says why."""
    say(f"an image was not {change}: {error}")
    if isinstance(error, WrittenByAnother):
        return Problem(409, f"the image cannot be {change}: another program writes the database: start anew")
    return Problem(503, f"the image cannot be {change} now: try again later")


def _uploads(service: Service) -> Path:
    assert service.settings.uploads is not None  # of a writable server
    return service.settings.uploads.resolve()


def _upload_of(service: Service, name: str) -> Path | None:
    """The file of an image if a request brought it; files that others put there are left alone."""
    records = service.locator.records
    row = records.row_of.get(name)
    if row is None or not records.folders[row]:
        return None
    file = records.file(row, service.locator.root)
    return file if _uploads(service) in file.parents else None


def _remove_file(service: Service, file: Path) -> None:
    """Remove an added image's file, and the folders that it leaves empty."""
    uploads = _uploads(service)
    try:
        file.unlink(missing_ok=True)
        for folder in takewhile(lambda folder: folder != uploads, file.parents):
            folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # others' files there stay
            say(f"{file} was not removed: {error}")
