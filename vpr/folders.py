"""Own photos without a spec (--dataset=folder): positions from file names, a table, or the photos' GPS.

    DIR/{train,val,test}/{database,queries}/**/*.jpg        also DIR/images/{train,val,test}/...

A photo's position is that of its name (`@easting@northing@...jpg`, in metres, as the common layout of VPR
datasets has it), else that of a table `DIR/positions.csv` (image,easting,northing or
image,latitude,longitude), else that of the GPS in its EXIF.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pittsburgh import Places
from vpr.errors import UserError
from vpr.progress import say

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif"}
POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS = 25.0, 10.0  # metres, Pittsburgh's
TABLE = "positions.csv"
COLUMNS = (("easting", "northing"), ("latitude", "longitude"))
WANTED = "wanted @easting@northing@ in the name, a line in positions.csv, or GPS in the EXIF"
GPS_FOLDER = 0x8825  # EXIF


@dataclass(frozen=True)
class Position:
    """UTM easting and northing in metres, and the zone, such as 17N, where it is known."""

    easting: float
    northing: float
    zone: str | None = None


@dataclass(frozen=True)
class FolderPlaces(Places):
    """Places of a folder; `zone` is the UTM zone of all, None if unknown."""

    zone: str | None = None


def read_folder(root: Path, split: str, skip_broken: bool = False) -> tuple[FolderPlaces, Path]:
    """The photos of a split of a folder and where they were taken.

    Args:
        skip_broken: leave out files that have no position because they are no photos.

    Returns:
        the places, names relative to a folder, and that folder.

    Raises:
        UserError: there are no photos, positions are missing, or lie in several UTM zones.
    """
    base = next((folder for folder in (root, root / "images") if (folder / split).is_dir()), root)
    database, queries = (find_photos(base / split / role) for role in ("database", "queries"))
    if skip_broken:
        database, queries = (_without_placeless_broken(files, root) for files in (database, queries))
    if not database:
        raise UserError(
            f"{base / split / 'database'} has no photos ({', '.join(sorted(ENDINGS))}): put some there, or name the "
            "folder that holds train, val and test with --root"
        )
    positions = read_positions([*database, *queries], root)
    zone = common_zone(positions, root)
    values = np.array([(position.easting, position.northing) for position in positions]).reshape(-1, 2)
    names = [str(file.relative_to(base)) for file in (*database, *queries)]
    count = len(database)
    places = FolderPlaces(
        f"{root.resolve().name}_{split}", names[:count], names[count:], values[:count], values[count:],
        POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS, zone=zone,
    )  # fmt: skip
    return places, base


def read_database(root: Path, split: str) -> tuple[FolderPlaces, Path]:
    """The database photos of a split, or where there is no such split, all photos under the folder.

    Positions may be missing: NaN stands for them, and it is said how many there are.

    Raises:
        UserError: there are no photos, or they lie in several UTM zones.
    """
    base = next((folder for folder in (root, root / "images") if (folder / split / "database").is_dir()), None)
    found = find_photos(base / split / "database" if base else root)
    if not found:
        raise UserError(f"{root} has no photos ({', '.join(sorted(ENDINGS))}): name the folder that has with --root")
    positions = find_positions(found, root)
    missing = positions.count(None)
    if missing:
        say(f"{missing} of {len(found)} photos have no position, only a name ({WANTED} if they should have one)")
    zone = common_zone([position for position in positions if position], root)
    unknown = Position(np.nan, np.nan)
    values = np.array([(place.easting, place.northing) for place in (position or unknown for position in positions)])
    names, nobody = [str(file.relative_to(base or root)) for file in found], np.empty((0, 2))
    name = f"{root.resolve().name}_{split}" if base else root.resolve().name
    return FolderPlaces(
        name, names, [], values, nobody, POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS, zone=zone
    ), base or root


def has_folder(root: Path, split: str) -> bool:
    """Whether a folder has a split."""
    return any((folder / split).is_dir() for folder in (root, root / "images"))


def find_photos(folder: Path) -> list[Path]:
    """All photos under a folder, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())


def read_positions(files: Sequence[Path], root: Path) -> list[Position]:
    """Where photos were taken.

    Raises:
        UserError: some have no position; says how many and names the first five.
    """
    found = find_positions(files, root)
    missing = [file for file, position in zip(files, found, strict=True) if position is None]
    if missing:
        first = ", ".join(str(file) for file in missing[:5])
        raise UserError(f"{len(missing)} of {len(files)} photos have no position, first {first}: {WANTED}")
    return found


def _without_placeless_broken(files: list[Path], root: Path) -> list[Path]:
    """Files without those that have no position and cannot be decoded either."""
    from vpr.images import whole_photos  # torch takes seconds to import

    placeless = [file for file, position in zip(files, find_positions(files, root), strict=True) if position is None]
    if not placeless:
        return files
    whole = {placeless[index] for index in whole_photos(placeless, 0, f"{root} without a position")}
    broken = set(placeless) - whole
    return [file for file in files if file not in broken]


def find_positions(files: Sequence[Path], root: Path) -> list[Position | None]:
    """Where photos were taken, None where nothing says so."""
    table = read_table(root / TABLE)
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
            return {row["image"].strip(): _position_of_row(row, columns) for row in reader}
    except (OSError, UnicodeError, csv.Error, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table of positions ({error}): mend it") from error


def _position_of_row(row: dict, columns: tuple[str, str]) -> Position:
    first, second = (float(row[column]) for column in columns)
    if not np.isfinite([first, second]).all():
        raise ValueError(f"{row['image']} has {first}, {second}")
    return Position(first, second) if columns == COLUMNS[0] else from_degrees(first, second)


def _position_in_table(table: dict[str, Position], file: Path, root: Path) -> Position | None:
    path = file.relative_to(root)
    return table.get(path.as_posix()) or table.get(file.name)


def position_in_exif(file: Path) -> Position | None:
    """From a photo's GPS, if it has one."""
    from vpr.images import opened  # torch takes seconds to import

    try:
        with opened(file) as photo:
            gps = photo.getexif().get_ifd(GPS_FOLDER)
        degrees = [_degrees(gps[2], gps[1] == "S"), _degrees(gps[4], gps[3] == "W")]
    except Exception:  # no EXIF, no GPS, half a GPS: there is no position; the photo itself is decoded later
        return None
    return from_degrees(*degrees) if np.isfinite(degrees).all() else None


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


def to_degrees(easting: float, northing: float, zone: str) -> tuple[float, float]:
    """UTM metres in a zone such as 17N -> WGS84 latitude and longitude."""
    import utm

    latitude, longitude = utm.to_latlon(easting, northing, int(zone[:-1]), northern=zone[-1] == "N", strict=False)
    return float(latitude), float(longitude)


def _zone(number: int, letter: str) -> str:
    """Number and hemisphere: bands C to M are south of the equator, N to X north."""
    return f"{number}{'N' if letter.upper() >= 'N' else 'S'}"


def common_zone(positions: Sequence[Position], root: Path) -> str | None:
    """The one UTM zone of all positions, None where none is known.

    Raises:
        UserError: there are several, whose metres cannot be compared.
    """
    zones = sorted({position.zone for position in positions if position.zone})
    if len(zones) > 1:
        counts = ", ".join(f"{zone}: {sum(position.zone == zone for position in positions)}" for zone in zones)
        raise UserError(f"photos under {root} lie in several UTM zones ({counts} photos): make a folder for each zone")
    return zones[0] if zones else None
