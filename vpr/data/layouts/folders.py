"""Own images without a spec (--dataset=folder): positions from file names, a table, or the images' GPS.

    DIR/{train,val,test}/{database,queries}/**/*.jpg        also DIR/images/{train,val,test}/...

The folders of a split may have other usual names, see DATABASE_FOLDERS and QUERY_FOLDERS. An image's position is that
of its name (`@easting@northing@...jpg`, in metres, as the common layout of VPR datasets has it), else that of a table
`DIR/positions.csv` (image,easting,northing or image,latitude,longitude), else that of the GPS in its EXIF.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.image_files import USUAL, find_images, holds_an_image, look_through
from vpr.data.positions.coordinates import Position
from vpr.data.positions.of_images import WANTED, find_positions, read_positions, without_position
from vpr.data.positions.table_doubts import say_doubts
from vpr.data.positions.zones import in_one_zone

POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS = 25.0, 10.0  # metres, Pittsburgh's
# What the folders of a split may be called, in small or capital letters; the first is what messages ask for.
DATABASE_FOLDERS = ("database", "db", "gallery", "index", "ref", "reference", "references")
QUERY_FOLDERS = ("queries", "query")


@dataclass(frozen=True)
class FolderPlaces(Places):
    """Places of a folder; `zone` is the UTM zone of all, None if unknown."""

    zone: str | None = None


def read_folder(
    root: Path, split: str, skip_broken: bool = False, positions_required: bool = True
) -> tuple[FolderPlaces, Path]:
    """The images of a split of a folder and where they were taken.
    Raises a UserError: there are no images, positions are missing, or are as `in_one_zone` refuses them.

    Args:
        positions_required: refuse images without a position; else NaN stands for it.
        skip_broken: leave out files without a position because they are no images, and what `find_images` leaves out.

    Returns:
        the places, names relative to a folder, and that folder.
    """
    base = base_of_split(root, split) or root
    found = [find_images(role_folder(base / split, names), skip_broken) for names in (DATABASE_FOLDERS, QUERY_FOLDERS)]
    database, queries = (_without_placeless_broken(files, root) for files in found) if skip_broken else found
    if not database:
        there = _folders_there(base / split)
        raise UserError(
            f"{base / split / 'database'} has no images ({USUAL}){there}: put some there, or name the folder that "
            "holds train, val and test with --root"
        )
    positions = (read_positions if positions_required else find_positions)([*database, *queries], root)
    return _places_of(database, queries, positions, root, base, f"{root.resolve().name}_{split}"), base


def read_roles(root: Path, database: Path, queries: Path, name: str, skip_broken: bool = False) -> FolderPlaces:
    """The images of two folders below `root`, which names are relative to, and where they were taken.
    Raises a UserError: a folder has no images, positions are missing, or are as `in_one_zone` refuses them."""
    mapped, asked = (images_in(folder, skip_broken) for folder in (database, queries))
    return _places_of(mapped, asked, read_positions([*mapped, *asked], root), root, root, name)


def read_database(root: Path, split: str, skip_broken: bool = False) -> tuple[FolderPlaces, Path]:
    """The database images of a split, or where there is no such split or it is empty, all images under the folder.

    Positions may be missing: NaN stands for them, and it is said how many there are. `skip_broken` and what is returned
    are as of `read_folder`. Raises a UserError: there are no images, or positions are as `in_one_zone` refuses them.
    """
    base, name = base_of_database(root, split) if has_database(root, split) else None, root.resolve().name
    found = find_images(role_folder(base / split, DATABASE_FOLDERS) if base else root, skip_broken)
    if not found:
        raise UserError(f"{root} has no images ({USUAL}): name the folder that has with --root")
    positions = find_positions(found, root)
    if missing := without_position(found, positions):
        none = f"no image of {root} has a position" if not any(positions) and "GPS says" not in missing else missing
        say(f"{none}: only their names are known ({WANTED} if they should have one)")
    return _places_of(found, [], positions, root, base or root, f"{name}_{split}" if base else name), base or root


def _places_of(
    database: list[Path], queries: list[Path], positions: Sequence[Position | None], root: Path, base: Path, name: str
) -> FolderPlaces:
    files, count = [*database, *queries], len(database)
    values, zone = in_one_zone(files, positions, root)
    say_doubts(files, root)
    names = [str(file.relative_to(base)) for file in files]
    return FolderPlaces(
        name, names[:count], names[count:], values[:count], values[count:],
        POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS, zone=zone,
    )  # fmt: skip


def images_in(folder: Path, skip_broken: bool = False) -> list[Path]:
    """As `find_images`. Raises UserError where a folder has none."""
    found = find_images(folder, skip_broken)
    if not found:
        raise UserError(f"{folder} has no images ({USUAL}): put some there, see docs/datasets.md")
    return found


def has_database(root: Path, split: str) -> bool:
    """Whether a folder has a split with database images."""
    if (base := base_of_database(root, split)) is None:
        return False
    folder = role_folder(base / split, DATABASE_FOLDERS)
    return holds_an_image(folder) or bool(look_through(folder).images)  # in links, or without an ending


def folder_hash(root: Path) -> str:
    """A short hash of where a folder lies."""
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]


def base_of_split(root: Path, split: str) -> Path | None:
    """Which folder, `root` or its `images`, has a split."""
    return next((base for base in (root, root / "images") if (base / split).is_dir()), None)


def base_of_database(root: Path, split: str) -> Path | None:
    """Which folder, `root` or its `images`, has a split with a database."""
    bases = (root, root / "images")
    return next((base for base in bases if role_folder(base / split, DATABASE_FOLDERS).is_dir()), None)


def role_folder(split: Path, names: tuple[str, ...]) -> Path:
    """The folder of a split's database or queries, by whichever of its names; by the first where there is none.
    Raises a UserError: there are images in several."""
    there = [name for name in _folders(split) if name.lower() in names]
    there = list({os.path.realpath(split / name): name for name in reversed(there)}.values())[::-1]
    if len(there) > 1:
        there = [name for name in there if look_through(split / name).images] or there[:1]
    if len(there) > 1:
        raise UserError(
            f"{split} has images in {' and in '.join(there)}, which both may be its {names[0]}: leave one of these "
            f"folders there, best {names[0]}"
        )
    return split / (there[0] if there else names[0])


def queries_wanted(split: Path) -> str:
    """Which folder is wanted where a split has no queries, in words."""
    return f"wanted images in {split / QUERY_FOLDERS[0]}{_folders_there(split)}"


def _folders_there(split: Path) -> str:
    """Which folders a split has, for the message that one is missing."""
    there = _folders(split)
    return f"; its folders are {', '.join(there[:9])}" if there else ""


def _folders(split: Path) -> list[str]:
    """The names of the folders in a folder; none where it is not there."""
    try:
        return sorted(name for name in os.listdir(split) if name[0] != "." and (split / name).is_dir())
    except OSError:
        return []


def _without_placeless_broken(files: list[Path], root: Path) -> list[Path]:
    """Files without those that have no position and cannot be decoded either."""
    from vpr.data.reader import decodable

    placeless = [file for file, position in zip(files, find_positions(files, root), strict=True) if position is None]
    whole = decodable(placeless, 0, f"{root} without a position") if placeless else []
    broken = set(placeless) - {placeless[index] for index in whole}
    return [file for file in files if file not in broken]
