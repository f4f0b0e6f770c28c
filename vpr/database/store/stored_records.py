"""Records of a store's rows, read when they are asked for: single rows by themselves, else a column as a whole."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vpr.database.records import Records
from vpr.database.store.store import Store
from vpr.database.store.table import RECORD, as_text, by_heading, hashes_of, records_of

FEW = 4096  # rows that are read by themselves before columns are read whole


class StoredColumns:
    """The columns of one generation's rows, which never change: what was read is kept, and gone on with."""

    def __init__(self, store: Store, generation: int) -> None:
        self._store, self._generation = store, generation
        self._whole: dict[str, Any] = {}
        self.single: dict[int, tuple] = {}  # RECORD and checksum, by row

    def of(self, name: str, rows: int) -> Any:
        """A key of COLUMNS, for the first rows."""
        names, convert = COLUMNS[name]
        known = self._whole.get(name)
        start = 0 if known is None else len(known)
        if known is None or start < rows:
            new = convert(self._store.columns(self._generation, names, start, rows))
            known = new if known is None else known + new if isinstance(new, list) else np.concatenate([known, new])
            self._whole[name] = known
        return known[:rows]

    def read(self, rows: Sequence[int]) -> list[tuple]:
        """RECORD and checksum of some rows."""
        lacking = [row for row in rows if row not in self.single]
        self.single.update(zip(lacking, self._store.rows(self._generation, lacking), strict=True))
        return [self.single[row] for row in rows]

    def is_whole(self, name: str, rows: int) -> bool:
        """Whether a column is read whole, or so many single rows are that the next is."""
        return len(self.single) > FEW or len(self._whole.get(name, ())) >= rows


def _texts(rows: list[tuple]) -> list[str]:
    return [as_text(name) for (name,) in rows]


def _integers(rows: list[tuple]) -> np.ndarray:
    return np.array(rows, np.int64)[:, 0] if rows else np.empty(0, np.int64)


def _unchanged(rows: list[tuple]) -> list:
    return [row[0] if len(row) == 1 else row for row in rows]


# By attribute of Records: columns of the table, and what is made of them.
COLUMNS: dict[str, tuple[tuple[str, ...], Callable[[list[tuple]], Any]]] = {
    "names": (("name",), _texts),
    "folders": (("folder",), _texts),
    "columns": (("columns",), _unchanged),
    # None, which is unknown, becomes NaN.
    "positions": (("easting", "northing"), lambda rows: np.array(rows, np.float64).reshape(-1, 2)),
    "sizes": (("size",), _integers),
    "modified": (("modified",), _integers),
    "hashes": (("hash",), lambda rows: hashes_of(_unchanged(rows))),
    "local": (("local_height", "local_width", "local_crc"), _unchanged),
}
OF_HITS = ("names", "folders", "positions")  # of which single rows are asked for


class StoredColumn(Sequence[Any]):
    """A column of Records: a list, or an array where it is of numbers, of which single rows are read by themselves."""

    def __init__(self, name: str, columns: StoredColumns, alive: np.ndarray) -> None:
        self._name, self._columns, self._alive = name, columns, alive

    @functools.cached_property
    def whole(self) -> Any:
        """The column itself; names of removed images are empty."""
        value = self._columns.of(self._name, len(self))
        if self._name == "names" and not self._alive.all():
            value = [each if alive else "" for each, alive in zip(value, self._alive, strict=True)]
        return value

    def __getitem__(self, rows: Any) -> Any:
        index = rows if isinstance(rows, int) else None if isinstance(rows, slice) else np.asarray(rows)
        is_mask = isinstance(index, np.ndarray) and index.dtype == bool
        if index is None or is_mask or not len(self) or self._columns.is_whole(self._name, len(self)):
            return self.whole[rows]
        wanted = np.asarray(index) % len(self)
        if self._name == "names" and not self._alive[wanted]:
            return ""
        names, convert = COLUMNS[self._name]
        found = self._columns.read(wanted.ravel().tolist())
        value = convert([tuple(row[RECORD.index(name)] for name in names) for row in found])
        return value[0] if isinstance(value, list) else value.reshape(*wanted.shape, *value.shape[1:])

    def __len__(self) -> int:
        return len(self._alive)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.whole)

    def __eq__(self, other: object) -> Any:
        return self.whole == (other.whole if isinstance(other, StoredColumn) else other)

    def __array__(self, *how: Any, **named: Any) -> np.ndarray:
        return np.array(self.whole, *how, **named)


class StoredRecords(Records):
    """As of `Records`, of which each attribute is read when it is asked for; removed images have no name."""

    def __init__(self, columns: StoredColumns, alive: np.ndarray, zone: str | None) -> None:
        """Those of the first rows, of which `alive` [N] are there."""
        for name, value in (("_stored", columns), ("_alive", alive), ("zone", zone)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self._alive)

    def __getattr__(self, name: str) -> Any:
        if name not in COLUMNS:
            raise AttributeError(name)
        value: Any = StoredColumn(name, self._stored, self._alive)
        if name not in OF_HITS:
            value = by_heading(value.whole) if name == "columns" else value.whole
        object.__setattr__(self, name, value)
        return value

    def read_whole(self) -> None:
        """Read all, so that nothing is asked of the store any more."""
        for name in COLUMNS:
            if name in OF_HITS:
                _ = getattr(self, name).whole
            elif name != "local":
                getattr(self, name)

    def only(self, rows: Sequence[int] | np.ndarray) -> Records:
        """Some rows, in the order given; few of them are read by themselves."""
        if self._stored.is_whole("names", len(self)) or len(rows) > FEW or not self._alive[rows].all():
            return super().only(rows)
        return records_of(self._stored.read(np.asarray(rows, np.int64).tolist()), self.zone)
