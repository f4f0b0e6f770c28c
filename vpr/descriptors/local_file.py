"""Local descriptors in a file, of which only the images asked for are read: the values in a file of their own.

NAME.local has the values, one image after the other; the HDF5 file NAME.h5 of the global descriptors has the rest,
with a checksum of each image. To read all of it for a check, as with other files, would take longer than most searches:
each image is checked when it is read.
"""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.progress import say
from vpr.descriptors.local_maps import FileValues, LocalMaps, QuantizedMap, starts_of
from vpr.models.local_projection import LocalProjection

ENDING = ".local"
GRIDS, CHECKSUMS, MEAN, COMPONENTS = "local_grids", "local_checksums", "local_mean", "local_components"
LEARNT_ON = "local_learnt_on"


class _Elsewhere(Exception):
    """Carries an error that did not come of writing past `atomic_write`, which takes all for its own."""


class FileSink:
    """Writes the local descriptors of images one after the other into a file; see `local_file`."""

    def __init__(self, path: Path, temporary: Path, file: BinaryIO) -> None:
        self._path, self._temporary, self._file = path, temporary, file
        self._grids, self._checksums, self._dim = list[tuple[int, int]](), list[int](), 1
        self.failed = False  # to write

    def write(self, maps: Sequence[QuantizedMap]) -> None:
        with self._noting_failure():
            for rows, grid in maps:
                self._file.write(rows.data)
                self._grids.append(grid)
                self._checksums.append(zlib.crc32(rows.data))
                self._dim = rows.shape[1]

    def finished(self) -> LocalMaps:
        with self._noting_failure():
            self._file.close()
        grids = np.array(self._grids, np.int32).reshape(-1, 2)
        maps = stored_maps(self._temporary, grids, np.array(self._checksums, np.uint32), self._dim)
        return replace(maps, source=str(self._path))  # which it will be

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.failed = True
            raise


def local_path(beside: Path) -> Path:
    """The file of values that belongs to an HDF5 file, which may end in .h5 or have any other name."""
    return beside.with_name(beside.name.removesuffix(".h5") + ENDING)


@contextlib.contextmanager
def local_file(beside: Path) -> Iterator[FileSink]:
    """A sink that writes the file of values beside an HDF5 file, whole or not at all; else raises a UserError.

    The HDF5 file is to be written in the block too: if that fails, an earlier pair of files stays as it was.
    """
    path = local_path(beside)
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            sink = FileSink(path, temporary, file)
            try:
                yield sink
            except (OSError, RuntimeError) as error:
                if sink.failed:
                    raise
                raise _Elsewhere(error) from error
    except _Elsewhere as passed:
        raise passed.args[0] from None


def remove_local(beside: Path) -> None:
    """Remove the local descriptors that an earlier HDF5 file of the same name had, and say so."""
    path = local_path(beside)
    if not path.is_file():
        return
    try:
        path.unlink()
    except OSError as error:
        raise UserError(
            f"{path}, of an earlier {beside.name}, cannot be removed ({error.strerror}): delete it"
        ) from error
    say(f"removed {path}: local descriptors of an earlier {beside.name}, which is made without now")


def stored_maps(path: Path, grids: np.ndarray, checksums: np.ndarray, dim: int) -> LocalMaps:
    """A file of values int8 [P, dim], not read yet. Raises a UserError where it is not of the size of the grids."""
    starts = starts_of(grids.prod(axis=1, dtype=np.int64))
    wanted, found = int(starts[-1]) * dim, path.stat().st_size if path.is_file() else None
    if found != wanted:
        there = "is missing" if found is None else f"has {found} bytes, wanted {wanted}"
        raise UserError(f"{path}, the local descriptors, {there}: make it again together with its .h5 file")
    return LocalMaps(FileValues(path, int(starts[-1]), dim), grids, starts, checksums, str(path))


def require_dim(path: Path, maps: LocalMaps, projection: LocalProjection | None, wanted: int | None) -> None:
    """Raise a UserError where local descriptors in the HDF5 file `path` are of other dimensions than were named."""
    if wanted is None:
        return
    most = wanted if projection is None else min(wanted, projection.components.shape[1])  # a backbone has no more
    if maps.dim != most:
        raise UserError(
            f"{path} has local descriptors of {maps.dim} dimensions, found --localDim={wanted}: drop that, or make "
            "the file again"
        )


def described(maps: LocalMaps, projection: LocalProjection | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What the HDF5 file holds of local descriptors that a sink wrote: its arrays, and its attributes."""
    assert maps.checksums is not None
    arrays = {GRIDS: maps.grids, CHECKSUMS: maps.checksums}
    if projection is None:
        return arrays, {"local_dim": str(maps.dim)}
    arrays |= {MEAN: projection.mean, COMPONENTS: projection.components}
    return arrays, {"local_dim": str(maps.dim), LEARNT_ON: projection.learnt_on}


def read_local(file: h5py.File, path: Path) -> tuple[LocalMaps, LocalProjection | None] | None:
    """The local descriptors beside an HDF5 file that has been found whole; None where it was made without.
    Raises a UserError as of `stored_maps`."""
    if GRIDS not in file:
        return None
    grids, checksums = file[GRIDS][:], file[CHECKSUMS][:]
    maps = stored_maps(local_path(path), grids, checksums, int(file.attrs["local_dim"]))
    if MEAN not in file:
        return maps, None
    return maps, LocalProjection(file[MEAN][:], file[COMPONENTS][:], str(file.attrs[LEARNT_ON]))
