"""Images of an index as rows of a Milvus collection, and the rows that an engine has given them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vpr.common.errors import UserError
from vpr.database.filters import SearchFilter
from vpr.database.records import Records, Value, joined, no_records

# Milvus stores no NaN. No place on earth has these; no box of degrees holds the second.
UNKNOWN_METRES, UNKNOWN_DEGREES = -1e9, 1000.0
LONGEST_NAME = 8192  # characters of a name or folder
VECTOR = "descriptor"
SCALARS = {
    "name": "VARCHAR", "folder": "VARCHAR", "hash": "VARCHAR", "zone": "VARCHAR",
    "latitude": "DOUBLE", "longitude": "DOUBLE", "easting": "DOUBLE", "northing": "DOUBLE",
    "size": "INT64", "modified": "INT64", "squared_length": "DOUBLE", "columns": "JSON",
}  # fmt: skip
MARGIN = 1e-7  # degrees, a centimetre: a box may hold more than is wanted, never less


def rows_of(records: Records, vectors: np.ndarray, squared: np.ndarray) -> list[dict[str, Any]]:
    """Rows of a collection.

    Args:
        vectors: [n, dim], of the type in which they are stored.
        squared: float64 [n], their squared lengths.

    Raises:
        UserError: a name cannot be stored.
    """
    metres = np.where(np.isfinite(records.positions), records.positions, UNKNOWN_METRES)
    degrees = np.where(np.isfinite(records.degrees), records.degrees, UNKNOWN_DEGREES)
    return [
        {
            "id": int(number), VECTOR: vectors[row],
            "name": _text(records.names[row]), "folder": _text(records.folders[row]),
            "hash": records.hashes[row].tobytes().hex(), "zone": records.zone or "",
            "latitude": float(degrees[row, 0]), "longitude": float(degrees[row, 1]),
            "easting": float(metres[row, 0]), "northing": float(metres[row, 1]),
            "size": int(records.sizes[row]), "modified": int(records.modified[row]),
            "squared_length": float(squared[row]),
            "columns": {name: _number(values[row]) for name, values in records.columns.items()},
        }
        for row, number in enumerate(records.ids)
    ]  # fmt: skip


def records_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Records, np.ndarray]:
    """Records and squared lengths of rows that were read from a collection."""
    if not rows:
        return no_records(), np.empty(0)
    positions = np.array([[row["easting"], row["northing"]] for row in rows], float)
    names = dict.fromkeys(name for row in rows for name in row["columns"])
    records = Records(
        names=[row["name"] for row in rows],
        positions=np.where(positions == UNKNOWN_METRES, np.nan, positions),
        zone=next((row["zone"] for row in rows if row["zone"]), None),
        sizes=np.array([row["size"] for row in rows], np.int64),
        modified=np.array([row["modified"] for row in rows], np.int64),
        hashes=np.frombuffer(bytes.fromhex("".join(row["hash"] for row in rows)), np.uint8).reshape(-1, 32),
        folders=[row["folder"] for row in rows],
        columns={name: [_number(row["columns"].get(name)) for row in rows] for name in names},
    )
    return records, np.array([row["squared_length"] for row in rows], float)


def expression(wanted: SearchFilter) -> str:
    """What Milvus can tell of a filter, for every kind of server: all that is wanted passes, and perhaps more."""
    parts = []
    boxes = wanted.boxes()
    if boxes:
        sides = [
            f"(latitude >= {south - MARGIN!r} and latitude <= {north + MARGIN!r} and "
            f"longitude >= {west - MARGIN!r} and longitude <= {east + MARGIN!r})"
            for south, west, north, east in (map(float, box) for box in boxes)
        ]
        parts.append(f"({' or '.join(sides)})")
    for condition in wanted.where:
        # Text that is no number equals nothing but itself, whatever the column holds; numbers are left to us.
        if condition.comparison == "=" and _is_plain(condition.column) and _is_plain(condition.value):
            parts.append(f'columns["{condition.column}"] == "{condition.value}"')
    return " and ".join(parts)


class KnownRows:
    """The images of a collection, in rows that stay theirs.

    Attributes:
        names: by row; empty where the image was removed or replaced.
        ids: by row.
        alive: bool [N], whether the image is still there.
        squared: float64 [N], squared lengths of the descriptors.
        row_of, row_of_id: by name, and by id, the row of an image that is there.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.ids: list[int] = []
        self.alive = np.empty(0, bool)
        self.squared = np.empty(0)
        self.row_of: dict[str, int] = {}
        self.row_of_id: dict[int, int] = {}
        self._zones: set[str | None] = set()  # of all metres that are known
        self._parts: list[Records] = []
        self._whole: Records | None = no_records()

    def put(self, records: Records, squared: np.ndarray) -> None:
        """Take images in; those of the same names lose their rows."""
        ids, first = records.ids.tolist(), len(self.names)
        self.forget(ids)
        rows = range(first, first + len(ids))
        self.row_of.update(zip(records.names, rows, strict=True))
        self.row_of_id.update(zip(ids, rows, strict=True))
        self.names += records.names
        self.ids += ids
        self.alive = np.concatenate([self.alive, np.ones(len(ids), bool)])
        self.squared = np.concatenate([self.squared, squared])
        self._zones |= _zones(records)
        self._parts.append(records)
        self._whole = None

    def forget(self, ids: Iterable[int]) -> None:
        """Images are gone; unknown ids are passed over."""
        for number in ids:
            row = self.row_of_id.pop(number, None)
            if row is not None:
                del self.row_of[self.names[row]]
                self.names[row], self.alive[row], self._whole = "", False, None

    @property
    def records(self) -> Records:
        """All rows; the name of an image that is gone is empty."""
        if self._whole is None:
            while len(self._parts) > 1:  # in pairs, so that a row is copied a few times only
                pairs = [self._parts[start : start + 2] for start in range(0, len(self._parts), 2)]
                self._parts = [joined(*pair) if len(pair) > 1 else pair[0] for pair in pairs]
            self._whole = replace(self._parts[0], names=list(self.names))
        return self._whole

    def refuse_collisions(self, records: Records) -> None:
        """Raise a UserError where two names have one id."""
        names = dict[int, str]()
        for number, name in zip(records.ids.tolist(), records.names, strict=True):
            row = self.row_of_id.get(number)
            other = names.setdefault(number, self.names[row] if row is not None else name)
            if other != name:
                raise UserError(f"{name} has the id {number} of {other}: rename one of the two images")

    def refuse_other_zones(self, records: Records) -> None:
        """Raise a UserError where metres would be of two UTM zones."""
        for zone in _zones(records):
            for own in self._zones - {zone}:
                found, kept = zone or "unknown", own or "unknown"
                raise UserError(f"the images' UTM zone is {found}, the collection's {kept}: name another")


def _zones(records: Records) -> set[str | None]:
    """The UTM zone of the metres that are known, if any are."""
    return {records.zone} if np.isfinite(records.positions).any() else set()


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
    """A value of a column as JSON has it; a number that is none is silent."""
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    return value


def _is_plain(value: Value) -> bool:
    """Whether it is text that is no number and needs no quoting."""
    if not isinstance(value, str) or not value.isprintable() or set(value) & set("\"'\\{}"):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False
