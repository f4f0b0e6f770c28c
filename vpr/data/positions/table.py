"""The table of positions of a folder of images: image,easting,northing (perhaps zone) or image,latitude,longitude."""

import contextlib
import csv
import math
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vpr.common.errors import UserError
from vpr.data.names import plain
from vpr.data.positions.coordinates import Position, from_degrees, may_be_utm, named_zone

TABLE = "positions.csv"
METRES, DEGREES = ("easting", "northing"), ("latitude", "longitude")
COLUMNS = (METRES, DEGREES)
ZONES = ("zone", "utm_zone", "utmzone")
LETTERS = {"latitude": "NS", "longitude": "EW"}
# What people and programs write where they know nothing.
BLANK = {"", "-", "--", "?", "n/a", "na", "#n/a", "nan", "null", "none", "nil", "unknown"}
NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
# 40°26'46.5"N, N 40° 26.77', 79.99W, -79.99°
DEGREES_AS_TEXT = re.compile(
    rf"([NSEW]?)\s*([+-]?)\s*{NUMBER}\s*[°º]?\s*(?:(?<=[°º\s]){NUMBER}\s*['′’]\s*)?"
    rf"(?:(?<=['′’\s]){NUMBER}\s*(?:[\"″”]|''|′′|’’)\s*)?([NSEW]?)",
    re.IGNORECASE,
)  # fmt: skip


def read_table(path: Path) -> dict[str, Position]:
    """Positions by image from a table with a heading; nothing where there is none.

    An image whose cells are blank, or say that nothing is known (n/a), has no position; nor has one at latitude and
    longitude 0, which is what a receiver writes that has not found its place.
    Raises a UserError: columns are missing, or a line cannot be read, which is named.
    """
    if not path.is_file():
        return {}
    line = 1
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            headings = [heading.strip().lower() for heading in reader.fieldnames or ()]
            reader.fieldnames = headings
            if not any(set(pair) <= set(headings) for pair in COLUMNS) or "image" not in headings:
                raise UserError(
                    f"{path} has the columns {', '.join(headings) or 'none'}, wanted image,easting,northing or "
                    "image,latitude,longitude: mend its first line"
                )
            found: list[tuple[str, Position, str]] = []
            for row in reader:
                line = reader.line_num
                position = _position_of_row(row, len(headings))
                if position is not None:
                    zone = next((row[name] for name in ZONES if row.get(name)), "")
                    found.append((image_name(row["image"]), position, zone.strip()))
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of positions ({error}): mend it") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read as a table of positions (line {line}: {error}): mend it") from error
    table: dict[str, Position] = {}
    for name, position in _with_zones(found):
        earlier = table.setdefault(name, position)
        if earlier != position:
            raise UserError(
                f"{path} has two positions for {name}, {earlier.easting:.1f} {earlier.northing:.1f} and "
                f"{position.easting:.1f} {position.northing:.1f}: keep the right line"
            )
    return table


def image_name(cell: str) -> str:
    """The image that a cell names, as `plain` has it, and without a dot in front."""
    return PurePosixPath(plain(cell)).as_posix()


def _position_of_row(row: dict, width: int) -> Position | None:
    """Where a row says that its image was taken: by the first columns that are not blank."""
    more = [cell.strip() for cell in row.get(None) or () if cell.strip()]
    if any(cell.lstrip("-").isdecimal() for cell in more):  # commas within numbers part them in two
        raise ValueError(
            f"{width + len(row[None])} cells where the first line has {width}; numbers are wanted with a point, as in "
            "40.44, not with a comma"
        )
    for pair in COLUMNS:
        cells = [(row.get(column) or "").strip() for column in pair]
        blank = [cell.lower() in BLANK for cell in cells]
        if all(blank):
            continue
        if not (row["image"] or "").strip():
            raise ValueError(f"{', '.join(cells)} is of no image: the cell of its name is empty")
        if any(blank):
            raise ValueError(f"{row['image'].strip()} has the {pair[blank.index(False)]} alone")
        if pair == METRES:
            return Position(_number(cells[0]), _number(cells[1]))
        latitude, longitude = (_degrees(cell, column) for cell, column in zip(cells, pair, strict=True))
        return from_degrees(latitude, longitude) if latitude or longitude else None
    return None


def _number(cell: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(cell)):
            return value
    comma = re.fullmatch(r"-?\d+,\d+", cell)
    remedy = f"; write it with a point, as in {cell.replace(',', '.')}" if comma else ""
    raise ValueError(f"{cell!r} is no finite number{remedy}")


def _degrees(cell: str, column: str) -> float:
    """Degrees from a cell with a number, or with degrees, minutes and seconds and perhaps a letter."""
    found = DEGREES_AS_TEXT.fullmatch(cell)
    if found is None:
        return _number(cell)
    before, sign, degrees, minutes, seconds, behind = found.groups()
    letter, parts = (before + behind).upper(), [float(part or 0) for part in (degrees, minutes, seconds)]
    if len(letter) > 1 or letter not in ("", *LETTERS[column]):
        wanted = " or ".join(LETTERS[column])
        raise ValueError(f"{cell!r} is no {column}: wanted a number of degrees, or degrees with {wanted}")
    if max(parts[1:]) >= 60 or (sign and letter):
        raise ValueError(f"{cell!r} is no {column}: wanted minutes and seconds below 60, and a sign or a letter")
    value = sum(part / 60**power for power, part in enumerate(parts))
    return -value if sign == "-" or letter in ("S", "W") else value


def _with_zones(rows: list[tuple[str, Position, str]]) -> list[tuple[str, Position]]:
    """The positions with the zones that a column called zone names, such as 17N or 17 T.

    A column whose cells are not all that, or whose metres are none of UTM, is of zones of another kind.
    """
    zoned = []
    for name, position, cell in rows:
        if cell:
            parts = re.fullmatch(r"(\d{1,2})\s*([A-Za-z])", cell)
            zone = named_zone(parts[1], parts[2], position.northing) if parts else None
            if not zone or position.zone or not may_be_utm(position):
                return [(name, position) for name, position, _ in rows]
            position = replace(position, zone=zone)
        zoned.append((name, position))
    return zoned
