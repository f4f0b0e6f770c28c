"""The file of an index: records of images, their descriptors, and a FAISS index of these, with what made them.

    NAME.h5                     records, descriptors, the FAISS index if there is one, attributes
    NAME.GENERATION.local       local descriptors, where they are kept; see local_file.py
    NAME.GENERATION.faiss       in place of one in NAME.h5, an inverted file that stays on the disk, and
    NAME.GENERATION.lists       its lists

The generation changes whenever NAME.h5 is written, and NAME.h5 names it: whoever is cut off between two files leaves
the earlier ones, which still belong together.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.common.provenance import Blocks, open_hdf5, write_hdf5
from vpr.database.records import Records
from vpr.descriptors.local_file import ENDING as LOCAL_ENDING
from vpr.descriptors.local_file import local_path, read_local
from vpr.search.database import DatabaseIndex
from vpr.search.exact import Rows, tiles
from vpr.search.on_disk import ENDINGS as DISK_ENDINGS
from vpr.search.on_disk import open_on_disk

REMEDY = "make it anew with --mode=index, or name another with --indexFile"
EXACT = "none"  # in place of a FAISS index's factory string
TEXTS = ("names", "folders", "columns")


@dataclass(frozen=True)
class IndexFile:
    """An index as it was read.

    Attributes:
        searched: what is searched, by row.
        descriptors: float16 [N, dim], in memory where they are searched themselves; None where an earlier version
            kept a FAISS index alone.
        records: None in files of earlier versions.
        attributes: what made it, and the generation.
    """

    searched: DatabaseIndex
    descriptors: "torch.Tensor | StoredRows | None"
    records: Records | None
    attributes: Mapping[str, Any]


class StoredRows:
    """Descriptors float16 [N, dim] that stay in their file, which was found whole, until rows are asked for.

    The file stays open: rows are those that were there when it was read, though another takes its place.
    """

    def __init__(self, path: Path, dataset: h5py.Dataset) -> None:
        """Those of a dataset of an HDF5 file, whose rows lie one after the other.

        Raises:
            ValueError: they do not.
        """
        self.path, self.shape = path, (int(dataset.shape[0]), int(dataset.shape[1]))
        offset = dataset.id.get_offset()
        if dataset.dtype != np.float16 or dataset.chunks or (offset is None and len(self)):
            raise ValueError(f"descriptors {dataset.dtype} in chunks {dataset.chunks}, wanted float16 rows in a piece")
        self._offset = offset or 0
        self._file = os.fdopen(os.dup(dataset.file.id.get_vfd_handle()), "rb")  # open as long as rows may be asked for

    def __getitem__(self, rows: "slice | np.ndarray | list[int]") -> torch.Tensor:
        """Some of them, in the order given.

        Raises:
            UserError: the file has become shorter.
        """
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return torch.from_numpy(self._read(start, max(0, stop - start)))
        found = np.empty((len(rows), self.shape[1]), np.float16)
        for place, row in enumerate(rows):
            found[place] = self._read(int(row), 1)
        return torch.from_numpy(found)

    def __len__(self) -> int:
        return self.shape[0]

    def _read(self, first: int, count: int) -> np.ndarray:
        """[count, dim]."""
        found = np.empty((count, self.shape[1]), np.float16)
        if not found.size:
            return found
        view, at = found.data.cast("B"), self._offset + first * self.shape[1] * found.itemsize
        while len(view):
            read = os.pread(self._file.fileno(), len(view), at)
            if not read:
                raise UserError(f"{self.path} has become shorter while it was read: {REMEDY}")
            view[: len(read)] = read
            view, at = view[len(read) :], at + len(read)
        return found


def beside(path: Path, generation: str) -> Path:
    """The name by which files of a generation beside an index begin."""
    return path.with_name(f"{path.name.removesuffix('.h5')}.{generation}.h5") if generation else path


def write_index(
    path: Path,
    records: Records,
    descriptors: Rows,
    more: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
) -> None:
    """Write an index, whole or not at all.

    Args:
        descriptors: float16 [N, dim], read block by block.
        more: arrays of local descriptors and of a FAISS index.
        attributes: with the generation.
    """
    texts = {name: _as_bytes(getattr(records, name)) for name in TEXTS}
    numbers = {name: getattr(records, name) for name in ("positions", "sizes", "modified", "hashes")}
    shape = (len(records), int(descriptors.shape[1]))
    rows = Blocks(shape, "float16", (descriptors[block].numpy() for block in tiles(*shape)))
    arrays = {**texts, **numbers, "descriptors": rows, **more}
    write_hdf5(path, arrays, {**attributes, "zone": records.zone or ""})


def read_index(path: Path, dim: int, nprobe: int | None = None) -> IndexFile:
    """Read an index that is found whole: FAISS is given nothing else, since it trusts what it reads.

    Args:
        dim: that its descriptors shall have.
        nprobe: lists that an inverted file looks through; None: as it was made.

    Raises:
        UserError: it is missing, damaged or of another kind.
    """
    with open_hdf5(path, "an index", REMEDY) as file:
        attributes = dict(file.attrs)
        stem = beside(path, str(attributes.get("generation", "")))
        records = _records(file) if "names" in file else None
        stored, approximate = None, _approximate(file, stem, nprobe)
        if approximate is not None:
            searched, shape = DatabaseIndex(approximate=approximate), (approximate.ntotal, approximate.d)
            stored = StoredRows(path, file["descriptors"]) if "descriptors" in file else None
        else:
            values = torch.from_numpy(file["descriptors"][:])
            searched, shape = DatabaseIndex(values), (len(values), values.shape[1])
        count = len(records) if records is not None else shape[0]
        for found in [shape] + ([stored.shape] if stored else []):
            if found != (count, dim):
                raise ValueError(f"found an index of {found}, wanted {(count, dim)}")
        local = read_local(file, stem)
        if local:
            searched = replace(searched, local=local[0], projection=local[1])
    rows = searched.descriptors if searched.descriptors is not None else stored
    return IndexFile(searched, rows, records, attributes)


def attributes_of(path: Path) -> dict[str, Any]:
    """What an index says of itself, after it was found whole."""
    with open_hdf5(path, "an index", REMEDY) as file:
        return dict(file.attrs)


def _approximate(file: h5py.File, stem: Path, nprobe: int | None) -> faiss.Index | None:
    """The FAISS index, in the file or beside it."""
    if file.attrs.get("on_disk"):
        index = open_on_disk(stem.with_suffix(""))
    elif "faiss" in file:
        index = faiss.deserialize_index(file["faiss"][:])
    else:
        return None
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None and nprobe is not None:
        lists.nprobe = nprobe
    return index


def remove_other_generations(path: Path, generation: str) -> None:
    """Remove the files beside an index that no longer belong to it."""
    name, kept = path.name.removesuffix(".h5"), beside(path, generation).name.removesuffix(".h5")
    endings = (LOCAL_ENDING, *DISK_ENDINGS)
    for file in path.parent.glob(f"{_escaped(name)}.*"):
        stem = file.name.removesuffix(file.suffix)
        between = stem.removeprefix(name).removeprefix(".")
        if file.suffix in endings and stem != kept and len(between) in (0, 12) and "." not in between:
            with contextlib.suppress(OSError):
                file.unlink()


def _escaped(name: str) -> str:
    import glob

    return glob.escape(name)


def local_file_of(path: Path, generation: str) -> Path:
    """Where the local descriptors of a generation lie."""
    return local_path(beside(path, generation))


def _records(file: h5py.File) -> Records:
    texts = {name: json.loads(bytes(file[name][:])) for name in TEXTS}
    numbers = {name: file[name][:] for name in ("positions", "sizes", "modified", "hashes")}
    records = Records(**texts, **numbers, zone=str(file.attrs["zone"]) or None)
    count = len(records)
    shapes = (records.positions.shape, records.hashes.shape, len(records.folders), len(records.sizes))
    if shapes != ((count, 2), (count, 32), count, count) or any(len(v) != count for v in records.columns.values()):
        raise ValueError(f"records of {count} names with {shapes}")
    return records


def _as_bytes(content: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)
