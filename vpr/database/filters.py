"""Searches limited to a part of the database: around a point, in a box, by a column of the images' table."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vpr.common.errors import UserError
from vpr.database.columns import number_of, value_of
from vpr.database.records import Records, Value

EARTH_RADIUS = 6_371_008.8  # metres, the mean one; on it a degree of latitude has 111.2 km
COMPARISONS: dict[str, Callable[[Value, Value], bool]] = {
    "=": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    ">=": lambda value, wanted: value >= wanted,  # type: ignore[operator]  # of one type, see Condition.holds
    "<=": lambda value, wanted: value <= wanted,  # type: ignore[operator]
}


@dataclass(frozen=True)
class Condition:
    """A column compared with a value: numbers as numbers, texts as texts; a silent table never agrees.

    A number is neither above nor below a text. A text that reads as a number, such as 08, is one where order is asked
    for, and equals the number 8; 08 as it is typed equals 08 alone.
    """

    column: str
    comparison: str
    value: Value

    def holds(self, found: Value) -> bool:
        """Whether a value of the column is wanted."""
        if found is None:
            return False
        compare = COMPARISONS[self.comparison]
        if self.comparison in ("=", "!="):
            return compare(found if isinstance(self.value, str) else _number_in(found), self.value)
        numbers = _number_in(found), _number_in(self.value)
        return compare(*numbers) if None not in numbers else numbers == (None, None) and compare(found, self.value)


@dataclass(frozen=True)
class SearchFilter:
    """Which images of a database are searched: those for which all of these hold."""

    near: tuple[float, float, float] | None = None  # WGS 84 latitude and longitude, and metres from there
    # South, west, north, east in degrees; a west above the east crosses the date line.
    box: tuple[float, float, float, float] | None = None
    where: tuple[Condition, ...] = ()  # conditions on columns

    def mask(self, records: Records) -> np.ndarray:
        """bool [N]: the rows that are searched.
        Raises a UserError: images' latitude and longitude are unknown, or there is no such column."""
        chosen = np.ones(len(records), bool)
        if (self.near or self.box) and len(records) and not np.isfinite(records.degrees).any():
            raise UserError(
                "the images' latitude and longitude are unknown: name the UTM zone of their metres with --utmZone, or "
                "search without --near and --box"
            )
        if self.near:
            chosen &= haversine(records.degrees, self.near[:2]) <= self.near[2]
        if self.box:
            chosen &= in_boxes(records.degrees, split_at_date_line(self.box))
        for condition in self.where:
            if condition.column not in records.columns:
                there = ", ".join(records.columns) or "none"
                raise UserError(f"the images have no column {condition.column}, found {there}: name one of them")
            chosen &= np.array([condition.holds(value) for value in records.columns[condition.column]], bool)
        return chosen

    def boxes(self) -> list[tuple[float, float, float, float]] | None:
        """Boxes of degrees, none of which crosses the date line, that hold all that is wanted; None: everywhere."""
        wanted = box_around(*self.near) if self.near else self.box  # of both, that of the circle alone
        return split_at_date_line(wanted) if wanted else None


def why_nothing(wanted: SearchFilter, records: Records) -> str:
    """Why none of some images is wanted: how far the nearest is from the point that was named, if that is why."""
    if wanted.near:
        latitude, longitude, metres = wanted.near
        apart = haversine(records.degrees, (latitude, longitude))
        nearest = np.where(np.isnan(apart), np.inf, apart).min(initial=np.inf)
        if metres < nearest < np.inf:
            away = f"{nearest:.0f} m" if nearest < 1000 else f"{nearest / 1000:,.1f} km"
            return (
                f"no database image lies within {metres:g} m of {latitude:g}, {longitude:g}: the nearest is {away} away"
            )
    return "no database image is left by what the search is limited to (near, box, where): widen it"


def _number_in(value: Value) -> float | None:
    return number_of(value) if isinstance(value, str) else value


def read_near(text: str) -> tuple[float, float, float]:
    """Reads LAT,LON,METRES. Raises a ValueError where it is none."""
    latitude, longitude, metres = _numbers(text, 3, "LAT,LON,METRES in degrees and metres, as in 40.4,-80.0,500")
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180 and metres >= 0):
        raise ValueError(f"found {text!r}, wanted a latitude from -90 to 90, a longitude from -180 to 180, and metres")
    return latitude, longitude, metres


def read_box(text: str) -> tuple[float, float, float, float]:
    """Reads SOUTH,WEST,NORTH,EAST in degrees. Raises a ValueError where it is none."""
    south, west, north, east = _numbers(text, 4, "SOUTH,WEST,NORTH,EAST in degrees, as in 40.4,-80.1,40.5,-79.9")
    if not (-90 <= south <= north <= 90 and -180 <= west <= 180 and -180 <= east <= 180):
        raise ValueError(f"found {text!r}, wanted SOUTH,WEST,NORTH,EAST in degrees, the south not above the north")
    return south, west, north, east


def read_condition(text: str) -> Condition:
    """Reads COLUMN=VALUE, COLUMN!=VALUE, COLUMN>=VALUE or COLUMN<=VALUE. Raises a ValueError where it is none."""
    operator = re.search("[!<>]?=", text)  # the first; one pass over the text, which may come from anywhere
    column = text[: operator.start()].strip() if operator else ""
    value = value_of(text[operator.end() :]) if operator else None
    if operator is None or not column or set(column) & set("!<>") or value is None:
        raise ValueError(f"found {text!r}, wanted COLUMN=VALUE, COLUMN!=VALUE, COLUMN>=VALUE or COLUMN<=VALUE")
    return Condition(column.lower(), operator[0], value)


def _numbers(text: str, count: int, wanted: str) -> list[float]:
    values = [number for part in text.split(",") if (number := number_of(part)) is not None]
    if len(values) != count or text.count(",") != count - 1:
        raise ValueError(f"found {text!r}, wanted {wanted}")
    return values


def haversine(degrees: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """Metres on the sphere from points [N, 2] of latitude and longitude to one; NaN where a point is unknown."""
    (latitudes, longitudes), (latitude, longitude) = np.radians(degrees).T, np.radians(point)
    north, east = np.sin((latitudes - latitude) / 2), np.sin((longitudes - longitude) / 2)  # sines of half the angles
    chord = north**2 + np.cos(latitudes) * np.cos(latitude) * east**2
    return 2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.minimum(chord, 1)))


def box_around(latitude: float, longitude: float, metres: float) -> tuple[float, float, float, float]:
    """The smallest box of degrees (south, west, north, east) with all points within metres of one.

    A circle around a pole has all longitudes; one that crosses the date line has a west above its east.
    """
    angle = metres / EARTH_RADIUS
    south, north = latitude - np.degrees(angle), latitude + np.degrees(angle)
    if south <= -90 or north >= 90 or angle >= np.pi / 2:
        return max(south, -90.0), -180.0, min(north, 90.0), 180.0
    # A circle's easternmost point lies nearer to the pole than its centre.
    width = np.degrees(np.arcsin(np.sin(angle) / np.cos(np.radians(latitude))))
    if width >= 180:
        return south, -180.0, north, 180.0
    west, east = (float((longitude + side + 180) % 360 - 180) for side in (-width, width))
    return float(south), west, float(north), east


def split_at_date_line(box: tuple[float, float, float, float]) -> list[tuple[float, float, float, float]]:
    """A box (south, west, north, east) as boxes that do not cross the date line, which is at 180 and at -180."""
    south, west, north, east = box
    if west > east:
        return [(south, west, north, 180.0), (south, -180.0, north, east)]
    ends = [(south, -end, north, -end) for end in (west, east) if abs(end) == 180 and east - west < 360]
    return [box, *ends]


def in_boxes(degrees: np.ndarray, boxes: list[tuple[float, float, float, float]]) -> np.ndarray:
    """bool [N]: whether points [N, 2] of latitude and longitude lie in one of some boxes."""
    latitudes, longitudes = degrees.T
    inside = np.zeros(len(degrees), bool)
    for south, west, north, east in boxes:
        inside |= (south <= latitudes) & (latitudes <= north) & (west <= longitudes) & (longitudes <= east)
    return inside
