"""Images of an index as rows of a Milvus collection, by which a process knows them, and filters as expressions."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vpr.common.errors import UserError
from vpr.database.filters import SearchFilter
from vpr.database.records import Records, Value, joined, no_records

# Milvus stores no NaN. No point on earth has these; no box of degrees holds the second.
UNKNOWN_METRES, UNKNOWN_DEGREES = -1e9, 1000.0
LONGEST_NAME = 8192  # characters of a name or folder
VECTOR = "descriptor"
SCALARS = {
    "name": "VARCHAR", "folder": "VARCHAR", "hash": "VARCHAR", "zone": "VARCHAR",
    "latitude": "DOUBLE", "longitude": "DOUBLE", "easting": "DOUBLE", "northing": "DOUBLE",
    "size": "INT64", "modified": "INT64", "columns": "JSON",
    "squared_length": "DOUBLE",  # which earlier versions read
}  # fmt: skip
Row = Mapping[str, Any]  # a row's fields; as a hit it has its `distance` too, which is the inner product
Key = tuple[int, str]  # of an image its id and the SHA-256 of its file, which together have one descriptor
UNIT = 0.01  # by which the squared length of a descriptor may differ from 1
MARGIN = 1e-7  # degrees, a centimetre: a box may hold more than is wanted, never less


def rows_of(records: Records, vectors: np.ndarray) -> list[dict[str, Any]]:
    """Rows of a collection, of descriptors [n, dim] in the type in which they are stored.
    Raises a UserError: a name cannot be stored, or a descriptor is not of length 1."""
    squared = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    if not (np.abs(squared - 1) <= UNIT).all():
        raise UserError("found a descriptor that is not of length 1: describe the images with a sound model")
    metres = np.where(np.isfinite(records.positions), records.positions, UNKNOWN_METRES).tolist()
    degrees = np.where(np.isfinite(records.degrees), records.degrees, UNKNOWN_DEGREES).tolist()
    return [
        {
            "id": number, VECTOR: vectors[row], "hash": content, "zone": records.zone or "",
            "name": _text(records.names[row]), "folder": _text(records.folders[row]),
            "latitude": degrees[row][0], "longitude": degrees[row][1],
            "easting": metres[row][0], "northing": metres[row][1],
            "size": int(records.sizes[row]), "modified": int(records.modified[row]),
            "squared_length": float(squared[row]),
            "columns": {name: _number(values[row]) for name, values in records.columns.items()},
        }
        for row, (number, content) in enumerate(keys_of(records))
    ]  # fmt: skip


def records_of(rows: Sequence[Row]) -> Records:
    """Records of rows that were read from a collection."""
    if not rows:
        return no_records()
    positions = np.array([[row["easting"], row["northing"]] for row in rows], float)
    names = dict.fromkeys(name for row in rows for name in row["columns"])
    return Records(
        names=[row["name"] for row in rows],
        positions=np.where(positions == UNKNOWN_METRES, np.nan, positions),
        zone=next((row["zone"] for row in rows if row["zone"]), None),
        sizes=np.array([row["size"] for row in rows], np.int64),
        modified=np.array([row["modified"] for row in rows], np.int64),
        hashes=np.frombuffer(bytes.fromhex("".join(row["hash"] for row in rows)), np.uint8).reshape(-1, 32),
        folders=[row["folder"] for row in rows],
        columns={name: [_number(row["columns"].get(name)) for row in rows] for name in names},
    )


def keys_of(records: Records) -> list[Key]:
    return list(zip(records.ids.tolist(), (content.tobytes().hex() for content in records.hashes), strict=True))


def key_of(row: Row) -> Key:
    return row["id"], row["hash"]


class KnownImages:
    """Images by row: as they were read once, and as this process has changed them since, in rows that stay."""

    def __init__(self, records: Records):
        self._parts = [records]
        self.row_of = records.row_of.copy()  # by name, of each image that is there
        self.keys = keys_of(records)  # by row

    def change(self, gone: Sequence[str], added: Records) -> None:
        """Images were removed, and then others added, in place of those of their names."""
        for name in gone:
            self.row_of.pop(name, None)
        self.row_of.update(zip(added.names, itertools.count(len(self.keys)), strict=False))
        self.keys += keys_of(added)
        self._parts.append(added)

    @property
    def records(self) -> Records:
        """By row; the name of an image that is gone is empty."""
        if len(self._parts) > 1:
            all_rows = joined(*self._parts)
            names = [name if self.row_of.get(name) == row else "" for row, name in enumerate(all_rows.names)]
            self._parts = [replace(all_rows, names=names)]
        return self._parts[0]


def expression(wanted: SearchFilter) -> str:
    """What a server can tell of a filter: all that is wanted passes, and perhaps more, such as corners around a circle.

    A number is compared with the numbers of a column; its texts, some of which may read as numbers, all pass.
    """
    boxes = [
        f"(latitude >= {south - MARGIN!r} and latitude <= {north + MARGIN!r} and "
        f"longitude >= {west - MARGIN!r} and longitude <= {east + MARGIN!r})"
        for south, west, north, east in (map(float, box) for box in wanted.boxes() or ())
    ]
    parts = [f"({' or '.join(boxes)})"] if boxes else []
    for condition in filter(lambda condition: _is_plain(condition.column), wanted.where):
        column, comparison, value = f'columns["{condition.column}"]', condition.comparison, condition.value
        if isinstance(value, float) and comparison != "!=":
            parts.append(f'({column} {"==" if comparison == "=" else comparison} {value!r} or {column} >= "")')
        elif comparison == "=" and _is_plain(value):
            parts.append(f'{column} == "{value}"')
        else:
            parts.append(f"exists {column}")
    return " and ".join(parts)


def exists(wanted: SearchFilter) -> list[str]:
    """What some image of a collection fulfils, each, if a filter can be applied to it."""
    columns = [f'exists columns["{condition.column}"]' for condition in wanted.where if _is_plain(condition.column)]
    return columns + (["latitude <= 90.0"] if wanted.near or wanted.box else [])


def _text(text: str) -> str:
    """A name or folder that Milvus can store, as it is."""
    try:
        if len(text.encode("utf-8")) <= LONGEST_NAME:
            return text
        reason = f"found {len(text)} characters, wanted at most {LONGEST_NAME} bytes"
    except UnicodeEncodeError:
        reason = "found bytes that are no UTF-8"
    raise UserError(f"Milvus cannot store the name {ascii(text)[:80]} ({reason}): rename the file or folder")


def _number(value: Value) -> Value:
    """A value of a column as JSON has it, in which a number that is none is silent."""
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    return value


def _is_plain(value: Value) -> bool:
    """Whether it is text that needs no quoting."""
    return isinstance(value, str) and value.isprintable() and not set(value) & set("\"'\\{}")
