"""--mode=locate: where were these photos taken? The nearest of a database, their places, and how sure that is."""

import argparse
import contextlib
import datetime
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vpr.database_index import DatabaseIndex, load_or_make_index
from vpr.descriptors import describe
from vpr.errors import UserError
from vpr.finished_model import load_finished, name_of, results_folder
from vpr.images import PhotoReader, whole_photos
from vpr.model import choose_device, device_line
from vpr.panels import NEUTRAL, cell, file_name, in_a_row, write_jpeg
from vpr.places import PlacePhotos, load_database, zone_of
from vpr.positions import ENDINGS, find_photos, to_degrees
from vpr.progress import say

LOOKED_AT = 100  # hits, among which one taken elsewhere is sought
ELSEWHERE = 25.0  # metres
CONFIDENCE = (
    "confidence: 1 - (descriptor distance of the best match) / (that of the best one taken over 25 m from it); "
    "near 0 another place looks as similar"
)


@dataclass(frozen=True)
class Match:
    """A database photo that resembles a photo.

    Attributes:
        name: of the database photo.
        distance: of the descriptors, 0 to 2; None where the index knows none.
        easting, northing: UTM metres; None where unknown.
        zone, latitude, longitude: None where the UTM zone is unknown.
    """

    name: str
    distance: float | None
    easting: float | None
    northing: float | None
    zone: str | None
    latitude: float | None
    longitude: float | None

    def distance_text(self) -> str:
        """Its distance in words."""
        return "unknown" if self.distance is None else f"{self.distance:.3f}"

    def place(self) -> str:
        """Its place in words."""
        if self.easting is None:
            return "place unknown"
        metres = f"{self.easting:.1f} E {self.northing:.1f} N"
        return metres if self.zone is None else f"{metres} ({self.zone}) = {self.latitude:.6f}, {self.longitude:.6f}"


@dataclass(frozen=True)
class Located:
    """A photo with its matches, best first, and the confidence of the first (see CONFIDENCE); None if unknown."""

    photo: str
    confidence: float | None
    matches: list[Match]

    def lines(self) -> str:
        """A small table."""
        sure = "unknown" if self.confidence is None else f"{self.confidence:.2f}"
        rows = [
            f"  {rank:>2}  distance {match.distance_text()}  {match.place()}  {match.name}"
            for rank, match in enumerate(self.matches, start=1)
        ]
        return "\n".join([f"{self.photo}: confidence {sure}", *rows])


def run(options: argparse.Namespace) -> None:
    """Locate all photos that were named; print and draw the matches."""
    # With --json nothing else goes to where the JSON goes.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        files = photos_named(options)
        database = load_database(options)
        device = choose_device(options)
        say(device_line(device))
        finished = load_finished(options)
        model = finished.model.place(device, options.precision)
        index = load_or_make_index(finished, database, options, device)
        name = name_of(model, options)
        say(f"{name}; {len(database.database_files)} photos of {database.places.name}\n{CONFIDENCE}")
        reader = PhotoReader(files, options.imageSize, options.threads, device)
        descriptors, _ = describe(model, reader, range(len(files)), options, device, "photos")
        located, hits = locate(descriptors, files, index, database, options)
    if options.json:
        say(json.dumps([asdict(photo) for photo in located], indent=2))
    else:
        say("\n".join(photo.lines() for photo in located))
    # Behind the matches, which stand though a panel cannot be drawn.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        draw_panels(results_folder(finished, options), located, hits, database, options.panels)


def draw_panels(
    folder: Path, located: list[Located], hits: np.ndarray, database: PlacePhotos, panels: int | str
) -> None:
    """A panel for each of the first photos, in a folder of its own."""
    count = len(located) if panels == "all" else min(panels, len(located))
    if not count:
        return
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = folder / f"locate_{stamp}"
    for number, photo in enumerate(located[:count]):
        name = file_name(f"{number + 1}_{Path(photo.photo).stem}", ".jpg")
        draw(folder / name, photo, hits[number], database)
    say(f"wrote {count} panels into {folder}")


def photos_named(options: argparse.Namespace) -> list[Path]:
    """Photos and those in folders, in the order given; within a folder by name. With --skipBroken what can be decoded.

    Raises:
        UserError: there are none.
    """
    if not options.inputs:
        raise UserError("--mode=locate wants photos or folders: as in --mode=locate --resume=runs/RUN PHOTO.jpg")
    files = []
    for path in map(Path, options.inputs):
        found = find_photos(path) if path.is_dir() else [path] if path.is_file() else None
        if found is None:
            raise UserError(f"{path} does not exist: name photos or folders of photos")
        if not found:
            raise UserError(f"the folder {path} has no photos ({', '.join(sorted(ENDINGS))}): name another")
        files += found
    if options.skipBroken:
        files = [files[index] for index in whole_photos(files, options.threads, "--mode=locate")]
    if not files:
        raise UserError("no photo that was named can be decoded: name others")
    return files


def locate(
    descriptors, files: list[Path], index: DatabaseIndex, database: PlacePhotos, options: argparse.Namespace
) -> tuple[list[Located], np.ndarray]:
    """The matches of described photos [M, dim], and the database indices [M, at most LOOKED_AT] of all looked at."""
    places, zone = database.places, zone_of(database.places, options)
    found, distances = index.search(descriptors, max(LOOKED_AT, options.top))
    located = []
    for file, hits, apart in zip(files, found, distances, strict=True):
        shown = [n for n in range(min(options.top, len(hits))) if hits[n] >= 0]
        matches = [
            _match(places.database_names[hits[n]], apart[n], places.database_positions[hits[n]], zone) for n in shown
        ]
        located.append(Located(str(file), confidence(hits, apart, places.database_positions), matches))
    return located, found


def confidence(hits: np.ndarray, distances: np.ndarray, positions: np.ndarray) -> float | None:
    """1 - d1 / d2, where d2 is the distance of the best hit taken over ELSEWHERE metres from the best of all.

    Where all hits lie there, the last one's distance stands for d2, which can only make the confidence too
    small. Where places are unknown, the second hit stands for another place. None with a single hit, and where
    distances are not known.
    """
    hits, distances = hits[hits >= 0], distances[hits >= 0]
    if len(hits) < 2 or np.isnan(distances).any():
        return None
    metres = np.linalg.norm(positions[hits[1:]] - positions[hits[0]], axis=1)
    elsewhere = np.flatnonzero(~(metres <= ELSEWHERE))  # NaN, an unknown place, counts as another
    second = distances[1 + elsewhere[0]] if len(elsewhere) else distances[-1]
    return float(1 - distances[0] / second) if second > 0 else 0.0


def draw(path: Path, located: Located, hits: np.ndarray, database: PlacePhotos) -> None:
    """A panel: the photo, then its matches."""
    sure = "unknown" if located.confidence is None else f"{located.confidence:.2f}"
    file = Path(located.photo)
    cells = [cell(file, NEUTRAL, file.name, f"confidence {sure}", "")]
    for hit, match in zip(hits, located.matches, strict=False):
        place = match.place() if match.latitude is None else f"{match.latitude:.6f}, {match.longitude:.6f}"
        photo = database.database_files[hit]
        cells.append(cell(photo, NEUTRAL, f"descriptor distance {match.distance_text()}", place, match.name))
    write_jpeg(path, in_a_row(cells, len(cells)))


def _match(name: str, distance: float, position: np.ndarray, zone: str | None) -> Match:
    distance = None if np.isnan(distance) else float(distance)
    if not np.isfinite(position).all():
        return Match(name, distance, None, None, None, None, None)
    easting, northing = map(float, position)
    latitude, longitude = to_degrees(easting, northing, zone) if zone else (None, None)
    return Match(name, distance, easting, northing, zone, latitude, longitude)
