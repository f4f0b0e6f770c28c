"""Where own images are and were taken: from their name, a table, or the GPS in their EXIF, as UTM metres."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vpr.common.errors import UserError
from vpr.data.image_files import look_through
from vpr.data.names import plain

if TYPE_CHECKING:
    from PIL import Image

TABLE = "positions.csv"
COLUMNS = (("easting", "northing"), ("latitude", "longitude"))
WANTED = "wanted @easting@northing@ in the name, a line in positions.csv, or GPS in the EXIF"
GPS_FOLDER = 0x8825  # EXIF
# Metres; what UTM has between them, a local survey rarely has.
UTM_WEST, UTM_EAST, UTM_NORTH = 100_000, 900_000, 10_000_000


@dataclass(frozen=True)
class Position:
    """UTM easting and northing in metres, and the zone, such as 17N, where it is known."""

    easting: float
    northing: float
    zone: str | None = None


def read_positions(files: Sequence[Path], root: Path) -> list[Position]:
    """Where images were taken.

    Raises:
        UserError: some have no position; says how many and names the first five.
    """
    found = find_positions(files, root)
    missing = [file for file, position in zip(files, found, strict=True) if position is None]
    if missing:
        first = ", ".join(str(file) for file in missing[:5])
        raise UserError(f"{len(missing)} of {len(files)} images have no position, first {first}: {WANTED}")
    return [position for position in found if position is not None]


def find_positions(files: Sequence[Path], root: Path) -> list[Position | None]:
    """Where images were taken, None where nothing says so."""
    table = read_table(root / TABLE)
    _refuse_several_of_one_name(table, files, root)
    return [
        position_in_name(file.name) or _position_in_table(table, file, root) or position_in_exif(file) for file in files
    ]


def position_in_name(name: str) -> Position | None:
    """@easting@northing@zone number@zone letter@...: the first two suffice."""
    parts = name.split("@")
    if len(parts) < 4 or parts[0]:
        return None
    try:
        easting, northing = float(parts[1]), float(parts[2])
    except ValueError:
        return None
    if not np.isfinite([easting, northing]).all():
        return None
    zone = None
    if len(parts) > 4 and parts[3].isdecimal() and len(parts[4]) == 1 and parts[4].isalpha():
        zone = _zone(int(parts[3]), parts[4])
    return Position(easting, northing, zone)


def read_table(path: Path) -> dict[str, Position]:
    """Positions by image from a table with a heading; nothing where there is none.

    Raises:
        UserError: columns are missing, or a value is no number.
    """
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            headings = [heading.strip().lower() for heading in reader.fieldnames or ()]
            reader.fieldnames = headings
            columns = next((pair for pair in COLUMNS if set(pair) <= set(headings)), None)
            if columns is None or "image" not in headings:
                raise UserError(
                    f"{path} has the columns {', '.join(headings) or 'none'}, wanted image,easting,northing or "
                    "image,latitude,longitude: mend its first line"
                )
            table: dict[str, Position] = {}
            for row in reader:
                name, position = plain(row["image"]), _position_of_row(row, columns)
                earlier = table.setdefault(name, position)
                if earlier != position:
                    raise UserError(
                        f"{path} has two positions for {name}, {earlier.easting:.1f} {earlier.northing:.1f} and "
                        f"{position.easting:.1f} {position.northing:.1f}: keep the right line"
                    )
            return table
    except (OSError, UnicodeError, csv.Error, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table of positions ({error}): mend it") from error


def _position_of_row(row: dict, columns: tuple[str, str]) -> Position:
    first, second = (float(row[column]) for column in columns)
    if not np.isfinite([first, second]).all():
        raise ValueError(f"{row['image']} has {first}, {second}")
    return Position(first, second) if columns == COLUMNS[0] else from_degrees(first, second)


def _position_in_table(table: dict[str, Position], file: Path, root: Path) -> Position | None:
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
    several = sorted({plain(file.name) for file in files if count[plain(file.name)] > 1})
    if several:
        raise UserError(
            f"{root / TABLE}: {several[0]} may be any of {count[several[0]]} images under {root} (and so for "
            f"{len(several)} names): write their paths below {root} instead"
        )


def position_in_exif(file: Path) -> Position | None:
    """From an image's GPS, if it has one."""
    from vpr.data.images import opened

    try:
        with opened(file) as image:
            degrees = degrees_in_exif(image)
    except UserError:  # the image itself is decoded later
        return None
    return from_degrees(*degrees) if degrees else None


def degrees_in_exif(image: "Image.Image") -> tuple[float, float] | None:
    """Latitude and longitude in an opened image's EXIF; None: no EXIF, no GPS or half a GPS."""
    try:
        gps = image.getexif().get_ifd(GPS_FOLDER)
        degrees = _degrees(gps[2], gps[1] == "S"), _degrees(gps[4], gps[3] == "W")
    except Exception:
        return None
    return degrees if np.isfinite(degrees).all() else None


def _degrees(parts: Sequence, negative: bool) -> float:
    """Degrees, minutes and seconds as one number."""
    value = sum(float(part) / 60**power for power, part in enumerate(parts))
    return -value if negative else value


def from_degrees(latitude: float, longitude: float) -> Position:
    """WGS84 degrees -> UTM metres.

    Raises:
        ValueError: there is no such place, or none in UTM.
    """
    import utm

    try:
        easting, northing, number, letter = utm.from_latlon(latitude, longitude)
    except utm.OutOfRangeError as error:
        raise ValueError(f"{latitude}, {longitude}: {error}") from error
    return Position(float(easting), float(northing), _zone(number, letter))


def metres_in_zone(latitude: float, longitude: float, zone: str | None) -> Position:
    """WGS84 degrees -> UTM metres of a zone such as 17N; None: of the zone that they lie in.

    Raises:
        ValueError: there is no such place, or it lies farther off than in the next zone, where UTM errs by metres.
    """
    import utm

    position = from_degrees(latitude, longitude)
    if zone is None or position.zone == zone:
        return position
    middle = 6 * int(zone[:-1]) - 183  # degrees of longitude
    if abs((longitude - middle + 180) % 360 - 180) > 9:
        raise ValueError(f"{latitude}, {longitude} lies outside the zones beside {zone}")
    easting, northing, *_ = utm.from_latlon(latitude, longitude, int(zone[:-1]), force_northern=zone[-1] == "N")
    return Position(float(easting), float(northing), zone)


def to_degrees(easting: float, northing: float, zone: str) -> tuple[float, float]:
    """UTM metres in a zone such as 17N -> WGS84 latitude and longitude."""
    import utm

    latitude, longitude = utm.to_latlon(easting, northing, int(zone[:-1]), northern=zone[-1] == "N", strict=False)
    return float(latitude), float(longitude)


def degrees_of(positions: np.ndarray, zone: str) -> np.ndarray:
    """UTM metres [N, 2] in a zone -> WGS84 latitude and longitude [N, 2]."""
    import utm

    eastings, northings = positions.T
    found = utm.to_latlon(eastings, northings, int(zone[:-1]), northern=zone[-1] == "N", strict=False)
    return np.stack(found, axis=1)


def _zone(number: int, letter: str) -> str:
    """Number and hemisphere: bands C to M are south of the equator, N to X north."""
    return f"{number}{'N' if letter.upper() >= 'N' else 'S'}"


def common_zone(positions: Sequence[Position], root: Path) -> str | None:
    """The one UTM zone of all positions, None where none is known.

    Raises:
        UserError: there are several, or one beside local metres, whose metres cannot be compared.
    """
    zones = sorted({position.zone for position in positions if position.zone})
    if len(zones) > 1:
        counts = ", ".join(f"{zone}: {sum(position.zone == zone for position in positions)}" for zone in zones)
        raise UserError(f"images under {root} lie in several UTM zones ({counts} images): make a folder for each zone")
    local = [each for each in positions if not each.zone and not _may_be_utm(each)]
    if zones and local:
        raise UserError(
            f"{len(local)} of {len(positions)} images under {root} have local metres, the first {local[0].easting:g} "
            f"{local[0].northing:g}, the others UTM metres of zone {zones[0]}: give all of them the one or the other"
        )
    return zones[0] if zones else None


def _may_be_utm(position: Position) -> bool:
    return UTM_WEST <= position.easting <= UTM_EAST and 0 <= position.northing <= UTM_NORTH
