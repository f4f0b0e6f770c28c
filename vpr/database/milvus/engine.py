"""Milvus as a search engine: Milvus Lite in a file, or a server; the same code for both.

What is different is decided by what the server says of itself: Milvus Lite stores descriptors in float32 and has no
product quantisation; other servers store float16 where they take it. Upserts may be repeated, so that calls are, when
a server goes away. https://milvus.io/docs/limitations.md has the limits.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.data.frames import Frames
from vpr.database.engine import Hits, Source, WantedIndex
from vpr.database.filters import SearchFilter
from vpr.database.milvus.collection import CALL_BYTES, PAGE, Collection, opened
from vpr.database.milvus.connection import MilvusConnection
from vpr.database.milvus.rows import UNKNOWN_METRES, Key, Row, exists, expression, keys_of, records_of, rows_of
from vpr.database.records import Records, Value, joined, no_records, record_id
from vpr.descriptors.local_maps import QuantizedMap
from vpr.models.local_projection import LocalProjection
from vpr.search.exact import measured
from vpr.search.sequences import SequenceRule

SPARE = 8  # hits more than wanted, among which the nearest are chosen by their exact distances
IDS = 4096  # that an expression names
METRES = f"easting > {UNKNOWN_METRES}"  # of images whose position is known


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
    hits come with them. Rows are those of `records` as they were last read, and of what this process added since. A
    server reads records once, and keeps them in step with what it adds and removes itself.
    """

    searches_sequences = keeps_local = edited = by_hand = False
    is_shared = measures = True
    local, projection, lacking = None, None, no_records()

    def __init__(self, collection: Collection):
        self.collection, self._lock = collection, threading.RLock()
        self._row_of: dict[str, int] | None = None  # of `records` as last read; None: never
        self._keys: list[Key] = []  # by row
        self._serves, self._kept = False, no_records()  # whether it keeps records, and these
        self._zone: str | None = None  # of metres that it has
        self._found = set[str]()  # expressions that some image was seen to fulfil

    @property
    def name(self) -> str:
        kept, version = self.collection, self.collection.connection.version
        return f"milvus ({version}, collection {kept.name}, {kept.index}, {kept.dtype.name}, consistency Strong)"

    @property
    def records(self) -> Records:
        with self._lock:
            if not (self._serves and self._row_of is not None):
                self._kept = self.collection.records()
                self._row_of, self._keys = self._kept.row_of.copy(), keys_of(self._kept)
            return self._kept

    @property
    def provenance(self) -> dict[str, str]:
        return dict(self.collection.provenance) if self.count() else {}

    @property
    def approximate(self) -> str:
        return "" if self.collection.index == "FLAT" else f"milvus {self.collection.index}"

    def count(self) -> int:
        return int(self.collection.query("", ["count(*)"])[0]["count(*)"])

    @property
    def row_of(self) -> dict[str, int]:
        with self._lock:
            if self._row_of is None:
                _ = self.records  # reads them
            return self._row_of or {}

    @property
    def next_row(self) -> int:
        _ = self.row_of
        return len(self._keys)

    def rows(self) -> np.ndarray:
        with self._lock:
            return np.sort(np.fromiter(self.row_of.values(), np.int64))

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        with self._lock:
            row_of = self.row_of
            values = self.collection.descriptors([self._keys[row] for row in rows])
        for lost in np.flatnonzero(np.isnan(values[:, 0])).tolist():
            name = next((name for name, row in row_of.items() if row == rows[lost]), "an image")
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
        step = max(1, min(IDS, CALL_BYTES // (self.collection.dim * self.collection.dtype.itemsize + 256)))
        rows = rows_of(records, values.astype(self.collection.dtype))
        with self._lock:
            self._refuse(records)
            for start in range(0, len(rows), step):
                self.collection.call("upsert", data=rows[start : start + step])
                some = records.only(np.arange(start, min(start + step, len(rows))))
                self._follow(some.names, some)

    def remove(self, names: Sequence[str]) -> None:
        with self._lock:
            for start in range(0, len(names), IDS):
                some = names[start : start + IDS]
                self.collection.call("delete", ids=[record_id(name) for name in some])
                self._follow(some, no_records())

    def _follow(self, gone: Sequence[str], added: Records) -> None:
        """Rows and records, where they are known, as this process has changed them."""
        if self._row_of is None:
            return
        rows = [row for name in gone if (row := self._row_of.pop(name, None)) is not None]
        self._row_of.update(zip(added.names, range(len(self._keys), len(self._keys) + len(added)), strict=True))
        self._keys += keys_of(added)
        if self._serves:
            names = list(self._kept.names)
            for row in rows:
                names[row] = ""
            self._kept = joined(replace(self._kept, names=names), added)

    def begin(self, projection: LocalProjection | None) -> None:
        """No local descriptors are kept."""

    def set_zone(self, zone: str) -> None:
        """Each image keeps the zone with which it was added."""

    def prepare_to_serve(self, writable: bool) -> None:
        """Wait no longer for a server that is away, from now on: others wait for the one who asks."""
        self._serves, self._row_of = True, None
        self.collection.connection.is_patient = False

    def check(self) -> None:
        self.collection.call("has_collection")

    def finish(self, order: Sequence[str] | None = None) -> None:
        """Have the server write what it holds in memory. Nothing depends on it: what was added is kept anyway."""
        self.collection.call("flush")

    def close(self) -> None:
        self.collection.connection.close()

    def search_in_order(
        self, queries: torch.Tensor, count: int, sequences: tuple[Frames, Frames], rule: SequenceRule
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        raise UserError("--sequence searches whole sequences by --engine=faiss: drop --engine")

    def search(self, queries: torch.Tensor, count: int, wanted: SearchFilter | None = None) -> Hits:
        """The nearest images; see `vpr.database.engine.Searchable`.

        Milvus compares by the inner product: of descriptors whose lengths rounding to float16 has changed a little,
        nearly equal ones may change places. Some more than wanted are found, and those told that are nearest by the
        distances of the descriptors themselves.
        """
        if count > (most := PAGE - SPARE):
            raise UserError(f"found {count} hits a query, wanted at most {most}, which Milvus finds")
        hits = self._nearest(queries.cpu().float().numpy().astype(self.collection.dtype), count + SPARE, wanted)
        unique = {(row["name"], row["hash"]): row for found in hits for row in found}
        number = {key: row for row, key in enumerate(unique)}
        rows = np.full((len(hits), count + SPARE), -1, np.int64)
        for query, found in enumerate(hits):
            rows[query, : len(found)] = [number[row["name"], row["hash"]] for row in found]
        width = count if (rows[:, count - 1 : count] >= 0).all() else min(count, self.count())
        records = records_of(list(unique.values()))
        keys = keys_of(records)

        def stored(some: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(self.collection.descriptors([keys[row] for row in some]))

        rows, distances = measured(stored, queries.cpu(), rows)
        return Hits(rows[:, :width], distances[:, :width], records)

    def _nearest(self, values: np.ndarray, count: int, wanted: SearchFilter | None) -> list[list[Row]]:
        """By query, the nearest rows that are wanted: Milvus is asked deeper and deeper until they are enough."""
        if not wanted:
            return self.collection.nearest(values, min(count, PAGE), "")
        self._require_sense(wanted)
        text, hits = expression(wanted), list[list[Row]]([[]] * len(values))
        pending, depth = list(range(len(values))), count
        while pending and depth < PAGE:
            depth, asked = min(2 * depth, PAGE), pending
            pending = []
            for query, found in zip(asked, self.collection.nearest(values[asked], depth, text), strict=True):
                mask = _mask(wanted, records_of(found))
                hits[query] = [row for row, is_wanted in zip(found, mask, strict=True) if is_wanted][:count]
                if len(found) == depth and len(hits[query]) < count:
                    pending.append(query)
        if pending:  # very few of those that the server cannot tell apart: they are named
            among = self.collection.records(text)
            ids = among.ids[_mask(wanted, among)].tolist()
            named = [
                self.collection.nearest(values[pending], min(count, IDS), f"id in {ids[start : start + IDS]}")
                for start in range(0, len(ids), IDS)
            ]
            for query, *parts in zip(pending, *named, strict=True):
                hits[query] = sorted(chain(*parts), key=lambda row: -row["distance"])[:count]
        return hits

    def _require_sense(self, wanted: SearchFilter) -> None:
        """Raise a UserError where no image has the columns that are compared, or no position on earth is known."""
        for text in exists(wanted):
            if text not in self._found:
                if not self.collection.query(text, ["id"], limit=1):
                    wanted.mask(self.collection.records())
                    return
                self._found.add(text)

    def _refuse(self, records: Records) -> None:
        """Raise a UserError where metres would be of two UTM zones, or two names have one id."""
        own, unknown = records.zone or "", "unknown"
        if np.isfinite(records.positions).any():
            if self._zone is None:
                self._zone = next((row["zone"] for row in self.collection.query(METRES, ["zone"], limit=1)), None)
            if self._zone not in (None, own):
                raise UserError(
                    f"the images' UTM zone is {own or unknown}, the collection's {self._zone or unknown}: name another"
                )
        names, ids = dict[int, str](), records.ids.tolist()
        for start in range(0, len(ids), IDS):
            found = self.collection.query(f"id in {ids[start : start + IDS]}", ["id", "name"], limit=IDS)
            names.update((row["id"], row["name"]) for row in found)
        for number, name in zip(ids, records.names, strict=True):
            if names.setdefault(number, name) != name:
                raise UserError(f"{name} has the id {number} of {names[number]}: rename one of the two images")


def _mask(wanted: SearchFilter, records: Records) -> np.ndarray:
    """bool [N]: which are wanted; none where no position is known."""
    if (wanted.near or wanted.box) and not np.isfinite(records.degrees).any():
        return np.zeros(len(records), bool)
    silent: dict[str, list[Value]] = {condition.column: [None] * len(records) for condition in wanted.where}
    return wanted.mask(replace(records, columns={**silent, **records.columns}))
