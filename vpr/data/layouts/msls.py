"""Mapillary Street-Level Sequences as it is given out (Warburg et al., CVPR 2020): tables and images by city.

    DIR/{train_val,test}/CITY/{database,query}/images/KEY.jpg, raw.csv, postprocessed.csv, subtask_index.csv

Panoramas are left out. In the official validation, which is that of the set's authors, only queries of the subtask
`all` are asked, and of these only those with a database image within 25 m: 740 queries. Images of different cities
never match, whatever their metres, which count from different meridians.
"""

import csv
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.data.layouts.folders import POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS

SUBTASK = "all"
REMEDY = "get metadata.zip of Mapillary Street-Level Sequences again"


def _none() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class CityPlaces(Places):
    """Places of several cities; the numbers of the cities are int64 [N] and [M]."""

    database_cities: np.ndarray = field(default_factory=_none)
    query_cities: np.ndarray = field(default_factory=_none)

    def _near(self, radius: float, least: float = -1.0, own_time: bool = True) -> list[np.ndarray]:
        near = super()._near(radius, least, own_time)
        return [found[self.database_cities[found] == city] for found, city in zip(near, self.query_cities, strict=True)]


@dataclass(frozen=True)
class Images:
    """Images of a city in one role: names below the split's folder, and UTM metres [n, 2]."""

    names: list[str]
    positions: np.ndarray


def read_msls(root: Path, split: str, cities: Iterable[str], official: bool) -> tuple[CityPlaces, Path]:
    """The images of a split.

    Args:
        official: take images of the subtask `all` only, and of the queries only those that have a positive.

    Returns:
        the places, names relative to a folder, and that folder.

    Raises:
        UserError: cities are missing, or tables are missing, damaged or contradict each other.
    """
    base = root / ("test" if split == "test" else "train_val")
    missing = [city for city in cities if not (base / city).is_dir()]
    if missing:
        raise UserError(
            f"{base} has no folder {', '.join(missing)}: unpack Mapillary Street-Level Sequences there, or name the "
            f"folder that holds {base.name} with --root"
        )
    database, queries = (
        [_read_role(base, city, role, official, split == "test") for city in cities] for role in ("database", "query")
    )
    places = CityPlaces(
        f"msls_{split}", _names(database), _names(queries), _positions(database), _positions(queries),
        POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS, database_cities=_numbers(database), query_cities=_numbers(queries),
    )  # fmt: skip
    if not official:
        return places, base
    answerable = [query for query, found in enumerate(places.positives()) if len(found)]
    return places.only(list(range(len(places.database_names))), answerable), base


def _names(cities: list[Images]) -> list[str]:
    return [name for images in cities for name in images.names]


def _positions(cities: list[Images]) -> np.ndarray:
    return np.concatenate([images.positions for images in cities])


def _numbers(cities: list[Images]) -> np.ndarray:
    return np.repeat(np.arange(len(cities)), [len(images.names) for images in cities])


def _read_role(base: Path, city: str, role: str, official: bool, raw_is_optional: bool) -> Images:
    """The images of a city in one role that take part.

    Args:
        raw_is_optional: the test cities were given out without raw.csv, which says what is a panorama.
    """
    folder = base / city / role
    taken = _table(folder / "postprocessed.csv", ("key", "easting", "northing"))
    keys = [row["key"] for row in taken]
    wanted = [True] * len(keys)
    filters = [] if raw_is_optional and not (folder / "raw.csv").is_file() else [("raw.csv", "pano", "False")]
    if official:
        filters.append(("subtask_index.csv", SUBTASK, "True"))
    for name, column, kept in filters:
        rows = _table(folder / name, ("key", column))
        if [row["key"] for row in rows] != keys:
            raise UserError(f"{folder / name} lists other images than postprocessed.csv beside it: {REMEDY}")
        wanted = [before and row[column] == kept for before, row in zip(wanted, rows, strict=True)]
    rows = [row for row, keep in zip(taken, wanted, strict=True) if keep]
    try:
        positions = np.array([(float(row["easting"]), float(row["northing"])) for row in rows]).reshape(-1, 2)
        if not np.isfinite(positions).all():
            raise ValueError("a position is not finite")
    except ValueError as error:
        raise UserError(
            f"{folder / 'postprocessed.csv'} has a position that is no number ({error}): {REMEDY}"
        ) from error
    return Images([f"{city}/{role}/images/{row['key']}.jpg" for row in rows], positions)


def _table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Some columns of a table."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path} has no column {', '.join(missing)} (it has {reader.fieldnames}): {REMEDY}")
            rows = [{column: row[column] for column in columns} for row in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table ({error}): {REMEDY}") from error
    short = next((number for number, row in enumerate(rows, start=2) if None in row.values()), None)
    if short:
        raise UserError(f"{path}: line {short} is too short: {REMEDY}")
    return rows
