"""The rows of an index: what its file holds, and what came and went since."""

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.common.memory import available_bytes
from vpr.data.walks import Walks
from vpr.database.engine import Hits
from vpr.database.filters import SearchFilter
from vpr.database.index_file import IndexFile
from vpr.database.journal import Entry
from vpr.database.records import Records, joined, no_records
from vpr.models.local_maps import LocalMaps, QuantizedMap, cut_by_grids, joined_maps
from vpr.models.local_maps import joined as joined_quantized
from vpr.models.local_projection import LocalProjection
from vpr.search.approximate import faiss_name
from vpr.search.database import DatabaseIndex, merged
from vpr.search.exact import measured, nearest
from vpr.search.sequences import SequenceRule

FEW_ROWS = 4096  # of an approximate index that are compared one by one where a search is limited to them
NUMBERS = ("positions", "sizes", "modified", "hashes")


class IndexRows:
    """Images by row, which are searched: those of a file by its index, those that came since exactly.

    A row keeps its image until the index is merged; that of an image that went is never found again.

    Attributes:
        path: of the index's file.
        dim: of a descriptor.
        attributes: of the file.
    """

    searches_sequences, is_shared = True, False

    def __init__(self, path: Path, dim: int, base: IndexFile | None) -> None:
        """The rows of a file; None: none yet."""
        self.path, self.dim = path, dim
        self._projection: LocalProjection | None
        self._take(base)

    def _take(self, base: IndexFile | None) -> None:
        """Begin with what a file holds, or with nothing."""
        self._base, self._adopted = base, False
        self._parts = [base.records if base and base.records is not None else no_records()]
        self._row_of = dict(self._parts[0].row_of)
        self._alive = np.ones(len(self._parts[0]), bool)
        self._fresh: list[torch.Tensor] = []
        self._fresh_local: list[QuantizedMap] = []
        self._projection = base.searched.projection if base else None
        self.attributes = dict(base.attributes) if base else {}
        self._edited = False
        self._forget()

    def _forget(self) -> None:
        """What was joined or counted is no longer so."""
        self.__dict__.pop("records", None)
        self.__dict__.pop("_fresh_rows", None)
        self.__dict__.pop("local", None)

    @functools.cached_property
    def records(self) -> Records:
        """Of all rows; the names of removed images are empty."""
        found = joined(*self._parts)
        if self._alive.all():
            return found
        names = [name if alive else "" for name, alive in zip(found.names, self._alive, strict=True)]
        return replace(found, names=names)

    @functools.cached_property
    def _fresh_rows(self) -> torch.Tensor:
        return torch.cat(self._fresh) if self._fresh else torch.empty(0, self.dim, dtype=torch.float16)

    @functools.cached_property
    def local(self) -> LocalMaps | None:
        """Local descriptors by row, where they are kept."""
        kept = self._base.searched.local if self._base else None
        if not self._fresh_local:
            return kept
        fresh = joined_quantized(self._fresh_local)
        sums = [zlib.crc32(np.ascontiguousarray(rows).data) for rows, _ in self._fresh_local]
        return joined_maps(kept, replace(fresh, checksums=np.array(sums, np.uint32)))

    @property
    def projection(self) -> LocalProjection | None:
        """What projected the local descriptors; None where the model did, or there are none."""
        return self._projection

    @property
    def measures(self) -> bool:
        """Whether its distances are those of descriptors."""
        return self.has_descriptors or (self._base is not None and self._base.searched.measures)

    @property
    def approximate(self) -> str:
        """FAISS's index in words, where it may miss nearest images."""
        base = self._base
        if base is None or base.searched.approximate is None or base.searched.finds_all:
            return ""
        return faiss_name(str(self.attributes.get("index", "")), base.searched.approximate)

    @property
    def has_records(self) -> bool:
        """Whether it says of which images it is; files of earlier versions do not."""
        return self._base is None or self._base.records is not None

    @property
    def has_descriptors(self) -> bool:
        """Whether descriptors can be taken out again; an earlier version kept a FAISS index alone."""
        return self._base is None or self._base.descriptors is not None

    def set_zone(self, zone: str | None) -> None:
        """Take positions for metres of a UTM zone, if one is given."""
        if zone:
            self._parts = [replace(part, zone=zone) for part in self._parts]
            self._forget()

    @property
    def row_of(self) -> Mapping[str, int]:
        """By name, the row of each image that it has."""
        return self._row_of

    @property
    def next_row(self) -> int:
        """That the next image to be added gets."""
        return len(self._alive)

    def count(self) -> int:
        """How many images it has."""
        return int(self._alive.sum())

    def rows(self) -> np.ndarray:
        """The rows of the images it has."""
        return np.flatnonzero(self._alive)

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Those of some rows, float16 [n, dim]."""
        wanted, base = np.asarray(rows, np.int64), len(self._parts[0])
        found = torch.empty(len(wanted), self.dim, dtype=torch.float16)
        old = wanted < base
        if old.any():
            assert self._base is not None and self._base.descriptors is not None
            found[torch.from_numpy(old)] = self._base.descriptors[wanted[old]]
        if not old.all():
            found[torch.from_numpy(~old)] = self._fresh_rows[wanted[~old] - base]
        return found

    def check(self) -> None:
        """As of `Engine`: what is in memory always answers."""

    def widen(self) -> None:
        """Search what the file holds in float32, where a quarter of the free memory has room for it.

        A lone query is answered in half the time, without converting all descriptors, and with the same distances.
        """
        rows = self._base.searched.descriptors if self._base is not None else None
        if self._base is not None and rows is not None and 4 * rows.numel() <= available_bytes() // 4:
            self._base = replace(self._base, searched=replace(self._base.searched, descriptors=rows.float()))

    def search(self, queries: torch.Tensor, count: int, wanted: SearchFilter | None = None) -> Hits:
        """As of `Searchable`: what the file holds, by its index, and what came since, exactly.

        Both are ordered by the distances of the stored descriptors. Where few of the file's images are wanted, these
        are compared one by one: an index looks at a part of itself, in which few of them may lie.
        """
        allowed = self._alive if wanted is None else self._alive & wanted.mask(self.records)
        base, parts = len(self._parts[0]), []
        if self._base is not None and base:
            rows = None if allowed[:base].all() else np.flatnonzero(allowed[:base])
            parts.append(self._search_base(self._base, queries, count, rows))
        if self._fresh:
            if not self.measures:
                raise UserError(
                    f"{self.path} does not measure descriptor distances, by which images that came since are ordered: "
                    "run --mode=index to its end"
                )
            found, distances = DatabaseIndex(self._fresh_rows).search(queries, count, np.flatnonzero(allowed[base:]))
            parts.append((np.where(found >= 0, found + base, -1), distances))
        return Hits(*merged(parts, len(queries), count), self.records)

    def _search_base(
        self, base: IndexFile, queries: torch.Tensor, count: int, rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of the rows of the file, or of some of them."""
        if base.descriptors is None or base.searched.descriptors is not None:
            return base.searched.search(queries, count, rows)
        if rows is not None and len(rows) <= FEW_ROWS:
            found = nearest(base.descriptors, queries, count, rows)
        else:
            found, _ = base.searched.search(queries, count, rows)
        return measured(base.descriptors.__getitem__, queries, found)

    def search_in_order(
        self, queries: torch.Tensor, count: int, walks: tuple[Walks, Walks], rule: SequenceRule
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As of `DatabaseIndex`, once images that came or went are merged (`finish`)."""
        assert self._base is not None and not self._fresh and self._alive.all()
        return self._base.searched.search_in_order(queries, count, walks, rule)

    def _apply(self, entry: Entry) -> None:
        """Do what an entry of the journal says."""
        says, arrays = entry.says, entry.arrays
        names = list(says["names"])
        for name in names:
            row = self._row_of.pop(name, None)
            if row is not None:
                self._alive[row] = False
        self._edited |= says["do"] == "edit"
        if says["do"] == "add":
            start = len(self._alive)
            self._row_of.update({name: start + row for row, name in enumerate(names)})
            self._alive = np.concatenate([self._alive, np.ones(len(names), bool)])
            numbers = {name: arrays[name] for name in NUMBERS}
            folders, columns = list(says["folders"]), dict(says["columns"])
            self._parts.append(Records(names=names, zone=says["zone"], folders=folders, columns=columns, **numbers))
            self._fresh.append(torch.from_numpy(arrays["descriptors"].copy()))
            if "local" in arrays:
                self._fresh_local += cut_by_grids(arrays["local"], arrays["grids"])
        self._forget()
