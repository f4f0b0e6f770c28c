"""Records of a store's rows, of which each column is read when it is first asked for: an index opens without them."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from vpr.database.records import Records, Value, joined, no_records
from vpr.database.store.store import Store
from vpr.database.store.table import RECORD, as_text

Loaded = dict[str, tuple[Any, ...]]  # by name of an attribute of Records, what rows of the table say


class StoredColumns:
    """The columns of one generation's rows, which never change: those that are read are kept, and gone on with."""

    def __init__(self, store: Store, generation: int) -> None:
        self._store, self._generation = store, generation
        self._known: dict[str, Any] = {}

    def of(self, name: str, rows: int) -> Any:
        """An attribute of Records, or `crc` or `local`, for the first rows."""
        columns, made, put_together = COLUMNS[name]
        known = self._known.get(name)
        start = 0 if known is None else len(known)
        if known is None or start < rows:
            new = made(self._store.columns(self._generation, columns, start, rows))
            known = self._known[name] = new if known is None else put_together(known, new)
        return known[:rows]


def _numbers(kind: Any) -> Callable[[list[tuple]], np.ndarray]:
    return lambda rows: np.array([value for (value,) in rows], kind)


def _more(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.concatenate([first, second])


def _texts(rows: list[tuple]) -> list[str]:
    return [as_text(name) for (name,) in rows]


def _positions(rows: list[tuple]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 2)  # None, which is unknown, becomes NaN


def _hashes(rows: list[tuple]) -> np.ndarray:
    return np.frombuffer(b"".join(value for (value,) in rows), np.uint8).reshape(-1, 32)


def _tables(rows: list[tuple]) -> list[dict[str, Value]]:
    return [json.loads(text) for (text,) in rows]


# By attribute: columns of the table, what is made of them, and how more rows are put behind.
COLUMNS: dict[str, tuple[tuple[str, ...], Callable[[list[tuple]], Any], Callable[[Any, Any], Any]]] = {
    "names": (("name",), _texts, lambda first, second: first + second),
    "folders": (("folder",), _texts, lambda first, second: first + second),
    "columns": (("columns",), _tables, lambda first, second: first + second),
    "positions": (("easting", "northing"), _positions, _more),
    "sizes": (("size",), _numbers(np.int64), _more),
    "modified": (("modified",), _numbers(np.int64), _more),
    "hashes": (("hash",), _hashes, _more),
    "record": ((*RECORD, "crc"), list, lambda first, second: first + second),
    "local": (("local_height", "local_width", "local_crc"), lambda rows: np.array(rows, np.int64), _more),
}


class StoredRecords(Records):
    """As of `Records`, which each of its attributes becomes when it is asked for; removed images have no name."""

    def __init__(self, columns: StoredColumns, alive: np.ndarray, zone: str | None) -> None:
        """Those of the first rows, of which `alive` [N] are there."""
        for name, value in (("_stored", columns), ("_alive", alive), ("zone", zone)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self._alive)

    def __getattr__(self, name: str) -> Any:
        if name not in COLUMNS:
            raise AttributeError(name)
        value = self._stored.of(name, len(self))
        if name == "names" and not self._alive.all():
            value = [each if alive else "" for each, alive in zip(value, self._alive, strict=True)]
        if name == "columns":
            headings = dict.fromkeys(heading for row in value for heading in row)
            value = {heading: [row.get(heading) for row in value] for heading in headings}
        object.__setattr__(self, name, value)
        return value


def records_of(rows: list[tuple], zone: str | None) -> Records:
    """Rows of RECORD as Records."""
    columns = _tables([(row[7],) for row in rows])
    parts = [
        Records(
            [as_text(row[0])], _positions([row[5:7]]), zone, np.array([row[2]]), np.array([row[3]]),
            _hashes([row[4:5]]), [as_text(row[1])], {name: [value] for name, value in table.items()},
        )
        for row, table in zip(rows, columns, strict=True)
    ]  # fmt: skip
    return joined(*parts) if parts else no_records(zone)
