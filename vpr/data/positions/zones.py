"""Positions of many images in one UTM zone, and what cannot be the positions that the user meant."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.catalogue import DATASETS
from vpr.data.positions.coordinates import (
    UTM_WEST,
    Position,
    in_band_s,
    is_place,
    may_be_utm,
    metres_in_zone,
    to_degrees,
)

FARTHEST = 1_000_000  # metres from the middle of a zone's images, within which images of other zones go into it
# Metres, within which no search tells places apart, and within which it hardly does.
ONE_PLACE, SOME_PLACES = 1.0, 25.0
Known = list[tuple[Path, Position]]  # images whose position is known
BAND_OR_SOUTH = {"18N", "19N", "20N", "21N"}  # whose southern namesakes have land at the northings of band S


def in_one_zone(
    files: Sequence[Path], positions: Sequence[Position | None], root: Path
) -> tuple[np.ndarray, str | None]:
    """Metres of images in the UTM zone of most of them.

    Positions in other zones are converted into it, if they lie within 1,000 km of the middle of its images.
    `positions`: of each file; None: unknown. `root`: the folder that messages name. Gives float64 [N, 2], NaN where the
    position is unknown, and the zone; None where no zone is known.
    Raises a UserError: positions are no places, or lie too far apart, or metres of a zone stand beside local ones.
    """
    known = [(file, position) for file, position in zip(files, positions, strict=True) if position]
    of = f"of {len(known)} images under {root}"
    _refuse_no_places(known, of)
    _refuse_degrees(known, root)
    counts = Counter(position.zone for _, position in known if position.zone)
    # The first by name of two with as many images: the same on every machine.
    zone = min(counts, key=lambda each: (-counts[each], each)) if counts else None
    values = np.array([(each.easting, each.northing) if each else (np.nan, np.nan) for each in positions], np.float64)
    values = values.reshape(-1, 2)
    if zone is None:
        return values, None
    _say_which_s(known, zone)
    _refuse_local(known, zone, len(counts), of)
    others = [(row, each) for row, each in enumerate(positions) if each and each.zone and each.zone != zone]
    if not others:
        return values, zone
    middle = np.median([(each.easting, each.northing) for _, each in known if each.zone in (None, zone)], axis=0)
    for row, position in others:
        degrees = to_degrees(position.easting, position.northing, str(position.zone))
        metres = _near(*degrees, zone, middle)
        if metres is None:
            swapped = _near(*degrees[::-1], zone, middle) is not None
            raise _too_far(files[row], degrees, swapped, counts, root)
        values[row] = metres
    say(
        f"{len(others)} {of} lie in UTM zone {', '.join(sorted(set(counts) - {zone}))}: their metres are converted "
        f"into {zone}, the zone of most"
    )
    return values, zone


def _too_far(file: Path, degrees: tuple[float, float], swapped: bool, counts: Counter[str], root: Path) -> UserError:
    """What is wrong with an image in another zone than most, which would lie near with its degrees `swapped`."""
    listed = ", ".join(f"{zone}: {count}" for zone, count in sorted(counts.items()))
    remedy = "exchange its latitude and longitude" if swapped else "make a folder for each zone, or mend its position"
    return UserError(
        f"images under {root} lie in several UTM zones ({listed} images), and {file}, at latitude {degrees[0]:.6g}, "
        f"longitude {degrees[1]:.6g}, lies over {FARTHEST // 1000:,} km from most: {remedy}"
    )


def _near(latitude: float, longitude: float, zone: str, middle: np.ndarray) -> tuple[float, float] | None:
    """Metres in a zone, if degrees have such and lie near enough to the middle [2] of the zone's images."""
    try:
        found = metres_in_zone(latitude, longitude, zone)
    except ValueError:
        return None
    metres = found.easting, found.northing
    return metres if np.hypot(*(np.array(metres) - middle)) <= FARTHEST else None


def moved(positions: np.ndarray, zone: str, wanted: str, middle: np.ndarray) -> np.ndarray | None:
    """Metres [N, 2] of a zone as those of another, NaN where they are; None: some lie too far from the middle [2]."""
    values = np.full_like(positions, np.nan)
    for row in np.flatnonzero(np.isfinite(positions).all(axis=1)):
        found = _near(*to_degrees(positions[row, 0], positions[row, 1], zone), wanted, middle)
        if found is None:
            return None
        values[row] = found
    return values


def _refuse_no_places(known: Known, of: str) -> None:
    if wrong := [(file, position) for file, position in known if not is_place(position)]:
        file, position = wrong[0]
        raise UserError(
            f"{len(wrong)} {of} have metres that are no place in their UTM zone, the first {file} with easting "
            f"{position.easting:g}, northing {position.northing:g} in {position.zone}: mend them (easting comes before "
            "northing), or leave the zone out where metres are local"
        )


def _refuse_degrees(known: Known, root: Path) -> None:
    """Refuse degrees that stand where metres are expected; a line is said where that is not certain.

    Degrees of a survey have decimals and differ little: as metres they would be one place.
    """
    bare = [(file, position) for file, position in known if position.zone is None]
    values = np.array([(position.easting, position.northing) for _, position in bare]).reshape(-1, 2)
    if len(values) < 2:
        return
    farthest, extent = np.abs(values).max(axis=0), float(np.ptp(values, axis=0).max())
    in_degrees = farthest.max() <= 180 and farthest.min() <= 90 and farthest.max() >= 1
    decimals = 2 if extent < SOME_PLACES else 4  # more than local metres usually have
    fine = (np.abs(values - np.round(values, decimals)) > 1e-9).any(axis=1).mean() > 0.5
    if not (in_degrees and fine and extent):
        return
    said = (
        f"the positions of {len(bare)} images under {root} look like degrees where metres are expected, the first "
        f"{bare[0][0]}: {values[0, 0]:g}, {values[0, 1]:g}; as metres all lie within {extent:.2g} m"
    )
    if extent < ONE_PLACE:
        raise UserError(
            f"{said}: write degrees into a table with the columns image,latitude,longitude; local metres with at most "
            "two decimals"
        )
    say(f"{said}; they are taken for metres")


def _say_which_s(known: Known, zone: str) -> None:
    names = (file.name.split("@") for file, position in known if position.zone == zone and in_band_s(position.northing))
    if zone in BAND_OR_SOUTH and any(len(each) > 4 and not each[0] and each[4].upper() == "S" for each in names):
        say(f"UTM zone {zone[:-1]} S in names of images is read as band S, 32 to 40 degrees north, not as south")


def _refuse_local(known: Known, zone: str, zones: int, of: str) -> None:
    """Refuse metres without a zone beside those of a zone where they are local, or may be of any of several zones."""
    bare = [(file, position) for file, position in known if not position.zone]
    if local := [position for _, position in bare if not may_be_utm(position)]:
        raise UserError(
            f"{len(local)} {of} have local metres, the first {local[0].easting:g} {local[0].northing:g}, the others "
            f"UTM metres of zone {zone}: give all of them the one or the other"
        )
    if bare and zones > 1:
        raise UserError(
            f"{len(bare)} {of} have metres without a zone, the first {bare[0][0]}, and the others lie in {zones} UTM "
            "zones: write the zone into the names, as in @585000@4477000@17@T@.jpg"
        )


def zone_of(places: Places, dataset: str, named: str | None) -> str | None:
    """The UTM zone of a database's positions: what the images say, else the data set's, else the one named.
    `dataset`: a key of `vpr.data.catalogue.DATASETS`. `named`: by --utmZone.
    Raises a UserError: another zone is named than they say, or one in which the metres are no place."""
    metres = places.database_positions[np.isfinite(places.database_positions).all(axis=1)]
    plausible = len(metres) and metres[:, 0].min() > UTM_WEST
    known = getattr(places, "zone", None) or (DATASETS[dataset].zone if plausible else None)
    if not named or named == known:
        return known
    if known:
        raise UserError(f"--utmZone={named}: the images of {places.name} lie in zone {known}; drop --utmZone")
    local = next((place for place in metres if not is_place(Position(place[0], place[1], named))), None)
    if local is not None:
        raise UserError(
            f"--utmZone={named}: images of {places.name} have metres that are no place there, such as {local[0]:g} "
            f"{local[1]:g}; drop --utmZone where metres are local"
        )
    return named
