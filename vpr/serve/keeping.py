"""Images that requests add to the database, and change in it: their names, positions, columns and files."""

import asyncio
import errno
import hashlib
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.progress import say
from vpr.data.positions.coordinates import Position, is_place, metres_in_zone
from vpr.database.columns import value_of
from vpr.database.engine import WrittenByAnother
from vpr.database.records import Records, Value, joined, record_id
from vpr.retrieval.ask import Refusal
from vpr.retrieval.model_pass import Described
from vpr.serve.batching import Slots
from vpr.serve.problems import Problem, problem_of
from vpr.serve.schemas import Added, Change, said_of
from vpr.serve.service import Service, pixels_of

LONGEST_NAME, LONGEST_PART, DEEPEST = 200, 100, 6  # characters; folders
PART_BYTES = 255  # that file systems have for a name
PART = re.compile(r"[\w@+=,()\[\]-][\w@+=,()\[\] .-]*")  # no dot in front, nothing that a shell or a disk minds
DEVICES = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9¹²³]|LPT[0-9¹²³]) *(\..*)?", re.IGNORECASE)  # Windows's, whatever ending
ENDINGS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "HEIF": (".heic", ".heif")}
FARTHEST = 1e8  # metres
MOST_COLUMNS = 64  # that requests may bring a database to


@dataclass(frozen=True)
class NewImage:
    """An image that can be added: its record, what its file has, and how it is described."""

    record: Records
    data: bytes
    described: Described


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


def position_of(image: Change, exif: tuple[float, float] | None, records: Records) -> Position:
    """Where an image was taken, as it is said or else as its EXIF has it in degrees; in the zone of the database.

    NaN where nothing says it and no image of the database has a position. Raises a Problem: nothing says it, or 0 and 0
    degrees do, or only half of it is said (400), or it is not in the database's zone (422).
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
        latitude, longitude = exif or (0, 0)
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


def columns_of(said: Change, records: Records) -> dict[str, list[Value]]:
    """The columns of an image's record. Raises a Problem: a text is no NAME=VALUE, or there would be too many."""
    found = dict[str, list[Value]]()
    for text in said.column:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or set(name) & set("!<>"):
            raise Problem(400, "column is wanted as NAME=VALUE")
        found[name.strip().lower()] = [value_of(value)]
    if len({*records.columns, *found}) > max(MOST_COLUMNS, len(records.columns)):
        raise Problem(422, f"the database would have more than {MOST_COLUMNS} columns")
    return found


async def add(service: Service, data: Sequence[bytes], said: Sequence[Any]) -> list[Added | BaseException]:
    """Keep image files, describe the images, and add all that can be in one commit; of two of one name the last stays.
    `said`: of each, as of `said_of`. Gives what became of each, or why it is not added.
    Raises a Problem: the engine cannot take them now (503), or another program writes the database (409)."""
    with service.batcher.slots(len(data)) as slots:
        made = [_described(service, slots, *each) for each in zip(data, said, strict=True)]
        tried = await asyncio.gather(*made, return_exceptions=True)
        new = {each.record.names[0]: each for each in tried if isinstance(each, NewImage)}
        are_new = await asyncio.wrap_future(service.batcher.call(lambda: _add(service, new)))
    images = service.locator.images
    names = [each.record.names[0] if isinstance(each, NewImage) else each for each in tried]
    return [
        Added(id=str(record_id(name)), new=are_new[name], images=images) if isinstance(name, str) else name
        for name in names
    ]


async def _described(service: Service, slots: Slots, data: bytes, values: Any) -> NewImage:
    """Raises a Problem: the image cannot be decoded or described, or what is said of it is wrong."""
    said, decoded, records = said_of(values), await service.decode(data), service.locator.records
    name = name_for(said.name or "", records)
    require_name(name, decoded.format)
    position, digest = position_of(said, decoded.degrees, records), hashlib.sha256(data).digest()
    # Of name and content: no two images share a file, and a new content never takes the place of an old one.
    folder = _uploads(service) / hashlib.sha256(digest + name.encode()).hexdigest()[:32]
    record = Records(
        [name], np.array([[position.easting, position.northing]]), position.zone, np.array([len(data)]),
        np.zeros(1, np.int64), np.frombuffer(digest, np.uint8)[None], [str(folder)], columns_of(said, records),
    )  # fmt: skip
    with service.pixels.taken(decoded.values.nbytes):
        describing = service.batcher.call(lambda: service.locator.describe_to_add(pixels_of(decoded)), slots)
        try:
            return NewImage(record, data, await asyncio.wrap_future(describing))
        except UserError as error:
            raise _not_changed("added", error) from error


def _add(service: Service, images: dict[str, NewImage]) -> dict[str, bool]:
    """In the thread that asks the locator: keep images by name. Gives whether each name is new."""
    locator, written = service.locator, list[Path]()
    are_new = {name: name not in locator.records.row_of for name in images}
    earlier = [_upload_of(service, name) for name in images]
    try:
        for each in images.values():
            if not (file := each.record.file(0, locator.root)).exists():
                written.append(file)
                with atomic_write(file) as temporary:
                    temporary.write_bytes(each.data)
            each.record.modified[0] = file.stat().st_mtime_ns
        if images:
            records = joined(*(each.record for each in images.values()))
            locator.add(records, [each.described for each in images.values()])
    except BaseException as error:
        for file in written:
            _remove_file(service, file)
        if isinstance(error, UserError | OSError):
            raise _not_changed("added", error) from error
        raise
    for before, each in zip(earlier, images.values(), strict=True):
        if before and before != each.record.file(0, locator.root):
            _remove_file(service, before)
    return are_new


async def change(service: Service, name: str, said: Change) -> None:
    """Give an image of the database another place, and values of columns beside those that it has.
    Raises a Problem as of `add`, or nothing is said (400), or it has gone (404)."""

    def changed() -> None:
        records = service.locator.records
        if name not in records.row_of:
            raise Problem(404, "there is no image of this id")
        record = records.only([records.row_of[name]])
        record = replace(record, columns={**record.columns, **columns_of(said, records)})
        if said.model_dump(exclude_defaults=True, exclude={"column"}):
            place = position_of(said, None, records)
            record = replace(record, positions=np.array([[place.easting, place.northing]]), zone=place.zone)
        try:
            service.locator.change(record)
        except UserError as error:
            raise _not_changed("changed", error) from error

    if not said.model_dump(exclude_defaults=True):
        raise Problem(400, "a place or columns are wanted: latitude and longitude, easting and northing, column")
    with service.batcher.slots() as slots:
        await asyncio.wrap_future(service.batcher.call(changed, slots))


async def remove(service: Service, row: int) -> None:
    """Remove an image from the database, and its file if a request brought it. Raises a Problem as `add` does."""
    name = service.locator.records.names[row]

    def removed() -> None:
        file = _upload_of(service, name)
        try:
            service.locator.remove(name)
        except UserError as error:
            raise _not_changed("removed", error) from error
        if file:
            _remove_file(service, file)

    with service.batcher.slots() as slots:
        await asyncio.wrap_future(service.batcher.call(removed, slots))


def _not_changed(change: str, error: UserError | OSError) -> Problem:
    """What a client is told whose image was not added, changed or removed; the log says why."""
    if isinstance(error, Refusal):
        return problem_of(error)
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
