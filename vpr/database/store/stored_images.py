"""Images of a store by row: those of a commit, and how they are added and removed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.database.engine import Source, WantedIndex, WrittenByAnother
from vpr.database.records import Records
from vpr.database.store.store import State, Store
from vpr.database.store.stored_records import StoredColumns, StoredRecords
from vpr.database.store.table import as_text, is_whole, local_columns, records_of
from vpr.descriptors.local_maps import LocalMaps, QuantizedMap, starts_of
from vpr.models.local_projection import LocalProjection

EXACT = "none"  # in place of a FAISS index's factory string
BLOCK = 4096  # rows whose records are read at once
Result = TypeVar("Result")
Found = TypeVar("Found", bound=tuple)


class StoredImages:
    """What `vpr.database.engine.Engine` has and how it changes, but for searching. Rows are those of the flat file."""

    state: State | None = None  # the commit that was taken last; None: nothing is kept yet
    map: np.ndarray  # float16 [rows, dim], the descriptors, in their file
    records: StoredRecords
    _row_of: dict[str, int] | None
    _local: LocalMaps | None

    def __init__(self, store: Store, source: Source, wanted: WantedIndex) -> None:
        """What the store has, whatever made it."""
        self.store, self.source, self.wanted = store, source, wanted
        self.by_hand, self.serves, self._changes, self._said = False, False, False, False
        self._zone: str | None = None
        self._take_last()

    def _take_last(self) -> None:
        """Go on from the last commit; where another follows that removes its files before they are open, from that."""
        while True:
            state = self.store.state()
            try:
                return self._take(state)
            except UserError:
                if not self.store.changed():
                    raise

    def _take(self, state: State | None) -> None:
        """Go on from a commit: rows of a generation stay as they are, and others come behind them."""
        self.map, self._local_values = self.store.flat(state)
        before, self.state, self._row_of, self._local = self.state, state, None, None
        self._generation, rows = (state.generation, state.rows) if state else (0, 0)
        self._renumbered = state is None or not state.follows(before)
        if self._renumbered:
            self._columns = StoredColumns(self.store, self._generation)
            self._wide, self._damaged, self._checked = self.map[:0], np.empty(0, np.int64), np.zeros(0, bool)
        self._alive = alive = np.ones(rows, bool)
        alive[state.gone if state else []] = False
        alive[len(self.map) :] = False  # the file has become shorter
        alive[self._damaged] = False
        self._checked = np.append(self._checked, np.zeros(rows - len(self._checked), bool))
        self._show_records()

    def _show_records(self) -> None:
        records = StoredRecords(self._columns, self._alive, self.zone)
        if self.serves:
            records.read_whole()
        self.records = records

    def refresh(self) -> bool:
        """Take what others have committed, if there is any; another model's is not searched with this one's."""
        if not self.store.changed():
            return False
        state = self.store.state()
        if state is not None and state.meta["provenance"] != dict(self.source.provenance) and self.state:
            if not self._said:
                say(f"{self.store.path} is now another model's: this process goes on with what it has")
            self._said = True
            return False
        try:
            self._take(state)
        except UserError:
            if not self.store.changed():
                raise
            self._take_last()
        return True

    def steadily(self, work: Callable[[], Result]) -> Result:
        """What some work of a reader gives, again where it failed since the database was written anew meanwhile."""
        while True:
            try:
                return work()
            except UserError:
                if self.store.files.held or not self.refresh():
                    raise

    def checked(self, search: Callable[[], Found]) -> Found:
        """What a search finds, its rows before all else, of which each fits its checksum.

        One that does not is said and left out, and the search is made again.
        """

        def once() -> Found:
            found = search()
            while damaged := self._damaged_among(np.unique(found[0])):
                self.leave_out(damaged)
                found = search()
            return found

        return self.steadily(once)

    def _damaged_among(self, rows: np.ndarray) -> list[int]:
        """Those of some rows whose descriptor or record does not fit its checksum, of any that is asked for first."""
        rows = rows[rows >= 0]
        rows = rows[~self._checked[rows]]
        known = zip(rows.tolist(), self._columns.read(rows.tolist()), strict=True)
        self._checked[rows] = True
        return [row for row, record in known if not self._is_whole(row, record)]

    def _is_whole(self, row: int, record: tuple) -> bool:
        return row < len(self.map) and is_whole(record, self.map[row : row + 1])

    def damaged(self) -> list[int]:
        """The rows, not gone, whose descriptor, record or local descriptors do not fit their checksums."""
        assert self.state is not None
        there, found = np.setdiff1d(np.arange(self.state.rows), self.state.gone), list[int]()
        for rows in np.array_split(there, 1 + len(there) // BLOCK):
            for row, record in zip(rows.tolist(), self.store.rows(self._generation, rows.tolist()), strict=True):
                try:
                    if (whole := self._is_whole(row, record)) and self.local:
                        self.local.rows(row)
                except UserError:
                    whole = False
                found += [] if whole else [row]
        return found

    @property
    def meta(self) -> Mapping[str, Any]:
        """What the store says of itself."""
        return self.state.meta if self.state else {}

    @property
    def zone(self) -> str | None:
        """UTM zone of the positions."""
        return self._zone or self.meta.get("zone")

    @property
    def provenance(self) -> dict[str, str]:
        return dict(self.meta.get("provenance", {}))

    @property
    def edited(self) -> bool:
        return bool(self.meta.get("edited"))

    @property
    def keeps_local(self) -> bool:
        return bool(self.meta.get("local_dim", self.wanted.local_dim))

    @property
    def local(self) -> LocalMaps | None:
        if self._local is None and self.state and self._local_values:
            grids, checksums = local_columns(self._columns.of("local", self.state.rows))
            starts = starts_of(grids.prod(axis=1, dtype=np.int64))
            path = self.store.files.flat(self.state.generation, "local")
            self._local = LocalMaps(self._local_values, grids, starts, checksums, str(path))
        return self._local

    @property
    def projection(self) -> LocalProjection | None:
        return self.store.projection()

    @property
    def lacking(self) -> Records:
        return records_of(self.store.lacking(), self.zone)

    @property
    def row_of(self) -> Mapping[str, int]:
        if self._row_of is None:
            names = self._columns.of("names", len(self._alive))
            self._row_of = {names[row]: int(row) for row in self.rows()}
        return self._row_of

    @property
    def next_row(self) -> int:
        return len(self._alive)

    def count(self) -> int:
        return int(self._alive.sum())

    def rows(self) -> np.ndarray:
        return np.flatnonzero(self._alive)

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of some rows, float16 [n, dim], each compared with its checksum."""
        wanted = np.asarray(rows, np.int64)
        values = self.map[wanted]
        self.store.require_whole(self._generation, wanted, values)
        return values

    def hold(self) -> None:
        """Be the one that writes.
        Raises WrittenByAnother: another process is, or has renumbered the rows since they were read here."""
        if self.store.files.hold() and self.store.changed():
            state = self.store.state()
            if self.state is not None and (state is None or not state.follows(self.state)):
                self.store.close()
                raise WrittenByAnother(f"{self.store.path} was written anew by another process: repeat the command")
            self._take(state)

    def _begun(self) -> State:
        """The state to go on from, once this process writes; a new database is begun."""
        self.hold()
        if self.state is None:
            self.begin_anew({})
        assert self.state is not None
        return self.state

    def begin_anew(self, more: Mapping[str, Any], lacking: Sequence[tuple] = ()) -> None:
        """An empty database of this source, in place of what is there, with images to be described again."""
        self.hold()
        meta = {
            "provenance": dict(self.source.provenance), "note": dict(self.source.note), "zone": self.zone,
            "local_dim": self.wanted.local_dim, "index": self.wanted.factory or EXACT, "on_disk": self.wanted.on_disk,
            "seed": self.wanted.seed, **more,
        }  # fmt: skip
        self.store.begin(self.state, meta, lacking)
        self._take(self.store.state())

    def begin(self, projection: LocalProjection | None) -> None:
        state = self._begun()
        if projection is not None:
            self.store.say(state, state.meta, projection)
            self._take(self.store.state())

    def keep_no_local(self) -> None:
        state, self.wanted = self._begun(), replace(self.wanted, local_dim=0)
        self.store.say(state, {**state.meta, "local_dim": 0})
        self._take(self.store.state())

    def _edited(self, state: State) -> dict[str, Any]:
        """What is said of it once it is changed."""
        self._changes = True
        return {**state.meta, "edited": self.edited or self.by_hand, "zone": self.zone}

    def add(self, records: Records, descriptors: np.ndarray, local: Sequence[QuantizedMap] | None = None) -> None:
        if self.keeps_local and local is None:
            raise ValueError("an index that keeps local descriptors was given images without them")
        if not len(records):
            return
        state = self._begun()
        meta = self._edited(state)
        meta["zone"] = meta["zone"] or records.zone
        self.store.append(state, meta, records, descriptors, local if self.keeps_local else None)
        self._take(self.store.state())

    def remove(self, names: Sequence[str]) -> None:
        if self.state is not None:
            self.hold()  # the rows of names are those that nobody else changes any more
        there = [self.row_of[name] for name in names if name in self.row_of]
        if there or set(self.lacking.names).intersection(names):
            state = self._begun()
            self.store.remove(state, self._edited(state), there, names)
            self._take(self.store.state())

    def set_zone(self, zone: str) -> None:
        self._zone = zone
        self._show_records()

    def set_aside(self, rows: Sequence[int]) -> None:
        """Have the images of damaged rows described again: those of the folder are found there, others are noted."""
        state = self._begun()
        known = self.store.rows(state.generation, rows)
        for name, *_ in known:
            say(f"{self.source.path}: the descriptor of {as_text(name)} is damaged: it is described again")
        foreign = [record[:-1] for record in known if record[1]]
        self.store.remove(state, self._edited(state), rows, (), foreign)
        self._take(self.store.state())

    def leave_out(self, rows: Sequence[int]) -> None:
        """Do not find the images of damaged rows, which is said."""
        for name, *_ in self.store.rows(self._generation, rows):
            what = f"{self.source.path}: the descriptor of {as_text(name)} is damaged"
            say(f"{what}: it is left out until it is described again")
        self._damaged = np.append(self._damaged, rows).astype(np.int64)
        self._take(self.state)

    def close(self) -> None:
        self.store.close()
