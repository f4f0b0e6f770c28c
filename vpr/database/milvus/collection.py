"""A collection of Milvus with descriptors of one model: made, opened, checked, read."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vpr.common.errors import UserError
from vpr.database.engine import Source
from vpr.database.milvus.connection import MilvusConnection, Refused
from vpr.database.milvus.rows import LONGEST_NAME, SCALARS, VECTOR, Key, Row, key_of, records_of
from vpr.database.records import Records, joined, no_records
from vpr.database.synchronise import in_parts

MOST_DIMENSIONS = 32_768
PROVENANCE = "netvlad.provenance"  # property of a collection, JSON
PAGE = 16_384  # rows of an answer, and hits of a query, that Milvus gives at most
CALL_BYTES = 32 << 20  # of descriptors in a call or an answer; 64 MB are possible
QUERIES, HITS = 256, 1 << 16  # of a call
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
ANOTHER = "name another with --collection"


class Collection:
    """A collection that is open."""

    def __init__(self, connection: MilvusConnection, source: Source, index: str | None):
        """Open a collection, or make it.
        `index`: one of INDEXES; None takes what is there, or FLAT, which is exact.
        Raises a UserError: it cannot be made, or is another's or another model's."""
        self.connection, self.name, self.dim = connection, source.collection, source.dim
        self._where = f"the collection {self.name} of Milvus at {connection.target}"
        self._refuse_impossible(index)
        if not self.call("has_collection"):
            self._make(source.provenance)
        found = self.call("describe_collection")
        fields = {field["name"]: field for field in found["fields"]}
        if missing := [field for field in ("id", VECTOR, *SCALARS) if field not in fields]:
            raise UserError(f"{self._where} is not one of ours (it has no field {missing[0]}): {ANOTHER}")
        if (stored := int(fields[VECTOR]["params"]["dim"])) != self.dim:
            raise UserError(f"{self._where} has {stored}-D descriptors, wanted {self.dim}-D: {ANOTHER}")
        is_half = fields[VECTOR]["type"].name == "FLOAT16_VECTOR"
        self.dtype = np.dtype(np.float16 if is_half else np.float32)  # in which descriptors are stored
        self.provenance = self._provenance_of(found, source.provenance)
        self.index = self._indexed(index)
        self.call("load_collection")

    def _refuse_impossible(self, index: str | None) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w{0,254}", self.name, re.ASCII):
            raise UserError(
                f"found the collection {self.name}, wanted letters, digits and _, a letter first: name it so"
            )
        if not 1 < self.dim <= MOST_DIMENSIONS:
            raise UserError(
                f"found {self.dim}-D descriptors, wanted at most {MOST_DIMENSIONS} dimensions, which Milvus takes: "
                "whiten them to fewer (--mode=whiten), or use --engine=faiss"
            )
        if index not in (None, *INDEXES):
            raise UserError(f"found the index {index}, wanted one of {', '.join(INDEXES)}")
        if index in ONLY_ON_SERVERS and self.connection.is_lite:
            raise UserError(
                f"found the index {index}, which Milvus Lite lacks: take HNSW or IVF_SQ8, or a Milvus server"
            )

    def _make(self, provenance: Mapping[str, str]) -> None:
        """Make it; float16 where the server takes it."""
        from pymilvus import DataType, MilvusClient

        text = json.dumps(dict(provenance))
        for kind in ["FLOAT_VECTOR"] if self.connection.is_lite else ["FLOAT16_VECTOR", "FLOAT_VECTOR"]:
            # In the description too: Milvus Lite forgets it, and a server may not keep properties it does not know.
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=text)
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field(VECTOR, DataType[kind], dim=self.dim)
            for field, scalar in SCALARS.items():
                schema.add_field(field, DataType[scalar], max_length=LONGEST_NAME)  # where it is text
            about = {"schema": schema, "consistency_level": "Strong", "properties": {PROVENANCE: text}}
            try:
                return self.call("create_collection", **about)
            except Refused:
                if self.call("has_collection"):
                    return None  # another process was faster
                if kind == "FLOAT_VECTOR":
                    raise

    def _provenance_of(self, found: Mapping[str, Any], wanted: Mapping[str, str]) -> dict[str, str]:
        """What made its descriptors; refuses those of another model."""
        try:
            text = found.get("properties", {}).get(PROVENANCE) or found.get("description")
            kept = {str(field): str(value) for field, value in json.loads(text or "").items()}
        except (ValueError, AttributeError):
            raise UserError(f"{self._where} does not say what made its descriptors: {ANOTHER}") from None
        for field in sorted({*kept, *wanted}) if wanted else ():
            if (there := kept.get(field)) != (here := wanted.get(field)):
                raise UserError(f"{self._where} was made by another model ({field}={there}, wanted {here}): {ANOTHER}")
        return kept

    def _indexed(self, wanted: str | None) -> str:
        """The name of its index, which is made where there is none.

        A collection of Milvus Lite without an index is searched exactly, and takes half of the memory and half of the
        disk that its FLAT index takes.
        """
        for there in self.call("list_indexes", field_name=VECTOR):
            kind = str(self.call("describe_index", index_name=there)["index_type"])
            if wanted not in (None, kind):
                raise UserError(f"{self._where} has the index {kind}, wanted {wanted}: drop that wish, or {ANOTHER}")
            return kind
        wanted = wanted or "FLAT"
        if not (self.connection.is_lite and wanted == "FLAT"):
            from pymilvus import MilvusClient

            parameters = MilvusClient.prepare_index_params()
            parameters.add_index(VECTOR, index_type=wanted, metric_type="IP", params=INDEXES[wanted][0])
            self.call("create_index", index_params=parameters)
        return wanted

    def records(self, wanted: str = "") -> Records:
        """All images that fulfil an expression."""
        about = {"filter": wanted, "output_fields": [*SCALARS], "consistency_level": "Strong", "retry_times": 0}

        def read(client: Any) -> list[Records]:
            return [records_of(page) for page in iter(client.query_iterator(self.name, PAGE, **about).next, [])]

        return joined(no_records(), *self.connection.call(read))

    def descriptors(self, keys: Sequence[Key]) -> np.ndarray:
        """Those of some images [n, dim], as they are stored; NaN where one was removed or replaced meanwhile."""
        found = {}
        for some in in_parts(list(keys), min(PAGE, max(1, CALL_BYTES // (self.dim * self.dtype.itemsize)))):
            ids = [number for number, _ in some]
            for row in self.query(f"id in {ids}", ["id", "hash", VECTOR], limit=len(ids)):
                value = row[VECTOR]  # numbers, or the bytes of halves, perhaps in a list
                value = value[0] if isinstance(value, list) and value and isinstance(value[0], bytes) else value
                read = np.frombuffer if isinstance(value, bytes) else np.asarray
                found[key_of(row)] = read(value, self.dtype)
        gone = np.full(self.dim, np.nan, self.dtype)
        return np.array([found.get(key, gone) for key in keys], self.dtype).reshape(len(keys), self.dim)

    def nearest(self, values: np.ndarray, depth: int, wanted: str = "") -> list[list[Row]]:
        """By query of [M, dim], the rows with the `depth` greatest inner products, greatest first.
        `wanted`: an expression that they fulfil, and then all that do are looked at, since few of them may lie where an
        index would look; empty: all."""
        parameters = {name: max(value, depth) if name in ("ef", "search_list") else value
                      for name, value in INDEXES.get(self.index, ({},) * 3)[2 if wanted else 1].items()}  # fmt: skip
        found: list[list[Row]] = []
        step = max(1, min(QUERIES, HITS // depth, CALL_BYTES // (values.itemsize * self.dim)))
        for some in in_parts(list(values), step):
            hits = self.call(
                "search", data=some, anns_field=VECTOR, limit=depth, filter=wanted, output_fields=[*SCALARS],
                search_params={"metric_type": "IP", "params": parameters}, consistency_level="Strong",
            )  # fmt: skip
            found += [[{"id": hit["id"], "distance": hit["distance"], **hit["entity"]} for hit in row] for row in hits]
        return found

    def query(self, wanted: str, fields: list[str], **limit: int) -> list[Row]:
        """The rows that fulfil an expression."""
        return list(self.call("query", filter=wanted, output_fields=fields, consistency_level="Strong", **limit))

    def call(self, work: str, **arguments: Any) -> Any:
        """A method of the client on this collection."""
        return self.connection.call(work, self.name, **arguments)
