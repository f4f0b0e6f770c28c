"""Milvus as a search engine: Milvus Lite in a file, or a server; the same code for both.

What is different is decided by what the server says of itself: Milvus Lite stores descriptors in float32 and has no
product quantisation; other servers store float16 where they take it. Upserts may be repeated, so that calls are, when
a server goes away. https://milvus.io/docs/limitations.md has the limits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from itertools import chain
from operator import itemgetter

import numpy as np

from vpr.common.errors import UserError
from vpr.database.engine import Hits, Source, WantedIndex
from vpr.database.filters import SearchFilter
from vpr.database.milvus.collection import CALL_BYTES, PAGE, Collection
from vpr.database.milvus.connection import MilvusConnection
from vpr.database.milvus.rows import UNKNOWN_METRES, KnownImages, Row, exists, expression, key_of, records_of, rows_of
from vpr.database.records import Records, Value, no_records, record_id
from vpr.database.synchronise import in_parts
from vpr.descriptors.local_maps import QuantizedMap
from vpr.search.exact import measured

SPARE = 8  # hits more than wanted, among which the nearest are chosen by their exact distances
IDS = 4096  # that an expression names
METRES = f"easting > {UNKNOWN_METRES}"  # of images whose position is known


def open_engine(source: Source, wanted: WantedIndex, anew: bool = False) -> "MilvusEngine":
    """Open a collection, or make it.
    Raises a UserError: it cannot be opened, or is another model's.

    Args:
        wanted: its factory is one of INDEXES; None takes what is there, or FLAT, which is exact.
        anew: it will be brought to a folder, maybe by several processes, which read what is there before the first adds
            to it. A collection of another model may be of others, and is refused.
    """
    connection = MilvusConnection(source.target)
    try:
        engine = MilvusEngine(Collection(connection, source, wanted.factory))
        if anew:
            engine.rows()
        return engine
    except BaseException:
        connection.close()
        raise


class MilvusEngine:
    """A collection of Milvus as `vpr.database.engine.Engine`. Local descriptors and the order of images are not kept.

    Others write the collection too, and it does not say when. Its images are read once, when they are first asked for,
    and from then on kept in step with what this process adds and removes; those of hits come with them.
    """

    searches_sequences = keeps_local = edited = by_hand = False
    is_shared = measures = True
    local, projection, lacking = None, None, no_records()

    def __init__(self, collection: Collection):
        self.collection = collection
        self._images: KnownImages | None = None
        self._zone: str | None = None  # of metres that it has

    @property
    def name(self) -> str:
        kept, version = self.collection, self.collection.connection.version
        return f"milvus ({version}, collection {kept.name}, {kept.index}, {kept.dtype.name}, consistency Strong)"

    @property
    def provenance(self) -> dict[str, str]:
        return dict(self.collection.provenance) if self.count() else {}

    @property
    def approximate(self) -> str:
        return "" if self.collection.index == "FLAT" else f"milvus {self.collection.index}"

    def count(self) -> int:
        return int(self.collection.query("", ["count(*)"])[0]["count(*)"])

    def _known(self) -> KnownImages:
        self._images = self._images or KnownImages(self.collection.records())
        return self._images

    @property
    def records(self) -> Records:
        return self._known().records

    @property
    def row_of(self) -> Mapping[str, int]:
        return self._known().row_of

    @property
    def next_row(self) -> int:
        return len(self._known().keys)

    def rows(self) -> np.ndarray:
        return np.sort(np.fromiter(self.row_of.values(), np.int64))

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        keys = self._known().keys
        values = self.collection.descriptors([keys[row] for row in rows])
        if (lost := np.isnan(values[:, 0])).any():
            name = self.records.names[rows[int(lost.argmax())]] or "an image"
            raise UserError(f"{name} has been removed from {self.name} meanwhile: repeat the command")
        return values.astype(np.float16)

    def add(self, records: Records, descriptors: np.ndarray, local: Sequence[QuantizedMap] | None = None) -> None:
        """Upsert images, batch by batch; each is there whole, with its descriptor, size, time and hash, or not at all.
        Raises a UserError: two names have one id, the descriptors are not of length 1, or Milvus refuses or is gone."""
        dim, dtype = self.collection.dim, self.collection.dtype
        values = descriptors.astype(np.float16).astype(dtype)  # rounded as every engine keeps them
        if values.shape != (len(records), dim):
            raise UserError(f"found descriptors {values.shape}, wanted {(len(records), dim)}")
        rows, step = rows_of(records, values), max(1, min(IDS, CALL_BYTES // (dim * dtype.itemsize + 256)))
        self._refuse(records)
        for some in in_parts(list(range(len(rows))), step):
            self.collection.call("upsert", data=[rows[row] for row in some])
            if self._images:
                self._images.change([], records.only(some))

    def remove(self, names: Sequence[str]) -> None:
        for some in in_parts(list(names), IDS):
            self.collection.call("delete", ids=[record_id(name) for name in some])
            if self._images:
                self._images.change(some, no_records())

    def set_zone(self, zone: str) -> None:
        """Each image keeps the zone with which it was added."""

    def prepare_to_serve(self, writable: bool) -> None:
        """Wait no longer for a server that is away, from now on: others wait for the one who asks."""
        self.collection.connection.is_patient = False

    def check(self) -> None:
        self.collection.call("has_collection")

    def finish(self, order: Sequence[str] | None = None) -> None:
        """Have the server write what it holds in memory. Nothing depends on it: what was added is kept anyway."""
        self.collection.call("flush")

    def close(self) -> None:
        self.collection.connection.close()

    def search(self, queries: np.ndarray, count: int, wanted: SearchFilter | None = None) -> Hits:
        """The nearest images; see `vpr.database.engine.Searchable`.

        Milvus compares by the inner product: of descriptors whose lengths rounding to float16 has changed a little,
        nearly equal ones may change places. Some more than wanted are found, and those told that are nearest by the
        distances of the descriptors themselves.
        """
        if count > (most := PAGE - SPARE):
            raise UserError(f"found {count} hits a query, wanted at most {most}, which Milvus finds")
        values, depth = queries.astype(self.collection.dtype), count + SPARE
        hits = self._filtered(values, depth, wanted) if wanted else self.collection.nearest(values, depth)
        images = {key_of(row): row for found in hits for row in found}
        keys, number = list(images), {key: row for row, key in enumerate(images)}
        rows = np.full((len(hits), depth), -1, np.int64)
        for query, found in enumerate(hits):
            rows[query, : len(found)] = [number[key_of(row)] for row in found]
        width = count if (rows[:, count - 1 : count] >= 0).all() else min(count, self.count())
        rows, distances = measured(lambda some: self.collection.descriptors([keys[row] for row in some]), queries, rows)
        return Hits(rows[:, :width], distances[:, :width], records_of(list(images.values())))

    def _filtered(self, values: np.ndarray, count: int, wanted: SearchFilter) -> list[list[Row]]:
        """By query of [M, dim], the nearest `count` rows that are wanted.

        The server knows the filter as an expression, which more images may fulfil: it is asked deeper and deeper until
        enough are wanted, and where too few are, for those by their ids.
        """
        text, depth = expression(wanted), count
        while depth < PAGE:
            depth = min(2 * depth, PAGE)
            found = self.collection.nearest(values, depth, text)
            hits = [[rows[row] for row in _chosen(wanted, records_of(rows))[:count]] for rows in found]
            if all(len(rows) < depth or len(some) == count for rows, some in zip(found, hits, strict=True)):
                break
        else:
            among = self.collection.records(text)
            parts = in_parts(among.ids[_chosen(wanted, among)].tolist(), IDS)
            named = [self.collection.nearest(values, min(count, IDS), f"id in {ids}") for ids in parts]
            hits = [
                nlargest(count, chain(*(found[query] for found in named)), key=itemgetter("distance"))
                for query in range(len(values))
            ]
        if not any(hits) and not all(self.collection.query(each, ["id"], limit=1) for each in exists(wanted)):
            wanted.mask(self.collection.records())  # says which column no image has, or that no place is known
        return hits

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
        for some in in_parts(ids, IDS):
            found = self.collection.query(f"id in {some}", ["id", "name"], limit=IDS)
            names.update((row["id"], row["name"]) for row in found)
        for number, name in zip(ids, records.names, strict=True):
            if names.setdefault(number, name) != name:
                raise UserError(f"{name} has the id {number} of {names[number]}: rename one of the two images")


def _chosen(wanted: SearchFilter, records: Records) -> np.ndarray:
    """The rows that are wanted; a column that none of them has is silent."""
    silent: dict[str, list[Value]] = {condition.column: [None] * len(records) for condition in wanted.where}
    return np.flatnonzero(wanted.mask(replace(records, columns={**silent, **records.columns})))
