"""The engine `faiss`: a store's descriptors, searched exactly where they lie, or by an index that FAISS made of them.

Rows are those of the store's flat file. What was added since FAISS's index was made is searched exactly, and joined.
"""

from collections.abc import Mapping, Sequence
from glob import escape
from typing import Any

import faiss
import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.common.memory import available_bytes
from vpr.common.progress import say
from vpr.data.walks import Walks
from vpr.database.engine import Hits, Source, WantedIndex
from vpr.database.filters import SearchFilter
from vpr.database.index_files import built_index, opened_index, remove_other_indexes
from vpr.database.location import images_of_earlier_version
from vpr.database.records import Records
from vpr.database.searched_rows import SearchedRows
from vpr.database.store import REMEDY, State, Store, local_columns
from vpr.database.stored_records import StoredColumns, StoredRecords, records_of
from vpr.models.local_maps import LocalMaps, QuantizedMap
from vpr.models.local_projection import LocalProjection
from vpr.search.approximate import check_factory, faiss_name, index_name
from vpr.search.database import DatabaseIndex, looks_at_all, merged
from vpr.search.exact import measured, nearest
from vpr.search.sequences import SequenceRule

EXACT = "none"  # in place of a FAISS index's factory string
FEW_ROWS = 4096  # of an approximate index that are compared one by one where a search is limited to them
SMALL_BYTES = 64 << 20  # of descriptors: all are checked when opened, and put in their folder's order when that changes
MOST_GONE = 0.25  # of the rows, above which a larger database is written anew without them


class FaissEngine:
    """As of `vpr.database.engine.Engine`; `open_engine` opens it.

    Attributes:
        source: which database.
        wanted: how it is searched.
        by_hand: see `Engine`.
    """

    searches_sequences, is_shared, measures = True, False, True

    def __init__(self, store: Store, source: Source, wanted: WantedIndex) -> None:
        """What the store has, whatever made it."""
        self.store, self.source, self.wanted = store, source, wanted
        self.by_hand, self._changes, self._said = False, False, False
        self._zone: str | None = None
        self._wide = torch.empty(0)
        self._damaged = np.empty(0, np.int64)
        self._generation, self._rows = -1, 0
        self._take(store.state())

    # What it has

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
            self._index: faiss.Index | None = None
        before, self._alive = getattr(self, "_alive", alive), alive
        self.map = self.store.descriptors(state) if state else torch.empty(0, self.source.dim, dtype=torch.float16)
        alive[len(self.map) :] = False  # the file has become shorter
        alive[self._damaged] = False
        self._local: LocalMaps | None = None
        self._projection: tuple[LocalProjection | None] | None = None
        self.records: Records = StoredRecords(self._columns, alive, self.zone)
        if self._row_of is not None:
            self._follow(before[: len(alive)], alive)
        self.load_index()

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
    def name(self) -> str:
        """Engine and index in words."""
        if self._index is None:
            return "faiss, exact"
        return f"faiss, {index_name(str(self.wanted.factory), self._index)}"

    @property
    def approximate(self) -> str:
        """FAISS's index in words, where it may miss nearest images."""
        if self._index is None or looks_at_all(self._index):
            return ""
        return faiss_name(str(self.wanted.factory), self._index)

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

    # How it is searched

    def search(self, queries: torch.Tensor, count: int, wanted: SearchFilter | None = None) -> Hits:
        """As of `Searchable`, in what was committed last."""
        self.refresh()
        allowed = self._alive if wanted is None else self._alive & wanted.mask(self.records)
        base, parts = self._index.ntotal if self._index is not None else 0, []
        if self._index is not None and base:
            parts.append(self._search_index(self._index, queries, count, allowed[:base]))
        if base < len(self.map):
            rows = SearchedRows(self.map[base:], self._wide[base:] if not base else self._wide[:0], allowed[base:])
            found, distances = rows.search(queries, count)
            parts.append((np.where(found >= 0, found + base, -1), distances))
        return Hits(*merged(parts, len(queries), count), self.records)

    def _search_index(
        self, index: faiss.Index, queries: torch.Tensor, count: int, allowed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """By FAISS's index; where few rows are wanted, one by one: it looks at a part, in which few of them may lie."""
        rows = None if allowed.all() else np.flatnonzero(allowed)
        if rows is not None and len(rows) <= FEW_ROWS:
            found = nearest(self.map, queries, count, rows)
        else:
            found, _ = DatabaseIndex(approximate=index).search(queries, count, rows)
        return measured(self.map.__getitem__, queries, found)

    def search_in_order(
        self, queries: torch.Tensor, count: int, sequences: tuple[Walks, Walks], rule: SequenceRule
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As of `Engine`: exactly, among the images that are there."""
        if self._index is not None:
            raise UserError("--sequence searches exactly: drop --index, or name an exact index with --indexFile")
        rows, (own, others) = self.rows(), sequences
        values = self.map if len(rows) == len(self.map) else self.map[torch.from_numpy(rows)]
        found, distances, similarities = DatabaseIndex(values).search_in_order(
            queries, count, (own.of(rows), others), rule
        )
        return np.where(found >= 0, rows[found], -1), distances, similarities

    def prepare_to_serve(self, writable: bool) -> None:
        """Write alone from now on, if at all; search in float32, where a quarter of the free memory has room for it.

        A lone query is then answered in half the time, and with the same distances.
        """
        self.by_hand = True
        if writable:
            self.hold()
        if self._index is None and 4 * self.map.numel() <= available_bytes() // 4:
            self._wide = self.map.float()

    def check(self) -> None:
        """What lies beside the model always answers."""

    # How it changes

    def hold(self) -> None:
        """Be the one that writes.

        Raises:
            UserError: another process is, or has renumbered the rows since they were read here.
        """
        if self.store.hold():
            generation, known = self._generation, self.state
            if self.store.changed():
                state = self.store.state()
                if known is not None and (state is None or state.generation != generation):
                    self.store.close()
                    raise UserError(f"{self.store.path} was written anew by another process: repeat the command")
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

    def finish(self, order: Sequence[str] | None = None) -> None:
        """As of `Engine`: leave out the rows of removed images where these are many; make FAISS's index of all rows."""
        state = self._begun()
        wanted = {**state.meta, "zone": self.zone, "index": self.wanted.factory or EXACT, "seed": self.wanted.seed,
                  "on_disk": self.wanted.on_disk, "local_dim": self.wanted.local_dim}  # fmt: skip
        if self.wanted.nprobe is not None:
            wanted["nprobe"] = self.wanted.nprobe
        if order is not None:
            wanted |= {"edited": False, "note": dict(self.source.note)}
        drops_local = bool(state.meta.get("local_stored")) and not self.wanted.local_dim
        if drops_local:
            wanted |= {"local_stored": 0, "local_bytes": 0}
        rows = self._in_order(order)
        gone = state.rows - len(rows)
        as_they_are = np.array_equal(rows, np.arange(state.rows))
        small = 2 * self.source.dim * state.rows <= SMALL_BYTES and order is not None
        if drops_local or gone > MOST_GONE * state.rows or (small and not as_they_are):
            self.store.rewrite(state, wanted, rows, None if drops_local else self.local)
            self._changes = True
        elif wanted != state.meta:
            self.store.say(state, wanted)
            self._changes = True
        self._take(self.store.state())
        if self.wanted.factory and (self._index is None or self._index.ntotal < self.next_row):
            self.build_index()
        remove_other_indexes(self.store, self.state if self.wanted.factory else None)
        if self._changes:
            self._say_written()
        self.store.release()

    def _in_order(self, order: Sequence[str] | None) -> np.ndarray:
        """The rows of the images it has, in an order of names; others follow as they are."""
        first = [self.row_of[name] for name in order or () if name in self.row_of]
        return np.array([*first, *np.setdiff1d(self.rows(), np.array(first, np.int64))], np.int64)

    @property
    def has_index(self) -> bool:
        """Whether FAISS's index is there."""
        return self._index is not None

    def build_index(self) -> None:
        """FAISS's index of all rows, which is written beside them."""
        assert self.state is not None
        self._index = built_index(self.store, self.state, self.wanted, self.map)
        if self.state.meta.get("index_rows") != self.next_row and self.store.held:
            self.store.say(self.state, {**self.meta, "index_rows": self.next_row})
            self._take(self.store.state())
        self._changes = True

    def load_index(self) -> None:
        """FAISS's index, where it is there."""
        if self.wanted.factory and self.state is not None and self._index is None:
            self._index = opened_index(self.store, self.state, self.wanted)

    def _say_written(self) -> None:
        files = [self.store.path, *self.store.path.parent.glob(f"{escape(self.store.path.stem)}.*.*")]
        size = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
        local = (
            f", {self.local.bytes_per_image:.0f} bytes per image of local descriptors among them" if self.local else ""
        )
        say(f"wrote {self.store.path}: {self.count()} images, {size:.1f} MB{local}")
        self._changes = False

    def close(self) -> None:
        """Let go of files."""
        self.store.close()


def open_engine(source: Source, wanted: WantedIndex, anew: bool = False) -> FaissEngine:
    """As of every engine in ENGINES.

    Args:
        anew: the index shall become what is wanted, of this model, and keep its images of other folders, which are
            described again; every row is checked. Else it is what it is, and what contradicts that is refused.

    Raises:
        UserError: it is damaged, or of another model or kind.
    """
    if anew and wanted.factory:
        check_factory(wanted.factory, source.dim)
    try:
        engine = FaissEngine(Store(source.path, source.dim), source, wanted)
    except UserError as error:
        if not anew:
            raise
        say(f"replaced: {error}; kept as .damaged: images of other folders are to be added again")
        source.path.replace(source.path.with_suffix(".damaged"))
        engine = FaissEngine(Store(source.path, source.dim), source, wanted)
    (_adapt if anew else _accept)(engine)
    return engine


def _adapt(engine: FaissEngine) -> None:
    """Make an index ready to become what is wanted."""
    path, meta, wanted = engine.source.path, engine.meta, engine.wanted
    if engine.state is None:
        others, zone = images_of_earlier_version(path, engine.source.note)
        if others:
            engine.begin_anew({"zone": zone}, others)
        return
    reason = _other_model(meta, engine.source.provenance)
    if reason is None and wanted.local_dim and meta["local_dim"] != wanted.local_dim:
        reason = f"has local descriptors of {meta['local_dim'] or 'no'} dimensions, wanted {wanted.local_dim}"
    if reason is not None:
        state, folders = engine.state, StoredColumns(engine.store, engine.state.generation)
        known = folders.of("record", state.rows)
        others = [known[row][:-1] for row in engine.rows() if known[row][1]] + engine.store.lacking()
        also = f"; {len(others)} images of other folders are described again" if others else ""
        say(f"{path} {reason}: making it anew{also}")
        engine.begin_anew({}, others)
    elif damaged := engine.store.damaged(engine.state):
        _say_damaged(engine, damaged, "it is described again")
        engine.set_aside(damaged)


def _accept(engine: FaissEngine) -> None:
    """Take an index as it is."""
    path, meta, wanted = engine.source.path, engine.meta, engine.wanted
    if engine.state is None:
        return
    reason = _other_model(meta, engine.source.provenance)
    if reason is not None:
        raise UserError(f"{path} {reason}: {REMEDY}")
    if wanted.factory and meta["index"] != wanted.factory:
        raise UserError(
            f"{path} is made with --index={meta['index']}, found --index={wanted.factory}: drop that, or {REMEDY}"
        )
    engine.wanted = WantedIndex(
        None if meta["index"] == EXACT else meta["index"],
        wanted.nprobe if wanted.nprobe is not None else meta.get("nprobe"),
        meta["seed"], meta["local_dim"], meta["on_disk"],
    )  # fmt: skip
    short = len(engine.map) < engine.state.rows
    if short or 2 * engine.source.dim * engine.state.rows <= SMALL_BYTES:
        damaged = engine.store.damaged(engine.state)
        _say_damaged(engine, damaged, "it is left out until it is described again")
        engine.leave_out(damaged)
    engine.load_index()
    if engine.wanted.factory and not engine.has_index and engine.count() and meta.get("index_rows"):
        say(f"{path}: the index {engine.wanted.factory} is made again of the descriptors")
        engine.build_index()


def _other_model(meta: Mapping[str, Any], wanted: Mapping[str, str]) -> str | None:
    """In words, why descriptors are not those of the model at hand."""
    found = meta["provenance"]
    for name, value in wanted.items():
        if found.get(name) != value:
            return f"was made by another model ({name}={found.get(name)}, wanted {value})"
    return None


def _say_damaged(engine: FaissEngine, rows: list[int], then: str) -> None:
    known = StoredColumns(engine.store, engine.state.generation).of("names", engine.next_row) if engine.state else []
    for row in rows:
        say(f"{engine.source.path}: the descriptor of {known[row]} is damaged: {then}")
