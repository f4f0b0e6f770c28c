"""The engine `faiss`: a store's descriptors, searched exactly where they lie, or by an index that FAISS made of them.

Rows are those of the store's flat file. What was added since FAISS's index was made is searched exactly, and joined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from glob import escape
from typing import Any

import faiss
import numpy as np

from vpr.common.errors import UserError
from vpr.common.memory import available_bytes
from vpr.common.progress import say
from vpr.data.frames import Frames
from vpr.database.engine import Hits, Source, WantedIndex
from vpr.database.filters import SearchFilter
from vpr.database.location import images_of_earlier_version
from vpr.database.store.index_files import built_index, opened_index, remove_other_indexes
from vpr.database.store.searched_rows import SearchedRows
from vpr.database.store.store import REMEDY, State, Store
from vpr.database.store.stored_images import EXACT, StoredImages
from vpr.search.approximate import check_factory, faiss_name, first_hits, index_name, looks_at_all
from vpr.search.exact import descriptor_distances, measured, merged, nearest
from vpr.search.floats import Float32Rows
from vpr.search.limited import search_index
from vpr.search.sequences import SequenceRule, search_sequences

FEW_ROWS = 4096  # of an approximate index that are compared one by one where a search is limited to them
SMALL_BYTES = 64 << 20  # of descriptors: all are checked when opened, and put in their folder's order when that changes
MOST_GONE = 0.25  # of the rows, above which a larger database is written anew without them


class FaissEngine(StoredImages):
    """As of `vpr.database.engine.Engine`; `open_engine` opens it."""

    is_shared, measures = False, True
    _index: faiss.Index | None = None

    def _take(self, state: State | None) -> None:
        super()._take(state)
        if self._renumbered:
            self._index = None
        self.load_index()

    @property
    def name(self) -> str:
        return f"faiss, {index_name(str(self.wanted.factory), self._index) if self._index else 'exact'}"

    @property
    def approximate(self) -> str:
        if self._index is None or looks_at_all(self._index):
            return ""
        return faiss_name(str(self.wanted.factory), self._index)

    @property
    def searches_sequences(self) -> bool:
        return self._index is None

    def search(self, queries: np.ndarray, count: int, wanted: SearchFilter | None = None) -> Hits:
        """As of `Searchable`, in what was committed last, of rows that fit their checksums."""
        self.refresh()
        return self.checked(lambda: self._search(queries, count, wanted))

    def _search(self, queries: np.ndarray, count: int, wanted: SearchFilter | None) -> Hits:
        allowed = self._alive if wanted is None else self._alive & wanted.mask(self.records)
        base, parts = self._index.ntotal if self._index is not None else 0, []
        if self._index is not None and base:
            parts.append(self._search_index(self._index, queries, count, allowed[:base]))
        if base < len(self.map):
            wide = self._wide[: 0 if base else None]
            found, distances = SearchedRows(self.map[base:], wide, allowed[base:]).search(queries, count)
            parts.append((np.where(found >= 0, found + base, -1), distances))
        return Hits(*merged(parts, len(queries), count), self.records)

    def _search_index(
        self, index: faiss.Index, queries: np.ndarray, count: int, allowed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """By FAISS's index; where few rows are wanted, one by one: it looks at a part, in which few of them may lie."""
        rows = None if allowed.all() else np.flatnonzero(allowed)
        if rows is not None and len(rows) <= FEW_ROWS:
            found = nearest(self.map, queries, count, rows)
        else:
            found = search_index(index, queries, first_hits(index, count), rows)
        found, distances = measured(self.map.__getitem__, queries, found)
        return found[:, :count], distances[:, :count]

    def search_in_order(
        self, queries: np.ndarray, count: int, sequences: tuple[Frames, Frames], rule: SequenceRule
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As of `Engine`: exactly, among the images that are there."""
        own, others = sequences

        def search() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            rows = self.rows()
            values = self.map if len(rows) == len(self.map) else self.map[rows]
            found, similarities = search_sequences(values, queries, count, (own.of(rows), others), rule)
            return np.where(found >= 0, rows[found], -1), descriptor_distances(values, queries, found), similarities

        return self.checked(search)

    def prepare_to_serve(self, writable: bool) -> None:
        """Write alone from now on, if at all; search in float32, where a quarter of the free memory has room for it.

        A lone query is then answered in half the time, and with the same distances.
        """
        self.by_hand = self.serves = True
        if writable:
            self.hold()
        self.records.read_whole()
        if self._index is None and 4 * self.map.size <= available_bytes() // 4:
            self._wide = Float32Rows()(self.map, slice(None))

    def check(self) -> None:
        """Files always answer; take what others have committed."""
        self.refresh()

    def finish(self, order: Sequence[str] | None = None) -> None:
        """Leave out the rows of removed images where these are many; make FAISS's index of all rows."""
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
        many_gone = state.rows - len(rows) > MOST_GONE * state.rows
        small = 2 * self.source.dim * state.rows <= SMALL_BYTES and order is not None
        if drops_local or many_gone or (small and not np.array_equal(rows, np.arange(state.rows))):
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
        self.store.files.release()

    def _in_order(self, order: Sequence[str] | None) -> np.ndarray:
        """The rows of the images it has, in an order of names; others follow as they are."""
        first = [self.row_of[name] for name in order or () if name in self.row_of]
        return np.array([*first, *np.setdiff1d(self.rows(), np.array(first, np.int64))], np.int64)

    def build_index(self) -> None:
        """FAISS's index of all rows, which is written beside them."""
        assert self.state is not None
        writes = self.store.files.held  # else the file that was there is made again
        rows = self.next_row if writes else int(self.meta["index_rows"])
        self._index = built_index(self.store, self.state, self.wanted, self.map[:rows])
        if writes and self.meta.get("index_rows") != rows:
            self.store.say(self.state, {**self.meta, "index_rows": rows})
            self._take(self.store.state())
        self._changes = True

    def load_index(self) -> None:
        """FAISS's index, where it is there."""
        if self.wanted.factory and self.state is not None and self._index is None:
            self._index = opened_index(self.store, self.state, self.wanted)

    def _say_written(self) -> None:
        path, each = self.store.path, self.local.bytes_per_image if self.local else 0
        files = [path, *path.parent.glob(f"{escape(path.stem)}.*.*")]
        size = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
        local = f", {each:.0f} bytes per image of local descriptors among them" if self.local else ""
        say(f"wrote {path}: {self.count()} images, {size:.1f} MB{local}")
        self._changes = False


def open_engine(source: Source, wanted: WantedIndex, anew: bool = False) -> FaissEngine:
    """As of every engine in ENGINES.
    `anew`: the index shall become what is wanted, of this model, and keep its images of other folders, which are
    described again; every row is checked. Else it is what it is, and what contradicts that is refused.
    Raises a UserError: it is damaged, or of another model or kind."""
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
    if reason is None and wanted.by_itself:
        engine.wanted = wanted = replace(wanted, local_dim=meta["local_dim"])
    if reason is None and (wanted.local_dim or not engine.next_row) and meta["local_dim"] != wanted.local_dim:
        reason = f"has local descriptors of {meta['local_dim'] or 'no'} dimensions, wanted {wanted.local_dim}"
    if reason is not None:
        foreign = [row for row in engine.rows().tolist() if engine.records.folders[row]]
        others = [row[:-1] for row in engine.store.rows(engine.state.generation, foreign)] + engine.store.lacking()
        also = f"; {len(others)} images of other folders are described again" if others else ""
        say(f"{path} {reason}: making it anew{also}")
        engine.begin_anew({}, others)
    elif damaged := engine.damaged():
        engine.set_aside(damaged)


def _accept(engine: FaissEngine) -> None:
    """Take an index as it is."""
    path, meta, wanted = engine.source.path, engine.meta, engine.wanted
    if engine.state is None:
        return
    if (reason := _other_model(meta, engine.source.provenance)) is not None:
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
        engine.steadily(lambda: engine.leave_out(engine.damaged()))
    engine.load_index()
    if engine.wanted.factory and engine._index is None and engine.count() and meta.get("index_rows"):
        say(f"{path}: the index {engine.wanted.factory} is made again of the descriptors")
        engine.build_index()


def _other_model(meta: Mapping[str, Any], wanted: Mapping[str, str]) -> str | None:
    """In words, why descriptors are not those of the model at hand."""
    found = ((name, meta["provenance"].get(name), value) for name, value in wanted.items())
    other = next((f"{name}={there}, wanted {value}" for name, there, value in found if there != value), None)
    return other and f"was made by another model ({other})"
