"""Images of a store by row: those of a commit, and how they are added and removed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vpr.common.progress import say
from vpr.database.engine import Source, WantedIndex, WrittenByAnother
from vpr.database.records import Records
from vpr.database.store.store import State, Store
from vpr.database.store.stored_records import StoredColumns, StoredRecords, records_of
from vpr.database.store.table import local_columns
from vpr.descriptors.local_maps import LocalMaps, QuantizedMap
from vpr.models.local_projection import LocalProjection

EXACT = "none"  # in place of a FAISS index's factory string


class StoredImages:
    """What `vpr.database.engine.Engine` has and how it changes, but for searching. Rows are those of the flat file.

    Attributes:
        store: where they are kept.
        source: which database.
        wanted: how it is searched.
        by_hand: see `Engine`.
        state: the commit that was taken last; None: nothing is kept yet.
        map: float16 [rows, dim], the descriptors, in their file.
    """

    def __init__(self, store: Store, source: Source, wanted: WantedIndex) -> None:
        """What the store has, whatever made it."""
        self.store, self.source, self.wanted = store, source, wanted
        self.by_hand, self._changes, self._said = False, False, False
        self._zone: str | None = None
        self._wide = torch.empty(0)
        self._damaged = np.empty(0, np.int64)
        self._generation, self._rows = -1, 0
        self._take(store.state())

    def _take(self, state: State | None) -> None:
        """Go on from a commit: rows of a generation stay as they are, and others come behind them."""
        self.state = state
        generation, rows = (state.generation, state.rows) if state else (0, 0)
        alive = np.ones(rows, bool)
        if state is not None:
            alive[state.gone] = False
        if generation != self._generation:
            self._columns = StoredColumns(self.store, generation)
            self._row_of: dict[str, int] | None = None
            self._generation, self._wide, self._damaged = generation, torch.empty(0), np.empty(0, np.int64)
        before, self._alive = getattr(self, "_alive", alive), alive
        self.map = self.store.descriptors(state) if state else torch.empty(0, self.source.dim, dtype=torch.float16)
        alive[len(self.map) :] = False  # the file has become shorter
        alive[self._damaged] = False
        self._local: LocalMaps | None = None
        self._projection: tuple[LocalProjection | None] | None = None
        self.records: Records = StoredRecords(self._columns, alive, self.zone)
        if self._row_of is not None:
            self._follow(before[: len(alive)], alive)

    def _follow(self, before: np.ndarray, alive: np.ndarray) -> None:
        """The rows of names, as they have become."""
        assert self._row_of is not None
        names = self._columns.of("names", len(alive))
        for row in np.flatnonzero(before & ~alive[: len(before)]):
            if self._row_of.get(names[row]) == row:
                del self._row_of[names[row]]
        self._row_of.update({names[row]: int(row) for row in np.flatnonzero(alive) if row >= len(before)})

    def refresh(self) -> None:
        """Take what others have committed; what another model has made since is not searched with this one's."""
        if self.store.changed():
            state = self.store.state()
            if state is not None and state.meta["provenance"] != dict(self.source.provenance) and self.state:
                if not self._said:
                    say(f"{self.store.path} is now another model's: this process goes on with what it has")
                self._said = True
                return
            self._take(state)

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
        """What made the descriptors."""
        return dict(self.meta.get("provenance", {}))

    @property
    def edited(self) -> bool:
        """Whether it was changed by hand."""
        return bool(self.meta.get("edited"))

    @property
    def keeps_local(self) -> bool:
        """Whether images that are added bring their local descriptors."""
        return bool(self.meta.get("local_dim", self.wanted.local_dim))

    @property
    def local(self) -> LocalMaps | None:
        """Local descriptors by row, where they are kept."""
        if self._local is None and self.state and self.meta.get("local_stored"):
            self._local = self.store.local(self.state, *local_columns(self._columns.of("local", self.state.rows)))
        return self._local

    @property
    def projection(self) -> LocalProjection | None:
        """What projected the local descriptors; None where the model did, or there are none."""
        if self._projection is None:
            self._projection = (self.store.projection(),)
        return self._projection[0]

    @property
    def lacking(self) -> Records:
        """Images from elsewhere that are to be described again."""
        return records_of(self.store.lacking(), self.zone)

    @property
    def row_of(self) -> Mapping[str, int]:
        """By name, the row of each image that it has."""
        if self._row_of is None:
            names = self._columns.of("names", len(self._alive))
            self._row_of = {names[row]: int(row) for row in self.rows()}
        return self._row_of

    @property
    def next_row(self) -> int:
        """That the next image to be added gets."""
        return len(self._alive)

    def count(self) -> int:
        """How many images it has."""
        return int(self._alive.sum())

    def rows(self) -> np.ndarray:
        """The rows of the images it has."""
        return np.flatnonzero(self._alive)

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Those of some rows, float16 [n, dim], each compared with its checksum."""
        wanted = np.asarray(rows, np.int64)
        values, known = self.map[torch.from_numpy(wanted)], self._columns.of("record", self.next_row)
        self.store.require_whole([known[row] for row in wanted], values.numpy())
        return values

    def hold(self) -> None:
        """Be the one that writes.

        Raises:
            WrittenByAnother: another process is, or has renumbered the rows since they were read here.
        """
        if self.store.files.hold():
            generation, known = self._generation, self.state
            if self.store.changed():
                state = self.store.state()
                if known is not None and (state is None or state.generation != generation):
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
        """As of `Engine`."""
        state = self._begun()
        if projection is not None:
            self.store.say(state, state.meta, projection)
            self._take(self.store.state())

    def _edited(self, state: State) -> dict[str, Any]:
        """What is said of it once it is changed."""
        self._changes = True
        return {**state.meta, "edited": self.edited or self.by_hand, "zone": self.zone}

    def add(self, records: Records, descriptors: torch.Tensor, local: Sequence[QuantizedMap] | None = None) -> None:
        """As of `Engine`."""
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
        """As of `Engine`."""
        if self.state is not None:
            self.hold()  # the rows of names are those that nobody else changes any more
        waiting = set(self.lacking.names)
        there = [self.row_of[name] for name in names if name in self.row_of]
        if there or waiting.intersection(names):
            state = self._begun()
            self.store.remove(state, self._edited(state), there, names)
            self._take(self.store.state())

    def set_zone(self, zone: str) -> None:
        """As of `Engine`."""
        self._zone = zone
        self.records = StoredRecords(self._columns, self._alive, zone)

    def set_aside(self, rows: Sequence[int]) -> None:
        """Have the images of damaged rows described again: those of the folder are found there, others are noted."""
        state, known = self._begun(), self._columns.of("record", self.next_row)
        foreign = [known[row][:-1] for row in rows if known[row][1]]
        self.store.remove(state, self._edited(state), rows, (), foreign)
        self._take(self.store.state())

    def leave_out(self, rows: Sequence[int]) -> None:
        """Do not find the images of damaged rows."""
        self._damaged, self._row_of = np.array(rows, np.int64), None
        self._take(self.state)

    def close(self) -> None:
        """Let go of files."""
        self.store.close()
