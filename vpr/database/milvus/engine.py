"""Milvus as a search engine: Milvus Lite in a file, or a server; the same code for both.

What is different is decided by what the server says of itself: Milvus Lite stores descriptors in float32 and has no
product quantisation; other servers store float16 where they take it. Upserts may be repeated, so that calls are, when
a server goes away. https://milvus.io/docs/limitations.md has the limits.
"""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.database import engine as contract
from vpr.database.engine_address import EngineAddress
from vpr.database.filters import SearchFilter
from vpr.database.milvus.collection import QUICK, Collection, opened
from vpr.database.milvus.connection import MilvusConnection
from vpr.database.milvus.rows import KnownRows, expression, records_of, rows_of
from vpr.database.milvus.search import DEEPEST, SPARE, Answer, Choose, Hits, asked, merged, nearest_wanted
from vpr.database.records import Records, record_id
from vpr.models.local_maps import QuantizedMap
from vpr.search.exact import measured

BATCH_BYTES = 32 << 20  # of an upsert; a call may have 64 MB
IDS = 4096  # that an expression names
UNIT = 0.01  # by which the squared length of a descriptor may differ from 1


def open_milvus(
    address: EngineAddress,
    collection: str,
    dim: int,
    provenance: dict[str, str],
    consistency: str = "Strong",
    index: str | None = None,
) -> "MilvusEngine":
    """Open a collection, or make it.

    Args:
        dim: of the descriptors.
        provenance: what makes the descriptors; empty takes what is there.
        consistency: of searches: Strong sees all that was added before, by whomever; Session what this process added;
            Bounded and Eventually may miss what was added a moment ago. Reading records is always Strong.
        index: of Milvus, one of INDEXES; None takes what is there, or FLAT, which is exact.

    Raises:
        UserError: it cannot be opened, or is another model's.
    """
    connection = MilvusConnection(address)
    try:
        return MilvusEngine(opened(connection, collection, dim, provenance, consistency, index))
    except BaseException:
        connection.close()
        raise


class MilvusEngine:
    """A collection of Milvus as `vpr.database.engine.Engine`. Local descriptors are not kept."""

    searches_sequences = False  # the order of images is not kept
    is_shared = True

    local, projection, measures = None, None, True

    def __init__(self, collection: Collection):
        """Read the collection's records, which are kept in memory: some hundred bytes an image.

        Raises:
            UserError: it cannot be read.
        """
        self.collection = collection
        self._known, self._lock = KnownRows(), threading.RLock()
        for page in collection.rows():
            self._known.put(*records_of(page))

    @property
    def name(self) -> str:
        """Server, index, type and consistency."""
        kept, version = self.collection, self.collection.connection.version
        return (
            f"milvus ({version}, collection {kept.name}, {kept.index}, {kept.dtype.name}, consistency "
            f"{kept.consistency})"
        )

    @property
    def records(self) -> Records:
        """By row; the name of a removed image is empty."""
        with self._lock:
            return self._known.records

    @property
    def provenance(self) -> dict[str, str]:
        """What made the descriptors; empty before the first are added."""
        return dict(self.collection.provenance) if self.count() else {}

    @property
    def approximate(self) -> str:
        """Milvus and its index, unless that compares all descriptors."""
        return "" if self.collection.index == "FLAT" else f"milvus {self.collection.index}"

    def count(self) -> int:
        """Images that this process knows of: those that were there when it began, those it added or found since."""
        with self._lock:
            return len(self._known.row_of)

    @property
    def row_of(self) -> Mapping[str, int]:
        """By name, the row of each image that it has."""
        return self._known.row_of

    @property
    def next_row(self) -> int:
        """The row that the next image to be added gets."""
        return len(self._known.names)

    def rows(self) -> np.ndarray:
        """int64: the rows of the images that it has."""
        with self._lock:
            return np.flatnonzero(self._known.alive)

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Those of some rows, read from Milvus, float16 [n, dim].

        Raises:
            UserError: an image is gone.
        """
        with self._lock:
            ids = [self._known.ids[row] for row in rows]
        found = self.collection.descriptors(ids)
        if missing := [self._known.names[row] for row, number in zip(rows, ids, strict=True) if number not in found]:
            raise UserError(f"{missing[0]} has been removed from {self.name} meanwhile: repeat the command")
        values = np.stack([found[number] for number in ids]) if ids else np.empty((0, self.collection.dim))
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
        step = max(1, BATCH_BYTES // (self.collection.dim * stored.itemsize + 256))
        with self._lock:
            self._known.refuse_collisions(records)
            self._known.refuse_other_zones(records)
            for start in range(0, len(records), step):
                part = slice(start, start + step)
                some = records.only(np.arange(len(records))[part])
                rows = rows_of(some, stored[part], squared[part])
                self._call("upsert", data=rows)
                self._known.put(some, squared[part])

    def remove(self, names: Sequence[str]) -> None:
        """Remove images; those that are not there are passed over."""
        with self._lock:
            ids = [number for number in map(record_id, names) if number in self._known.row_of_id]
            for start in range(0, len(ids), IDS):
                self._call("delete", ids=ids[start : start + IDS])
                self._known.forget(ids[start : start + IDS])

    def hasten(self) -> None:
        """Wait no longer for a server that is away, from now on: others wait for the one who asks."""
        self.collection.connection.is_patient = False

    def check(self) -> None:
        """Raise a UserError where nobody answers."""
        self._call("has_collection")

    def finish(self) -> None:
        """Have the server write what it holds in memory. Nothing depends on it: what was added is kept anyway."""
        self._call("flush")

    def close(self) -> None:
        """Let go of the server, or of the file."""
        self.collection.connection.close()

    def search(self, queries: torch.Tensor, count: int, wanted: SearchFilter | None = None) -> contract.Hits:
        """The nearest images; see `vpr.database.engine.Searchable`.

        Milvus compares by the inner product; a squared distance is |q|^2 + |x|^2 - 2 q.x, and the lengths are known:
        so descriptors that were rounded, to float16 say, have the order that FAISS finds. That difference of nearly
        equal numbers errs by more than small distances are: those that are told are of the descriptors themselves.
        """
        if count > DEEPEST - SPARE:
            raise UserError(f"found {count} hits a query, wanted at most {DEEPEST - SPARE}, which Milvus finds")
        values = queries.cpu().float().numpy().astype(self.collection.dtype)
        hits = self._filtered(values, count, wanted) if wanted else self._nearest(values, count, self._is_there, "")[0]
        rows = np.full((len(values), min(count, len(self._known.names))), -1, np.int64)
        for query, (found, _) in enumerate(hits):
            rows[query, : len(found)] = found
        return contract.Hits(*measured(self._stored, queries.cpu(), rows), self.records)

    def _stored(self, rows: np.ndarray) -> torch.Tensor:
        """Descriptors float32 [n, dim] of rows as they are stored; NaN, which is no hit's, where one went meanwhile."""
        with self._lock:
            ids = [self._known.ids[row] for row in rows]
        found, gone = self.collection.descriptors(ids), np.full(self.collection.dim, np.nan)
        values = np.array([found.get(number, gone) for number in ids], np.float32)
        return torch.from_numpy(values.reshape(len(ids), self.collection.dim))

    def _filtered(self, values: np.ndarray, count: int, wanted: SearchFilter) -> list[Hits]:
        """Few images are named by their ids; of many, Milvus finds more than are wanted, and we choose among them."""
        with self._lock:
            mask = wanted.mask(self._known.records) & self._known.alive
            ids = np.array(self._known.ids, np.int64)[mask]
        if len(ids) <= IDS:
            return self._named(values, count, ids)

        def chosen(rows: np.ndarray) -> np.ndarray:
            among = (rows >= 0) & (rows < len(mask))  # not those that others have added since
            return among & mask[np.where(among, rows, 0)]

        hits, left = self._nearest(values, count, chosen, expression(wanted))
        for query, found in zip(left, self._named(values[left], count, ids) if left else [], strict=True):
            hits[query] = found
        return hits

    def _named(self, values: np.ndarray, count: int, ids: np.ndarray) -> list[Hits]:
        """The nearest of some images."""
        parts = [
            self._nearest(values, count, self._is_there, f"id in {ids[start : start + IDS].tolist()}")[0]
            for start in range(0, len(ids), IDS)
        ]
        return [merged(list(lists), count) for lists in zip(*parts, strict=True)] if parts else []

    def _nearest(self, values: np.ndarray, count: int, allowed: Choose, text: str) -> tuple[list[Hits], list[int]]:
        def ask(some: np.ndarray, depth: int) -> list[Answer]:
            found = asked(self.collection, some, depth, text)
            self._learn({number for ids, _ in found for number in ids})
            with self._lock:
                row_of = self._known.row_of_id
                return [
                    (np.array([row_of.get(number, -1) for number in ids], np.int64), np.array(products, float))
                    for ids, products in found
                ]

        return nearest_wanted(ask, values, count, allowed, lambda: self._known.squared)

    def _is_there(self, rows: np.ndarray) -> np.ndarray:
        return rows >= 0

    def _learn(self, ids: set[int]) -> None:
        """Read the records of images that others have added since."""
        with self._lock:
            unknown = sorted(ids - self._known.row_of_id.keys())
            for start in range(0, len(unknown), IDS):
                rows = self.collection.rows_named(unknown[start : start + IDS])
                self._known.put(*records_of(rows))

    def _call(self, work: str, **arguments: object) -> None:
        """A method of the client on the collection."""
        name = self.collection.name
        self.collection.connection.call(lambda client: getattr(client, work)(name, **arguments, **QUICK))
