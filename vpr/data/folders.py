"""Own images without a spec (--dataset=folder): positions from file names, a table, or the images' GPS.

    DIR/{train,val,test}/{database,queries}/**/*.jpg        also DIR/images/{train,val,test}/...

An image's position is that of its name (`@easting@northing@...jpg`, in metres, as the common layout of VPR
datasets has it), else that of a table `DIR/positions.csv` (image,easting,northing or
image,latitude,longitude), else that of the GPS in its EXIF.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.positions import ENDINGS, WANTED, find_images, find_positions, read_positions, without_position
from vpr.data.table_doubts import say_doubts
from vpr.data.zones import in_one_zone

POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS = 25.0, 10.0  # metres, Pittsburgh's


@dataclass(frozen=True)
class FolderPlaces(Places):
    """Places of a folder; `zone` is the UTM zone of all, None if unknown."""

    zone: str | None = None


def read_folder(root: Path, split: str, skip_broken: bool = False) -> tuple[FolderPlaces, Path]:
    """The images of a split of a folder and where they were taken.

    Args:
        skip_broken: leave out files that have no position because they are no images.

    Returns:
        the places, names relative to a folder, and that folder.

    Raises:
        UserError: there are no images, positions are missing, or are as `in_one_zone` refuses them.
    """
    base = next((folder for folder in (root, root / "images") if (folder / split).is_dir()), root)
    database, queries = (find_images(base / split / role) for role in ("database", "queries"))
    if skip_broken:
        database, queries = (_without_placeless_broken(files, root) for files in (database, queries))
    if not database:
        raise UserError(
            f"{base / split / 'database'} has no images ({', '.join(sorted(ENDINGS))}): put some there, or name the "
            "folder that holds train, val and test with --root"
        )
    return _places_of(database, queries, root, base, f"{root.resolve().name}_{split}"), base


def read_roles(root: Path, base: Path, database: Path, queries: Path, name: str) -> FolderPlaces:
    """The images of two folders and where they were taken, as of `read_folder`; names are relative to `base`.

    Raises:
        UserError: a folder has no images, positions are missing, or are as `in_one_zone` refuses them.
    """
    found = [find_images(folder) for folder in (database, queries)]
    for folder, images in zip((database, queries), found, strict=True):
        if not images:
            raise UserError(
                f"{folder} has no images ({', '.join(sorted(ENDINGS))}): put some there, see docs/datasets.md"
            )
    return _places_of(found[0], found[1], root, base, name)


def _places_of(database: list[Path], queries: list[Path], root: Path, base: Path, name: str) -> FolderPlaces:
    files = [*database, *queries]
    values, zone = in_one_zone(files, read_positions(files, root), root)
    say_doubts(files, root)
    names = [str(file.relative_to(base)) for file in (*database, *queries)]
    count = len(database)
    return FolderPlaces(
        name, names[:count], names[count:], values[:count], values[count:],
        POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS, zone=zone,
    )  # fmt: skip


def read_database(root: Path, split: str) -> tuple[FolderPlaces, Path]:
    """The database images of a split, or where there is no such split, all images under the folder.

    Positions may be missing: NaN stands for them, and it is said how many there are.

    Raises:
        UserError: there are no images, or positions are as `in_one_zone` refuses them.
    """
    base = next((folder for folder in (root, root / "images") if (folder / split / "database").is_dir()), None)
    found = find_images(base / split / "database" if base else root)
    if not found:
        raise UserError(f"{root} has no images ({', '.join(sorted(ENDINGS))}): name the folder that has with --root")
    positions = find_positions(found, root)
    missing = without_position(found, positions)
    if missing:
        say(f"{missing}: only their names are known ({WANTED} if they should have one)")
    values, zone = in_one_zone(found, positions, root)
    say_doubts(found, root)
    names, nobody = [str(file.relative_to(base or root)) for file in found], np.empty((0, 2))
    name = f"{root.resolve().name}_{split}" if base else root.resolve().name
    return FolderPlaces(
        name, names, [], values, nobody, POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS, zone=zone
    ), base or root


def has_folder(root: Path, split: str) -> bool:
    """Whether a folder has a split."""
    return any((folder / split).is_dir() for folder in (root, root / "images"))


def _without_placeless_broken(files: list[Path], root: Path) -> list[Path]:
    """Files without those that have no position and cannot be decoded either."""
    from vpr.data.reader import decodable

    placeless = [file for file, position in zip(files, find_positions(files, root), strict=True) if position is None]
    if not placeless:
        return files
    whole = {placeless[index] for index in decodable(placeless, 0, f"{root} without a position")}
    broken = set(placeless) - whole
    return [file for file in files if file not in broken]
