"""A collection of Milvus with descriptors of one model: made, opened, checked, read."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vpr.common.errors import UserError
from vpr.database.milvus.connection import QUICK, MilvusConnection, Refused
from vpr.database.milvus.rows import LONGEST_NAME, SCALARS, VECTOR, Key, records_of
from vpr.database.records import Records, joined, no_records

MOST_DIMENSIONS = 32_768
PROVENANCE = "netvlad.provenance"  # property of a collection, JSON
STRONG = {"consistency_level": "Strong", **QUICK}  # all that was written before is seen, by whomever
PAGE = 16_384  # rows of an answer, and hits of a query, that Milvus gives at most
CALL_BYTES = 32 << 20  # of descriptors in a call or an answer; 64 MB are possible
QUERIES, HITS = 256, 1 << 16  # of a call
IDS = 4096  # that an expression names
Row = Mapping[str, Any]  # a row's fields; as a hit it has its `distance` too, which is the inner product
# By name: parameters of building, of searching, and of searching among some images, all of which are looked at.
INDEXES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "FLAT": ({}, {}, {}),
    "HNSW": ({"M": 32, "efConstruction": 200}, {"ef": 128}, {"ef": 4096}),
    "IVF_FLAT": ({"nlist": 1024}, {"nprobe": 64}, {"nprobe": 1024}),
    "IVF_SQ8": ({"nlist": 1024}, {"nprobe": 64}, {"nprobe": 1024}),
    "IVF_PQ": ({"nlist": 1024, "m": 64, "nbits": 8}, {"nprobe": 64}, {"nprobe": 1024}),
    "DISKANN": ({}, {"search_list": 100}, {"search_list": 4096}),
    "AUTOINDEX": ({}, {}, {}),
}
ONLY_ON_SERVERS = ("IVF_PQ", "DISKANN")


@dataclass(frozen=True)
class Collection:
    """A collection that is open.

    Attributes:
        dtype: in which descriptors are stored, float16 or float32.
        index: one of INDEXES.
        provenance: what made the descriptors.
    """

    connection: MilvusConnection
    name: str
    dim: int
    dtype: np.dtype
    index: str
    provenance: dict[str, str]

    def count(self) -> int:
        """How many images it has."""
        return int(self.query("", ["count(*)"], None)[0]["count(*)"])

    def records(self, wanted: str = "") -> Records:
        """All images that fulfil an expression."""

        def read(client: Any) -> list[Records]:
            pages = client.query_iterator(self.name, batch_size=PAGE, filter=wanted, output_fields=[*SCALARS], **STRONG)
            try:
                return [records_of(page) for page in iter(pages.next, [])]
            finally:
                pages.close()

        return joined(*(self.connection.call(read) or [no_records()]))

    def descriptors(self, keys: Sequence[Key]) -> np.ndarray:
        """Those of some images [n, dim], as they are stored; NaN where one was removed or replaced meanwhile."""
        step = min(PAGE, max(1, CALL_BYTES // (self.dim * self.dtype.itemsize)))
        values = np.full((len(keys), self.dim), np.nan, self.dtype)
        for start in range(0, len(keys), step):
            some = [number for number, _ in keys[start : start + step]]
            found = self.query(f"id in {some}", ["id", "hash", VECTOR], step)
            there = {(row["id"], row["hash"]): row[VECTOR] for row in found}
            for place, key in enumerate(keys[start : start + step], start):
                if key in there:
                    values[place] = _vector(there[key], self.dtype)
        return values

    def nearest(self, values: np.ndarray, depth: int, wanted: str) -> list[list[Row]]:
        """By query of [M, dim], the rows with the `depth` greatest inner products, greatest first.

        Args:
            wanted: an expression that they fulfil, and then all that do are looked at, since few of them may lie where
                an index would look; empty: all.
        """
        usual, thorough = INDEXES.get(self.index, ({}, {}, {}))[1:]
        parameters = {name: max(value, depth) if name in ("ef", "search_list") else value
                      for name, value in (thorough if wanted else usual).items()}  # fmt: skip
        step = max(1, min(QUERIES, HITS // depth, CALL_BYTES // (values.itemsize * self.dim)))
        found: list[list[Row]] = []
        for start in range(0, len(values), step):
            hits = self.call(
                "search", data=list(values[start : start + step]), anns_field=VECTOR, limit=depth, filter=wanted,
                output_fields=[*SCALARS], search_params={"metric_type": "IP", "params": parameters}, **STRONG,
            )  # fmt: skip
            found += [[{"distance": hit["distance"], **hit["entity"]} for hit in row] for row in hits]
        return found

    def query(self, wanted: str, fields: list[str], limit: int | None) -> list[Row]:
        """The rows that fulfil an expression."""
        most = {} if limit is None else {"limit": limit}
        return list(self.call("query", filter=wanted, output_fields=fields, **most, **STRONG))

    def call(self, work: str, **arguments: Any) -> Any:
        """A method of the client on this collection."""
        return self.connection.call(lambda client: getattr(client, work)(self.name, **arguments))


def _vector(value: Any, dtype: np.dtype) -> np.ndarray:
    """A descriptor as pymilvus gives it: numbers, or the bytes of halves."""
    value = value[0] if isinstance(value, list) and value and isinstance(value[0], bytes) else value
    return np.frombuffer(value, dtype) if isinstance(value, bytes) else np.asarray(value, dtype)


def opened(
    connection: MilvusConnection,
    name: str,
    dim: int,
    provenance: Mapping[str, str],
    index: str | None,
) -> Collection:
    """Open a collection, or make it.

    Raises:
        UserError: it cannot be made, or is another's or another model's.
    """
    _check_wishes(connection, name, dim, index)
    if not connection.call(lambda client: client.has_collection(name, **QUICK)):
        _make(connection, name, dim, provenance)
    found = connection.call(lambda client: client.describe_collection(name, **QUICK))
    dtype = _check_fields(connection, name, dim, found)
    kept = _check_provenance(connection, name, found, provenance)
    index = _with_index(connection, name, index)
    connection.call(lambda client: client.load_collection(name, **QUICK))
    return Collection(connection, name, dim, dtype, index, kept)


def _check_wishes(connection: MilvusConnection, name: str, dim: int, index: str | None) -> None:
    if not re.fullmatch(r"[A-Za-z_]\w{0,254}", name, re.ASCII):
        raise UserError(f"found the collection {name}, wanted letters, digits and _, a letter first: name it so")
    if not 1 < dim <= MOST_DIMENSIONS:
        raise UserError(
            f"found {dim}-D descriptors, wanted at most {MOST_DIMENSIONS} dimensions, which Milvus takes: whiten them "
            "to fewer (--mode=whiten), or use --engine=faiss"
        )
    if index not in (None, *INDEXES):
        raise UserError(f"found the index {index}, wanted one of {', '.join(INDEXES)}")
    if index in ONLY_ON_SERVERS and connection.is_lite:
        raise UserError(f"found the index {index}, which Milvus Lite lacks: take HNSW or IVF_SQ8, or a Milvus server")


def _make(connection: MilvusConnection, name: str, dim: int, provenance: Mapping[str, str]) -> None:
    """Make a collection; float16 where the server takes it."""
    try:
        _make_of(connection, name, dim, provenance, half=not connection.is_lite)
    except Refused:
        if connection.call(lambda client: client.has_collection(name, **QUICK)):
            return  # another process was faster
        if connection.is_lite:
            raise
        _make_of(connection, name, dim, provenance, half=False)


def _make_of(connection: MilvusConnection, name: str, dim: int, provenance: Mapping[str, str], half: bool) -> None:
    from pymilvus import DataType, MilvusClient

    text = json.dumps(dict(provenance))
    # In the description too: Milvus Lite forgets it, and a server may not keep properties it does not know.
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=text)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field(VECTOR, DataType.FLOAT16_VECTOR if half else DataType.FLOAT_VECTOR, dim=dim)
    for field, kind in SCALARS.items():
        schema.add_field(field, DataType[kind], **({"max_length": LONGEST_NAME} if kind == "VARCHAR" else {}))
    connection.call(
        lambda client: client.create_collection(
            name, schema=schema, consistency_level="Strong", properties={PROVENANCE: text}, **QUICK
        )
    )


def _check_fields(connection: MilvusConnection, name: str, dim: int, found: Mapping[str, Any]) -> np.dtype:
    """The type of a collection's descriptors; refuses what is not ours or of other dimensions."""
    fields = {field["name"]: field for field in found["fields"]}
    where = f"the collection {name} of Milvus at {connection.target}"
    missing = [field for field in ("id", VECTOR, *SCALARS) if field not in fields]
    if missing:
        raise UserError(f"{where} is not one of ours (it has no field {missing[0]}): name another with --collection")
    stored = int(fields[VECTOR]["params"]["dim"])
    if stored != dim:
        raise UserError(f"{where} has {stored}-D descriptors, wanted {dim}-D: name another with --collection")
    return np.dtype(np.float16 if fields[VECTOR]["type"].name == "FLOAT16_VECTOR" else np.float32)


def _check_provenance(
    connection: MilvusConnection, name: str, found: Mapping[str, Any], wanted: Mapping[str, str]
) -> dict[str, str]:
    """What made the descriptors of a collection; refuses those of another model."""
    text = found.get("properties", {}).get(PROVENANCE) or found.get("description")
    where = f"the collection {name} of Milvus at {connection.target}"
    try:
        kept = json.loads(text or "")
        kept = {str(field): str(value) for field, value in kept.items()}
    except (ValueError, AttributeError):
        raise UserError(f"{where} does not say what made its descriptors: name another with --collection") from None
    for field in sorted({*kept, *wanted}) if wanted else ():
        if kept.get(field) != wanted.get(field):
            raise UserError(
                f"{where} was made by another model ({field}={kept.get(field)}, wanted {wanted.get(field)}): name "
                "another with --collection"
            )
    return kept


def _with_index(connection: MilvusConnection, name: str, wanted: str | None) -> str:
    """The name of a collection's index, which is made where there is none.

    A collection of Milvus Lite without an index is searched exactly, and takes half of the memory and half of the disk
    that its FLAT index takes.
    """
    there = connection.call(lambda client: client.list_indexes(name, field_name=VECTOR, **QUICK))
    if there:
        kind = connection.call(lambda client: client.describe_index(name, there[0], **QUICK))["index_type"]
        if wanted and kind != wanted:
            raise UserError(
                f"the collection {name} of Milvus at {connection.target} has the index {kind}, wanted {wanted}: drop "
                "that wish, or name another with --collection"
            )
        return str(kind)
    wanted = wanted or "FLAT"
    if connection.is_lite and wanted == "FLAT":
        return wanted
    build, _, _ = INDEXES[wanted]

    def make(client: Any) -> None:
        parameters = client.prepare_index_params()
        parameters.add_index(VECTOR, index_type=wanted, metric_type="IP", params=build)
        client.create_index(name, parameters, **QUICK)

    connection.call(make)
    return wanted
