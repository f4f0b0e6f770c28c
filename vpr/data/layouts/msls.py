"""Mapillary Street-Level Sequences as it is given out (Warburg et al., CVPR 2020): tables and images by city.

    DIR/{train_val,test}/CITY/{database,query}/images/KEY.jpg, raw.csv, postprocessed.csv, subtask_index.csv

Panoramas are left out. In the official validation, which is that of the set's authors, only queries of the subtask
`all` are asked, and of these only those with a database image within 25 m: 740 queries. Images of different cities
never match, whatever their metres, which count from different meridians.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.data.layouts.columns import read_columns
from vpr.data.layouts.folders import POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS

REMEDY = "get metadata.zip of Mapillary Street-Level Sequences again"


@dataclass(frozen=True, kw_only=True)
class CityPlaces(Places):
    """Places of several cities; the numbers of the cities are int64 [N] and [M]."""

    database_cities: np.ndarray
    query_cities: np.ndarray

    def _near(self, radius: float, least: float = -1.0, own_time: bool = True) -> list[np.ndarray]:
        near = super()._near(radius, least, own_time)
        return [found[self.database_cities[found] == city] for found, city in zip(near, self.query_cities, strict=True)]


def base_of_cities(root: Path, split: str) -> Path:
    """The folder of a split's cities."""
    return root / ("test" if split == "test" else "train_val")


def read_msls(root: Path, split: str, cities: Sequence[str], official: bool) -> tuple[CityPlaces, Path]:
    """The images of a split: the places, names relative to a folder, and that folder.
    `official`: take images of the subtask `all` only, and of the queries only those that have a positive.
    Raises a UserError: cities are missing, or tables are missing, damaged or contradict each other."""
    base = base_of_cities(root, split)
    if missing := [city for city in cities if not (base / city).is_dir()]:
        raise UserError(
            f"{base} has no folder {', '.join(missing)}: unpack Mapillary Street-Level Sequences there, or name the "
            f"folder that holds {base.name} with --root"
        )
    found: dict[str, Any] = {}
    for role in ("database", "query"):
        names, positions = zip(*(_read_role(base, city, role, official) for city in cities), strict=True)
        found[f"{role}_names"] = [name for names_in_city in names for name in names_in_city]
        found[f"{role}_positions"] = np.concatenate(positions)
        found[f"{role}_cities"] = np.repeat(np.arange(len(cities)), [len(names_in_city) for names_in_city in names])
    places = CityPlaces(
        f"msls_{split}", positive_radius=POSITIVE_RADIUS, training_positive_radius=TRAINING_POSITIVE_RADIUS, **found
    )
    if official:
        places = places.only(queries=[query for query, hits in enumerate(places.positives()) if len(hits)])
    return places, base


def _read_role(base: Path, city: str, role: str, official: bool) -> tuple[list[str], np.ndarray]:
    """The images of a city in one role that take part: names below `base`, and UTM metres [n, 2]."""
    folder = base / city / role
    taken = read_columns(folder / "postprocessed.csv", ("key", "easting", "northing"), REMEDY)
    keys, kept = [row["key"] for row in taken], [True] * len(taken)
    # The test cities were given out without raw.csv, which says what is a panorama.
    filters = [("raw.csv", "pano", "False")] if base.name != "test" or (folder / "raw.csv").is_file() else []
    if official:
        filters.append(("subtask_index.csv", "all", "True"))
    for name, column, wanted in filters:
        rows = read_columns(folder / name, ("key", column), REMEDY)
        if [row["key"] for row in rows] != keys:
            raise UserError(f"{folder / name} lists other images than postprocessed.csv beside it: {REMEDY}")
        kept = [before and row[column] == wanted for before, row in zip(kept, rows, strict=True)]
    rows = [row for row, keep in zip(taken, kept, strict=True) if keep]
    try:
        positions = np.array([(float(row["easting"]), float(row["northing"])) for row in rows]).reshape(-1, 2)
        if not np.isfinite(positions).all():
            raise ValueError("a position is not finite")
    except ValueError as error:
        raise UserError(
            f"{folder / 'postprocessed.csv'} has a position that is no number ({error}): {REMEDY}"
        ) from error
    return [f"{city}/{role}/images/{row['key']}.jpg" for row in rows], positions
