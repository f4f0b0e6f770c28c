"""Where own images are and were taken: from their name, a table, or the GPS in their EXIF, as UTM metres."""

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vpr.common.errors import UserError
from vpr.data.image_files import look_through
from vpr.data.names import plain
from vpr.data.positions.coordinates import Position, from_degrees, named_zone
from vpr.data.positions.table import TABLE, read_table

if TYPE_CHECKING:
    from PIL import Image

WANTED = "wanted @easting@northing@ in the name, a line in positions.csv, or GPS in the EXIF"
GPS_FOLDER = 0x8825  # EXIF


def read_positions(files: Sequence[Path], root: Path) -> list[Position]:
    """Where images were taken. Raises UserError: some have no position; says how many and names the first five."""
    found = find_positions(files, root)
    if missing := without_position(files, found):
        raise UserError(f"{missing}: {WANTED}")
    return [position for position in found if position is not None]


def find_positions(files: Sequence[Path], root: Path) -> list[Position | None]:
    """Where images were taken, None where nothing says so."""
    table = read_table(root / TABLE)
    _refuse_several_of_one_name(table, files, root)
    return [
        position_in_name(file.name) or position_in_table(table, file, root) or position_in_exif(file) for file in files
    ]


def without_position(files: Sequence[Path], found: Sequence[Position | None]) -> str:
    """How many images have no position, and the first five, with the reason where their GPS is none; empty if none."""
    missing = [file for file, position in zip(files, found, strict=True) if position is None]
    first = []
    for file in missing[:5]:
        gps = gps_of(file)
        said = f" (its GPS says {gps[0]:.10g}, {gps[1]:.10g}, which is no place in UTM)" if gps else ""
        first.append(f"{file}{said}")
    return f"{len(missing)} of {len(files)} images have no position, first {', '.join(first)}" if missing else ""


def position_in_name(name: str) -> Position | None:
    """@easting@northing@zone number@zone letter@...: the first two suffice."""
    parts = name.split("@")
    if len(parts) < 4 or parts[0]:
        return None
    try:
        easting, northing = float(parts[1]), float(parts[2])
    except ValueError:
        return None
    if not (math.isfinite(easting) and math.isfinite(northing)):
        return None
    zone = named_zone(parts[3], parts[4], northing) if len(parts) > 4 and len(parts[4]) == 1 else None
    return Position(easting, northing, zone)


def position_in_table(table: dict[str, Position], file: Path, root: Path) -> Position | None:
    """By an image's path below the folder of the table, or by its name alone."""
    path = file.relative_to(root)
    return table.get(plain(path.as_posix())) or table.get(plain(file.name))


def _refuse_several_of_one_name(table: dict[str, Position], files: Sequence[Path], root: Path) -> None:
    """Raises UserError where a line of the table that is a name without folders may mean several images."""

    def by_name(file: Path) -> bool:
        path, name = plain(file.relative_to(root).as_posix()), plain(file.name)
        return name in table and (path == name or path not in table) and not position_in_name(file.name)

    if not any(map(by_name, files)):
        return
    count = Counter(plain(image.name) for image in look_through(root).images if by_name(image))
    if several := sorted({plain(file.name) for file in files if count[plain(file.name)] > 1}):
        raise UserError(
            f"{root / TABLE}: {several[0]} may be any of {count[several[0]]} images under {root} (and so for "
            f"{len(several)} names): write their paths below {root} instead"
        )


def position_in_exif(file: Path) -> Position | None:
    """From an image's GPS, if it has one that is a place in UTM."""
    degrees = gps_of(file)
    with contextlib.suppress(ValueError):
        return from_degrees(*degrees) if degrees and any(degrees) else None
    return None


def gps_of(file: Path) -> tuple[float, float] | None:
    """Latitude and longitude in a file's EXIF, whatever they are."""
    from vpr.data.images import with_image

    try:
        return with_image(file, _gps_in)
    except UserError:  # the image itself is decoded later
        return None


def degrees_in_exif(image: "Image.Image") -> tuple[float, float] | None:
    """Latitude and longitude in an opened image's EXIF.

    None: no EXIF, no GPS, half a GPS, or 0 and 0, which devices write that have not found their place or hide it.
    """
    degrees = _gps_in(image)
    return degrees if degrees and any(degrees) else None


def _gps_in(image: "Image.Image") -> tuple[float, float] | None:
    try:
        gps = image.getexif().get_ifd(GPS_FOLDER)
        degrees = _degrees(gps[2], gps[1], "S"), _degrees(gps[4], gps[3], "W")
    except Exception:
        return None
    return degrees if all(map(math.isfinite, degrees)) else None


def _degrees(parts: Sequence, reference: str | bytes, negative: str) -> float:
    """Degrees, minutes and seconds as one number, below 0 where the letter or a sign says so."""
    letter = reference.decode("ascii") if isinstance(reference, bytes) else reference
    values = [float(part) for part in parts]
    below = letter.strip("\0 ").upper() == negative or min(values) < 0
    return (-1 if below else 1) * sum(abs(value) / 60**power for power, value in enumerate(values))
