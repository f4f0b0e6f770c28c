"""Milvus as a search engine: Milvus Lite in a file, or a server; the same code for both.

What is different is decided by what the server says of itself: Milvus Lite stores descriptors in float32 and has no
product quantisation; other servers store float16 where they take it. Upserts may be repeated, so that calls are, when
a server goes away. https://milvus.io/docs/limitations.md has the limits.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.data.frames import Frames
from vpr.database.engine import Hits, Source, WantedIndex
from vpr.database.filters import SearchFilter
from vpr.database.milvus.collection import CALL_BYTES, IDS, PAGE, Collection, Row, opened
from vpr.database.milvus.connection import MilvusConnection
from vpr.database.milvus.rows import UNKNOWN_METRES, Key, exists, expression, keys_of, records_of, rows_of
from vpr.database.records import Records, Value, no_records, record_id
from vpr.descriptors.local_maps import QuantizedMap
from vpr.models.local_projection import LocalProjection
from vpr.search.exact import measured
from vpr.search.sequences import SequenceRule

SPARE = 8  # hits more than wanted, among which the nearest are chosen by their exact distances
UNIT = 0.01  # by which the squared length of a descriptor may differ from 1


def open_engine(source: Source, wanted: WantedIndex, anew: bool = False) -> "MilvusEngine":
    """Open a collection, or make it.

    Args:
        wanted: its factory is one of INDEXES; None takes what is there, or FLAT, which is exact.
        anew: has no effect: a collection of another model may be of others, and is refused.

    Raises:
        UserError: it cannot be opened, or is another model's.
    """
    connection = MilvusConnection(source.target)
    try:
        return MilvusEngine(opened(connection, source, wanted.factory))
    except BaseException:
        connection.close()
        raise


class MilvusEngine:
    """A collection of Milvus as `vpr.database.engine.Engine`. Local descriptors and the order of images are not kept.

    Others write the collection too, and it does not say when: records are read when they are asked for, and those of
    hits come with them. Rows are those of `records` as they were last read, and of what this process added since.
    """

    searches_sequences = keeps_local = edited = by_hand = False
    is_shared = measures = True
    local, projection, lacking = None, None, no_records()

    def __init__(self, collection: Collection):
        self.collection, self._lock = collection, threading.RLock()
        self._row_of: dict[str, int] | None = None  # of `records` as last read; None: never
        self._keys: list[Key] = []  # by row
        self._zone: str | None = None  # of metres that it has
        self._found = set[str]()  # expressions that some image was seen to fulfil

    @property
    def name(self) -> str:
        """Server, index, type and consistency."""
        kept, version = self.collection, self.collection.connection.version
        return f"milvus ({version}, collection {kept.name}, {kept.index}, {kept.dtype.name}, consistency Strong)"

    @property
    def records(self) -> Records:
        """Of all images, as they are now."""
        with self._lock:
            records = self.collection.records()
            self._row_of, self._keys = records.row_of.copy(), keys_of(records)
            return records

    @property
    def provenance(self) -> dict[str, str]:
        """What made the descriptors; empty before the first are added."""
        return dict(self.collection.provenance) if self.count() else {}

    @property
    def approximate(self) -> str:
        """Milvus and its index, unless that compares all descriptors."""
        return "" if self.collection.index == "FLAT" else f"milvus {self.collection.index}"

    def count(self) -> int:
        """Images that it has now."""
        return self.collection.count()

    @property
    def row_of(self) -> dict[str, int]:
        """By name, the row of each image."""
        with self._lock:
            if self._row_of is None:
                self._row_of = self.records.row_of.copy()
            return self._row_of

    @property
    def next_row(self) -> int:
        """The row that the next image to be added gets."""
        _ = self.row_of  # reads them
        return len(self._keys)

    def rows(self) -> np.ndarray:
        """int64: the rows of the images, ascending."""
        with self._lock:
            return np.sort(np.fromiter(self.row_of.values(), np.int64))

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Those of some rows, read from Milvus, float16 [n, dim].

        Raises:
            UserError: an image is gone.
        """
        with self._lock:
            row_of = self.row_of
            values = self.collection.descriptors([self._keys[row] for row in rows])
        if gone := np.flatnonzero(np.isnan(values[:, 0])).tolist():
            name = next((name for name, row in row_of.items() if row == rows[gone[0]]), "an image")
            raise UserError(f"{name} has been removed from {self.name} meanwhile: repeat the command")
        return torch.from_numpy(values.astype(np.float16))

    def add(self, records: Records, descriptors: torch.Tensor, local: Sequence[QuantizedMap] | None = None) -> None:
        """Upsert images, batch by batch; each is there whole, with its descriptor, size, time and hash, or not at all.

        Raises:
            UserError: two names have one id, the descriptors are not of length 1, or Milvus refuses or is gone.
        """
        values = descriptors.cpu().half().float().numpy()  # as every engine keeps them
        if values.shape != (len(records), self.collection.dim):
            raise UserError(f"found descriptors {values.shape}, wanted {(len(records), self.collection.dim)}")
        stored = values.astype(self.collection.dtype)
        squared = np.einsum("ij,ij->i", stored, stored, dtype=np.float64)
        if not (np.abs(squared - 1) <= UNIT).all():
            raise UserError("found a descriptor that is not of length 1: describe the images with a sound model")
        step = max(1, min(IDS, CALL_BYTES // (self.collection.dim * stored.itemsize + 256)))
        parts = [np.arange(start, min(start + step, len(records))) for start in range(0, len(records), step)]
        with self._lock:
            self._refuse_other_zones(records)
            self._refuse_collisions(records)
            for part in parts:
                some = records.only(part)
                self.collection.call("upsert", data=rows_of(some, stored[part], squared[part]))
                if self._row_of is not None:
                    first = len(self._keys)
                    self._row_of.update(zip(some.names, range(first, first + len(some)), strict=True))
                    self._keys += keys_of(some)

    def remove(self, names: Sequence[str]) -> None:
        """Remove images; those that are not there are passed over."""
        with self._lock:
            for start in range(0, len(names), IDS):
                some = names[start : start + IDS]
                self.collection.call("delete", ids=[record_id(name) for name in some])
                for name in some if self._row_of is not None else ():
                    self.row_of.pop(name, None)

    def begin(self, projection: LocalProjection | None) -> None:
        """Nothing is projected."""

    def set_zone(self, zone: str) -> None:
        """No effect: each image has the zone with which it was added."""

    def prepare_to_serve(self, writable: bool) -> None:
        """Wait no longer for a server that is away, from now on: others wait for the one who asks."""
        self.collection.connection.is_patient = False

    def check(self) -> None:
        """Raise a UserError where nobody answers."""
        self.collection.call("has_collection")

    def finish(self, order: Sequence[str] | None = None) -> None:
        """Have the server write what it holds in memory. Nothing depends on it: what was added is kept anyway."""
        self.collection.call("flush")

    def close(self) -> None:
        """Let go of the server, or of the file."""
        self.collection.connection.close()

    def search_in_order(
        self, queries: torch.Tensor, count: int, sequences: tuple[Frames, Frames], rule: SequenceRule
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Raise a UserError: the order of images is not kept."""
        raise UserError("--sequence searches whole sequences by --engine=faiss: drop --engine")

    def search(self, queries: torch.Tensor, count: int, wanted: SearchFilter | None = None) -> Hits:
        """The nearest images; see `vpr.database.engine.Searchable`.

        Milvus compares by the inner product: of descriptors whose lengths rounding to float16 has changed a little,
        nearly equal ones may change places. Some more than wanted are found, and those told that are nearest by the
        distances of the descriptors themselves.
        """
        if count > PAGE - SPARE:
            raise UserError(f"found {count} hits a query, wanted at most {PAGE - SPARE}, which Milvus finds")
        values = queries.cpu().float().numpy().astype(self.collection.dtype)
        hits = self._nearest(values, count + SPARE, wanted)
        unique = {(row["name"], row["hash"]): row for found in hits for row in found}
        number = {key: place for place, key in enumerate(unique)}
        rows = np.full((len(hits), count + SPARE), -1, np.int64)
        for query, found in enumerate(hits):
            rows[query, : len(found)] = [number[row["name"], row["hash"]] for row in found]
        width = count if (rows[:, count - 1 : count] >= 0).all() else min(count, self.count())
        records = records_of(list(unique.values()))
        keys = keys_of(records)

        def stored(some: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(self.collection.descriptors([keys[row] for row in some]).astype(np.float32))

        rows, distances = measured(stored, queries.cpu(), rows)
        return Hits(rows[:, :width], distances[:, :width], records)

    def _nearest(self, values: np.ndarray, count: int, wanted: SearchFilter | None) -> list[list[Row]]:
        """By query, the nearest rows that are wanted: Milvus is asked deeper and deeper until they are enough."""
        if wanted:
            self._require_sense(wanted)
        text = expression(wanted) if wanted else ""
        hits: list[list[Row]] = [[]] * len(values)
        pending, depth = list(range(len(values))), min(2 * count if wanted else count, PAGE)
        while pending:
            left = []
            for query, found in zip(pending, self.collection.nearest(values[pending], depth, text), strict=True):
                hits[query] = self._wanted(found, wanted)[:count]
                if len(found) == depth and len(hits[query]) < count:
                    left.append(query)
            pending = left
            if depth == PAGE:
                break
            depth = min(2 * depth, PAGE)
        if wanted and pending:  # very few of those that the server cannot tell apart: they are named
            among = self.collection.records(text)
            ids = among.ids[_mask(wanted, among)].tolist()
            for start in range(0, len(ids), IDS):
                named = self.collection.nearest(values[pending], min(count, IDS), f"id in {ids[start : start + IDS]}")
                for query, found in zip(pending, named, strict=True):
                    hits[query] = sorted([*(hits[query] if start else ()), *found], key=lambda row: -row["distance"])[
                        :count
                    ]
        return hits

    def _wanted(self, rows: list[Row], wanted: SearchFilter | None) -> list[Row]:
        if not wanted or not rows:
            return rows
        mask = _mask(wanted, records_of(rows))
        return [row for row, is_wanted in zip(rows, mask, strict=True) if is_wanted]

    def _require_sense(self, wanted: SearchFilter) -> None:
        """Raise a UserError where no image has the columns that are compared, or no place on earth is known."""
        for text in exists(wanted):
            if text not in self._found:
                if not self.collection.query(text, ["id"], 1):
                    wanted.mask(self.records)
                    return
                self._found.add(text)

    def _refuse_collisions(self, records: Records) -> None:
        """Raise a UserError where two names have one id."""
        names, ids = dict[int, str](), records.ids.tolist()
        for start in range(0, len(ids), IDS):
            found = self.collection.query(f"id in {ids[start : start + IDS]}", ["id", "name"], IDS)
            names.update((row["id"], row["name"]) for row in found)
        for number, name in zip(ids, records.names, strict=True):
            if names.setdefault(number, name) != name:
                raise UserError(f"{name} has the id {number} of {names[number]}: rename one of the two images")

    def _refuse_other_zones(self, records: Records) -> None:
        """Raise a UserError where metres would be of two UTM zones."""
        if not np.isfinite(records.positions).any():
            return
        if self._zone is None:
            found = self.collection.query(f"easting > {UNKNOWN_METRES}", ["zone"], 1)
            self._zone = found[0]["zone"] if found else None
        own, kept = records.zone or "", self._zone
        if kept is not None and own != kept:
            raise UserError(
                f"the images' UTM zone is {own or 'unknown'}, the collection's {kept or 'unknown'}: name another"
            )


def _mask(wanted: SearchFilter, records: Records) -> np.ndarray:
    """bool [N]: which are wanted; none where no place of them is known."""
    if (wanted.near or wanted.box) and not np.isfinite(records.degrees).any():
        return np.zeros(len(records), bool)
    silent: dict[str, list[Value]] = {condition.column: [None] * len(records) for condition in wanted.where}
    return wanted.mask(replace(records, columns={**silent, **records.columns}))
