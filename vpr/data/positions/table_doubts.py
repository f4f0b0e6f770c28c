"""What a table of positions says that the images do not: names of none of them, places far from their GPS."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.image_files import look_through
from vpr.data.names import on_disk, plain
from vpr.data.positions.coordinates import Position, from_degrees, metres_in_zone, to_degrees
from vpr.data.positions.of_images import gps_of, position_in_name, position_in_table
from vpr.data.positions.table import TABLE, read_table

Degrees = tuple[float, float]  # latitude and longitude
COMPARED = 20  # images whose GPS is compared with the table
FAR = 100_000  # metres between the two that no receiver errs by
LIVED_IN = (-60, 72)  # degrees of latitude, outside of which hardly anybody takes pictures


def say_doubts(files: Sequence[Path], root: Path) -> None:
    """Print a line for each thing in a folder's table that is hardly meant.
    Raises a UserError: its latitudes and longitudes are exchanged, as the GPS of the images shows."""
    table = read_table(root / TABLE)
    if not table:
        return
    _say_names_of_no_image(table, files, root)
    own = ((file, position_in_table(table, file, root)) for file in files if not position_in_name(file.name))
    zoned = ((file, position) for file, position in own if position and position.zone)
    placed = [
        (file, to_degrees(position.easting, position.northing, str(position.zone)))
        for file, position in itertools.islice(zoned, COMPARED)
    ]
    if placed and not _disagrees_with_gps(placed, root):
        _say_odd_degrees([degrees for _, degrees in placed], root)


def _say_names_of_no_image(table: dict[str, Position], files: Sequence[Path], root: Path) -> None:
    there = {plain(name) for file in files for name in (file.relative_to(root).as_posix(), file.name)}
    unknown = [name for name in table if name not in there and not on_disk(root, name).is_file()]
    if any("/" not in name for name in unknown):  # of an image in any folder
        there = {plain(image.name) for image in look_through(root).images}
        unknown = [name for name in unknown if "/" in name or name not in there]
    if unknown:
        say(f"{len(unknown)} of {len(table)} images in {root / TABLE} are not under {root}, first {unknown[0]}")


def _disagrees_with_gps(placed: list[tuple[Path, Degrees]], root: Path) -> bool:
    """Whether all images that have GPS have another one than the table; says so."""
    found = ((file, degrees, gps_of(file)) for file, degrees in placed)
    both = [(file, degrees, gps) for file, degrees, gps in found if gps and any(gps)]
    if not both or any(_close(place, gps) for _, place, gps in both):
        return False
    file, (latitude, longitude), gps = both[0]
    said = (
        f"{root / TABLE} has {file.name} at latitude {latitude:.6g}, longitude {longitude:.6g}, its EXIF at "
        f"{gps[0]:.6g}, {gps[1]:.6g}, and so for all {len(both)} images that were compared"
    )
    if all(_close((place[1], place[0]), gps) for _, place, gps in both):
        raise UserError(f"{said}: exchange latitude and longitude in the table")
    say(f"{said}; the table is taken")
    return True


def _say_odd_degrees(degrees: list[Degrees], root: Path) -> None:
    first = f"{root / TABLE} has places such as latitude {degrees[0][0]:.6g}, longitude {degrees[0][1]:.6g}"
    south, north = LIVED_IN
    if all(not south <= place[0] <= north and south <= place[1] <= north for place in degrees):
        say(f"{first}, near a pole: are latitude and longitude swapped?")
    rough = np.round(degrees, 2)
    if len({tuple(place) for place in rough.tolist()}) > 2 and np.allclose(degrees, rough, rtol=0, atol=1e-6):
        say(f"{first}, to a hundredth of a degree, a kilometre: are they metres? then call them easting,northing")


def _close(place: Degrees, gps: Degrees) -> bool:
    """Whether two pairs of degrees are those of places that are not far apart."""
    try:
        there = from_degrees(*gps)
        here = metres_in_zone(*place, there.zone)
    except ValueError:
        return False
    return bool(np.hypot(here.easting - there.easting, here.northing - there.northing) <= FAR)
