"""Places to train on as others give them: GSV-Cities' tables (Ali-bey et al., 2022), and a folder for each place.

DIR/Dataframes/CITY.csv, DIR/Images/CITY/*.jpg        DIR/.../PLACE/*.jpg
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vpr.common.errors import UserError
from vpr.data.image_files import find_images
from vpr.data.layouts.columns import read_columns
from vpr.data.layouts.spec_files import listing
from vpr.data.positions.coordinates import from_degrees
from vpr.training.places.place_set import PlaceSet, grouped

COLUMNS = ("city_id", "place_id", "year", "month", "northdeg", "lat", "lon", "panoid")
IDS_OF_A_CITY = 10**5  # of which GSV-Cities' own reader adds a multiple to the numbers of places; names are without
REMEDY = "get the tables of GSV-Cities again, or write as they are"


def read_place_files(root: Path, least: int = 4) -> tuple[list[Path], PlaceSet]:
    """The places of a folder in whichever form it has, and the files that their images are.

    Places of fewer than `least` images are left out, and images that lie in `root` itself. Only GSV-Cities' places have
    positions: UTM metres, of each in its own zone. Raises a UserError: a table is not usable, images that it lists are
    missing, or no place has enough.
    """
    name = root.resolve().name
    if (root / "Dataframes").is_dir():
        files, labels, degrees = _read_gsv_cities(root)
        places = grouped(name, labels, degrees, least)
        metres = [from_degrees(*place) for place in ([] if places.positions is None else places.positions)]
        places = dataclasses.replace(places, positions=np.array([(each.easting, each.northing) for each in metres]))
    else:
        files = find_images(root)
        number_of = {folder: number for number, folder in enumerate(sorted({file.parent for file in files} - {root}))}
        places = grouped(name, np.array([number_of.get(file.parent, -1) for file in files], np.int64), least=least)
    if not len(places):
        raise UserError(
            f"{root} has {len(files)} images and no place of {least} or more, wanted a folder for each place, or "
            "GSV-Cities' Dataframes and Images: add images or take places of fewer"
        )
    return files, places


def _read_gsv_cities(root: Path) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Files, the numbers of their places [N], and degrees [N, 2]."""
    tables = sorted((root / "Dataframes").glob("*.csv"))
    rows = [(table, row) for table in tables for row in read_columns(table, COLUMNS, REMEDY)]
    there = {city: listing(root / "Images" / city) for city in {row["city_id"] for _, row in rows}}
    files, lost, labels, degrees = [], [], [], []
    number_of: dict[tuple[Path, int], int] = {}
    for table, row in rows:
        try:
            names, place = list(_file_names(row)), int(row["place_id"])
            degrees.append((float(row["lat"]), float(row["lon"])))
            from_degrees(*degrees[-1])
        except ValueError as error:
            raise UserError(f"{table} has what is no number or no place ({error}): {REMEDY}") from error
        found = [each for each in names if each in there[row["city_id"]]]
        files.append(root / "Images" / row["city_id"] / (found or names)[0])
        lost += [] if found else files[-1:]
        labels.append(number_of.setdefault((table, place), len(number_of)))
    if lost:
        raise UserError(
            f"{len(lost)} of the {len(files)} images that {root / 'Dataframes'} lists are missing, first {lost[0]}: "
            f"unpack all of GSV-Cities below {root}, or take the tables of those away"
        )
    return files, np.array(labels, np.int64), np.array(degrees).reshape(-1, 2)


def _file_names(row: dict[str, str]) -> Iterator[str]:
    """What an image may be called, the likeliest first: degrees as in the table, or written from a number."""
    number, degrees, date = (
        int(row["place_id"]),
        (row["lat"], row["lon"]),
        (row["year"].zfill(4), row["month"].zfill(2)),
    )
    ids, texts = (number % IDS_OF_A_CITY, number), (degrees, tuple(str(float(text)) for text in degrees))
    for place, text, ending in itertools.product(ids, texts, ("jpg", "JPG")):
        parts = (row["city_id"], f"{place:07d}", *date, row["northdeg"].zfill(3), *text, row["panoid"])
        yield f"{'_'.join(parts)}.{ending}"
