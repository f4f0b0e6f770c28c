"""Places to train on as others give them: GSV-Cities' tables (Ali-bey et al., 2022), and a folder for each place.

DIR/Dataframes/CITY.csv, DIR/Images/CITY/*.jpg        DIR/.../PLACE/*.jpg
"""

import functools
import itertools
from collections.abc import Hashable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from vpr.common.errors import UserError
from vpr.data.image_files import find_images
from vpr.data.layouts.columns import read_columns
from vpr.data.layouts.spec_files import listing
from vpr.data.positions.coordinates import from_degrees
from vpr.data.reader import decodable
from vpr.data.settings import PlacesSpec
from vpr.training.places.place_set import PlaceSet, grouped

COLUMNS = ("city_id", "place_id", "year", "month", "northdeg", "lat", "lon", "panoid")
IDS_OF_A_CITY = 10**5  # of which GSV-Cities' own reader adds a multiple to the numbers of places; names are without
REMEDY = "get the tables of GSV-Cities again, or write as they are"


def read_place_files(root: Path, least: int = 4, spec: PlacesSpec | None = None) -> tuple[list[Path], PlaceSet]:
    """The places of a folder in whichever form it has, and the files that their images are.

    Places of fewer than `least` images are left out, and images that lie in `root` itself. Only GSV-Cities' places have
    positions. `spec` says whether and how broken images are left out. Raises a UserError: a table is not usable, images
    that it lists are missing, or no place has enough.
    """
    skip_broken = spec is not None and spec.skip_broken
    if not root.is_dir() or (root.parent / "Dataframes").is_dir():
        what = "a folder that GSV-Cities has beside its tables" if root.is_dir() else "no folder"
        raise UserError(
            f"{root} is {what}, wanted a folder of places, or GSV-Cities whole: name {root.parent} or another"
        )
    if (root / "Dataframes").is_dir():
        files, of, metres = _read_gsv_cities(root)
    else:
        files, metres = find_images(root, skip_broken), None
        of = [file.parent for file in files]
    number_of: dict[Hashable, int] = {place: number for number, place in enumerate(dict.fromkeys(of))} | {root: -1}
    labels = np.array([number_of[place] for place in of], np.int64)
    if spec and skip_broken:
        labels[np.setdiff1d(range(len(files)), decodable(files, spec.workers, str(root), spec.max_pixels))] = -1
    places = grouped(root.resolve().name, labels, metres, least)
    if metres is not None:  # a batch is of one city, as where they are from
        cities = np.unique([file.parent.name for file in files], return_inverse=True)[1]
        places = replace(places, sets=np.array([cities[each[0]] for each in places.images], np.int64))
    if not len(places):
        raise UserError(
            f"{root} has {len(files)} images and no place of {least} or more, wanted a folder for each place, or "
            "GSV-Cities' Dataframes and Images: add images, or take places of fewer by --imagesPerPlace"
        )
    return files, places


def _read_gsv_cities(root: Path) -> tuple[list[Path], list[Hashable], np.ndarray]:
    """Files, the place of each, and UTM metres [N, 2]."""
    files, of, metres, names_in = [], list[Hashable](), [], functools.cache(listing)
    for table in sorted(root.glob("Dataframes/*.csv")):
        for row in read_columns(table, COLUMNS, REMEDY):
            folder = root / "Images" / row["city_id"]
            try:
                there = (name for name in _file_names(row) if name in names_in(folder))
                files.append(folder / next(there, next(_file_names(row))))
                of.append((table, int(row["place_id"])))
                metres.append(from_degrees(float(row["lat"]), float(row["lon"])))
            except ValueError as error:
                raise UserError(f"{table} has what is no number or no place ({error}): {REMEDY}") from error
    if lost := [file for file in files if file.name not in names_in(file.parent)]:
        raise UserError(
            f"{len(lost)} of the {len(files)} images that {root / 'Dataframes'} lists are missing, first {lost[0]}: "
            f"unpack all of GSV-Cities below {root}, or take the tables of those away"
        )
    return files, of, np.array([(each.easting, each.northing) for each in metres]).reshape(-1, 2)


def _file_names(row: dict[str, str]) -> Iterator[str]:
    """What an image may be called, the likeliest first: degrees as in the table, or written from a number."""
    place, north, degrees = int(row["place_id"]), row["northdeg"].zfill(3), (row["lat"], row["lon"])
    texts = degrees, tuple(str(float(text)) for text in degrees)
    for number, text, ending in itertools.product((place % IDS_OF_A_CITY, place), texts, ("jpg", "JPG")):
        parts = (
            row["city_id"],
            f"{number:07d}",
            row["year"].zfill(4),
            row["month"].zfill(2),
            north,
            *text,
            row["panoid"],
        )
        yield f"{'_'.join(parts)}.{ending}"
