"""Image files by their content: what is new in a folder, what changed, what only moved."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.provenance import of_each, sha256_of
from vpr.data.image_files import USUAL, find_images
from vpr.data.positions.of_images import WANTED, find_positions, without_position
from vpr.data.positions.table_doubts import say_doubts
from vpr.data.positions.zones import in_one_zone
from vpr.database.columns import read_columns
from vpr.database.records import Records, Value


@dataclass(frozen=True)
class FolderNow:
    """The images of a folder as they are now, of which nothing but the table was read."""

    names: list[str]  # as of `Records`, as are positions, zone, columns and folders
    files: list[Path]  # where they lie
    positions: np.ndarray
    zone: str | None
    columns: dict[str, list[Value]]
    folders: list[str]
    sizes: np.ndarray  # int64 [N], bytes
    modified: np.ndarray  # int64 [N], nanoseconds since 1970

    @classmethod
    def of(cls, records: Records, files: list[Path]) -> "FolderNow":
        """The images of some records, whose files are these now."""
        columns = {name: list(values) for name, values in records.columns.items()}
        return cls(records.names, files, records.positions, records.zone, columns, records.folders, *stamps(files))

    def records(self, rows: Sequence[int], hashes: np.ndarray) -> Records:
        """Some of the images, with the hashes [n, 32] of their content."""
        every = np.zeros((len(self.names), 32), np.uint8)
        every[rows] = hashes
        return Records(
            self.names, self.positions, self.zone, self.sizes, self.modified, every, self.folders, self.columns
        ).only(rows)


def stamps(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Size in bytes and time of modification in nanoseconds of files, int64 [N] each. Raises as `of_each`."""
    found = np.empty((2, len(files)), np.int64)
    for row, status in enumerate(of_each(files, os.stat)):
        found[:, row] = status.st_size, status.st_mtime_ns
    return found[0], found[1]


def content_hashes(files: Sequence[Path]) -> np.ndarray:
    """SHA-256 of files, uint8 [N, 32]. Raises as `of_each`."""
    return np.frombuffer(bytearray.fromhex("".join(of_each(files, sha256_of))), np.uint8).reshape(-1, 32)


def folder_to_add(folder: Path, base: Path, skip_broken: bool = False) -> FolderNow:
    """All images under a folder, to be added to an index of another one; `skip_broken` as of `find_images`.

    Their names are paths below `base` where they lie there; else they begin with the folder's own name.
    Raises a UserError: there are none, or positions are as `in_one_zone` refuses them.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"--add: {folder} {found}: name a folder of images")
    files = find_images(folder, skip_broken)
    if not files:
        raise UserError(f"--add: {folder} has no images ({USUAL}): name another folder")
    places = find_positions(files, folder)
    if missing := without_position(files, places):
        say(f"{missing}: only their names are known ({WANTED} if they should have one)")
    values, zone = in_one_zone(files, places, folder)
    say_doubts(files, folder)
    own, inside = folder.resolve(), folder.resolve().is_relative_to(base.resolve())
    start = base.resolve() if inside else own.parent
    names = [(own / file.relative_to(folder)).relative_to(start).as_posix() for file in files]
    sizes, modified = stamps(files)
    return FolderNow(
        names, files, values, zone, dict(read_columns(folder, files)),
        ["" if inside else str(start)] * len(files), sizes, modified,
    )  # fmt: skip


def same_file(now: FolderNow, row: int, known: Records, at: int) -> bool:
    """Whether a file has the size and time of a record, so that its content need not be looked at."""
    return bool(now.sizes[row] == known.sizes[at] and now.modified[row] == known.modified[at])


def same_description(now: FolderNow, row: int, known: Records, at: int) -> bool:
    """Whether position, folder and columns of an image are those of a record."""
    here, there = now.positions[row], known.positions[at]
    columns = {name: values[row] for name, values in now.columns.items() if values[row] is not None}
    stored = {name: values[at] for name, values in known.columns.items() if values[at] is not None}
    return np.array_equal(here, there, equal_nan=True) and now.folders[row] == known.folders[at] and columns == stored
