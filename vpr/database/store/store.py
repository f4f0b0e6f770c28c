"""What is known of a database's images: no acknowledged change is lost, and none that was refused happens.

    NAME.sqlite           what is known of each image, and which row its descriptors have
    NAME.G.descriptors    float16 [rows, dim], one row after the other
    NAME.G.local          int8 [cells of all rows, d]: local descriptors, where they are kept, in the order of rows

Descriptors are appended behind the rows that SQLite knows of, and synced; then SQLite commits: the commit makes a row
real. What lies behind the committed rows was left by a writer that was cut off, and the next one writes over it. A row
is never changed: a replaced or removed image is marked as gone, until the rows that are left are copied into the files
of another generation G. Records of earlier generations stay for a while, for readers that are still there.

One process writes (`FlatFiles.hold`); any number read meanwhile. SQLite keeps a rollback journal: write-ahead logs want
memory that all processes share, which network disks do not have (https://sqlite.org/wal.html), and readers here hold
their lock for one statement, so that they and a commit wait for each other for milliseconds.

Each row has a CRC-32 of its descriptor and its record. Rows are compared with it when they are copied and when they are
hits; all of them only when they are few, since an index of gigabytes would be read before its first answer.
"""

import sqlite3
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vpr.common.errors import UserError
from vpr.database.records import Records
from vpr.database.store.flat_files import FlatFiles
from vpr.database.store.sqlite_file import REMEDY, SqliteFile
from vpr.database.store.table import RECORD, ROW, as_bytes, as_text, checksum, is_whole, rows_of
from vpr.descriptors.local_maps import FileValues, LocalMaps, QuantizedMap
from vpr.models.local_projection import LocalProjection

BLOCK_BYTES = 64 << 20  # of descriptors that are copied at a time
KEPT_SECONDS = 600  # that records of an earlier generation stay; those of the last one stay anyway


@dataclass(frozen=True)
class State:
    """What one commit left."""

    meta: Mapping[str, Any]  # what is said of the database as a whole: provenance, zone, whether it was edited, ...
    generation: int  # of the flat files
    rows: int  # how many rows they have
    gone: np.ndarray  # int64, those of images that were removed or replaced

    def follows(self, earlier: "State | None") -> bool:
        """Whether rows are what they were: of one generation, in a file that is no other one, as a backup would be."""
        if earlier is None or self.meta.get("began") != earlier.meta.get("began"):
            return False
        return self.generation == earlier.generation and self.meta.get("commit", 0) >= earlier.meta.get("commit", 0)


class Store:
    """The files of one database; any thread may ask, one at a time is answered."""

    def __init__(self, path: Path, dim: int) -> None:
        """Nothing is opened or written yet; `path` is that of NAME.sqlite, `dim` of a descriptor."""
        self.path, self.dim, self.files = path, dim, FlatFiles(path)  # `files.hold` is the right to write
        self._table = SqliteFile(path, self.files)
        self.changed = self._table.changed

    def state(self) -> State | None:
        """What the last commit left; None: there is no database yet. Raises a UserError: damaged or not readable."""
        if (found := self._table.last_commit()) is None:
            return None
        meta, gone = found
        return State(meta, meta["generation"], meta["rows"], gone)

    def columns(self, generation: int, names: Sequence[str], start: int, stop: int) -> list[tuple]:
        """Columns of the table of images for rows start .. stop - 1.
        Raises a UserError: the file is damaged, or lacks the rows."""
        ask = f"SELECT {', '.join(names)} FROM images WHERE generation = ? AND row >= ? AND row < ? ORDER BY row"
        return self._found(ask, (generation, start, stop), stop - start)

    def rows(self, generation: int, rows: Sequence[int]) -> list[tuple]:
        """RECORD and checksum of some rows. Raises a UserError as `columns` does."""
        ask = (
            f"SELECT {', '.join(f'images.{name}' for name in (*RECORD, 'crc'))} FROM json_each(?) AS wanted CROSS JOIN "
            "images ON generation = ? AND row = wanted.value ORDER BY wanted.key"
        )
        return self._found(ask, (f"[{','.join(map(str, rows))}]", generation), len(rows))

    def _found(self, ask: str, values: tuple, count: int) -> list[tuple]:
        if (lost := count - len(found := self._ask(ask, values))) != 0:
            raise UserError(f"{self.path} has lost {lost:,} rows: {REMEDY}")
        return found

    def _ask(self, statement: str, values: tuple = ()) -> list[tuple]:
        with self._table.reading() as connection:
            return connection.execute(statement, values).fetchall() if connection else []

    def lacking(self) -> list[tuple]:
        """RECORD of images whose descriptors are to be made again."""
        return self._ask(f"SELECT {', '.join(RECORD)} FROM lacking ORDER BY rowid")

    def projection(self) -> LocalProjection | None:
        """What projected the local descriptors; None where the model did, or there are none."""
        for *arrays, learnt_on in self._ask("SELECT mean, components, learnt_on FROM projection"):
            mean, components = (np.frombuffer(values, np.float32) for values in arrays)
            return LocalProjection(mean, components.reshape(-1, len(mean)), learnt_on)
        return None

    def flat(self, state: State | None) -> tuple[np.ndarray, FileValues | None]:
        """Descriptors float16 [rows, dim], mapped into memory, and local ones int8 [cells, d], where they are kept.

        Both are read from the disk as they are used. Where the file has become shorter there are fewer rows.
        Raises a UserError: a file cannot be read; where the generation is no longer the last, it has been removed.
        """
        values, local = np.empty((0, self.dim), np.float16), None
        try:
            if state is not None and state.rows:
                path = self.files.flat(state.generation, "descriptors")
                if rows := min(state.rows, path.stat().st_size // (2 * self.dim)):
                    values = np.asarray(np.memmap(path, np.float16, "r", shape=(rows, self.dim)))
            if state is not None and (dim := state.meta.get("local_stored")):
                path = self.files.flat(state.generation, "local")
                local = FileValues(path, state.meta["local_bytes"] // dim, dim)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}): {REMEDY}") from error
        return values, local

    def begin(self, state: State | None, meta: Mapping[str, Any], lacking: Sequence[tuple] = ()) -> None:
        """A generation without images.
        `state`: of the generation before, if there is one. `lacking`: RECORD of images to be described again."""
        generation, earlier = _next(state)
        for ending in ("descriptors", "local") if meta["local_dim"] else ("descriptors",):
            self.files.create(generation, ending)
        with self._table.writing({**meta, "earlier": earlier}, generation, 0) as connection:
            connection.execute("DELETE FROM projection")
            self._lack(connection, lacking)
            self._forget(connection, generation, earlier)
        self.files.remove_generations(generation)

    def append(
        self, state: State, meta: Mapping[str, Any], records: Records, descriptors: np.ndarray,
        local: Sequence[QuantizedMap] | None,
    ) -> None:  # fmt: skip
        """Images in new rows, in place of those of their names."""
        values = np.ascontiguousarray(descriptors, np.float16)
        known, start = rows_of(records), state.rows
        grids = [(*grid, zlib.crc32(np.ascontiguousarray(rows).data)) for rows, grid in local or ()]
        rows = [
            (state.generation, start + n, *record, checksum(record, value), *(grids[n] if grids else (None,) * 3), 0)
            for n, (record, value) in enumerate(zip(known, values, strict=True))
        ]
        self.files.write(state.generation, "descriptors", 2 * self.dim * start, values.data)
        more = dict(meta)
        if local:
            joined = np.ascontiguousarray(np.concatenate([each for each, _ in local]))
            at = int(meta.get("local_bytes", 0))
            self.files.write(state.generation, "local", at, joined.data)
            more |= {"local_bytes": at + joined.nbytes, "local_stored": joined.shape[1]}
        with self._table.writing(more, state.generation, start + len(rows)) as connection:
            names = [(state.generation, record[0]) for record in known]
            connection.executemany("UPDATE images SET gone = 1 WHERE generation = ? AND name = ? AND gone = 0", names)
            connection.executemany("DELETE FROM lacking WHERE name = ?", [(record[0],) for record in known])
            connection.executemany(f"INSERT INTO images VALUES ({', '.join('?' * len(rows[0]))})", rows)

    def remove(
        self, state: State, meta: Mapping[str, Any], rows: Sequence[int], names: Sequence[str] = (),
        lacking: Sequence[tuple] = (),
    ) -> None:  # fmt: skip
        """Mark images as gone.
        `names`: of images that are not described again either. `lacking`: RECORD of those that are to be."""
        with self._table.writing(meta, state.generation, state.rows) as connection:
            which = "UPDATE images SET gone = 1 WHERE generation = ? AND row = ?"
            connection.executemany(which, [(state.generation, int(row)) for row in rows])
            connection.executemany("DELETE FROM lacking WHERE name = ?", [(as_bytes(name),) for name in names])
            self._lack(connection, lacking)

    def say(self, state: State, meta: Mapping[str, Any], projection: LocalProjection | None = None) -> None:
        """Change what is said of the database as a whole."""
        with self._table.writing(meta, state.generation, state.rows) as connection:
            if projection is not None:
                arrays = [values.astype(np.float32).tobytes() for values in (projection.mean, projection.components)]
                connection.execute("DELETE FROM projection")
                connection.execute("INSERT INTO projection VALUES (?, ?, ?)", (*arrays, projection.learnt_on))

    def rewrite(self, state: State, meta: Mapping[str, Any], rows: np.ndarray, local: LocalMaps | None) -> None:
        """Copy some rows, in the order given, into a new generation, after each has been found whole.

        With their local descriptors, by row, where they are kept. Raises a UserError: a row is damaged, or there is no
        room; the generation that was there stays.
        """
        generation, earlier = _next(state)
        try:
            size = self._copy_flat(state, generation, rows, local)
            kept = ", ".join(ROW if local is not None else (*RECORD, "crc"))
            copied = (
                f"INSERT INTO images (generation, row, {kept}) SELECT ?, ?, {kept} "
                "FROM images WHERE generation = ? AND row = ?"
            )
            meta = {**meta, "local_bytes": size, "earlier": earlier}
            with self._table.writing(meta, generation, len(rows)) as connection:
                self._forget(connection, generation, earlier)
                numbers = ((generation, new, state.generation, int(old)) for new, old in enumerate(rows))
                connection.executemany(copied, numbers)
                if local is None:
                    connection.execute("DELETE FROM projection")
        except UserError:
            for ending in ("descriptors", "local"):
                self.files.flat(generation, ending).unlink(missing_ok=True)
            raise
        self.files.remove_generations(generation)

    def _copy_flat(self, state: State, generation: int, rows: np.ndarray, local: LocalMaps | None) -> int:
        """Copy descriptors, and local ones where they are kept, into files of a generation; the latter's bytes."""
        (values, _), step, size = self.flat(state), max(1, BLOCK_BYTES // (2 * self.dim)), 0
        for ending in ("descriptors",) if local is None else ("descriptors", "local"):
            self.files.create(generation, ending)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            block = values[some]
            self.require_whole(state.generation, some, block)
            self.files.write(generation, "descriptors", 2 * self.dim * start, block.data)
            for row in some if local is not None else ():
                own = np.ascontiguousarray(local.rows(int(row)))  # type: ignore[union-attr]
                self.files.write(generation, "local", size, own.data, sync=False)
                size += own.nbytes
        if local is not None:
            self.files.write(generation, "local", size, memoryview(b""))  # syncs
        return size

    def require_whole(self, generation: int, rows: np.ndarray, values: np.ndarray) -> None:
        """Raise a UserError unless descriptors [n, dim] fit the checksums of their rows."""
        for known, value in zip(self.rows(generation, rows.tolist()), values, strict=True):
            if not is_whole(known, value):
                raise UserError(
                    f"{self.path}: the descriptor of {as_text(known[0])} is damaged: --mode=index describes it again"
                )

    def close(self) -> None:
        """Let go of all files."""
        self.files.release()
        self._table.close()

    def _lack(self, connection: sqlite3.Connection, records: Sequence[tuple]) -> None:
        marks = ", ".join("?" * len(RECORD))
        connection.executemany(f"INSERT OR REPLACE INTO lacking VALUES ({marks})", records)

    def _forget(self, connection: sqlite3.Connection, generation: int, earlier: list[tuple[int, float]]) -> None:
        """Delete the records of all generations but this one and those that are kept for readers."""
        oldest = min((each for each, _ in earlier), default=generation)
        connection.execute("DELETE FROM images WHERE generation < ?", (oldest,))


def _next(state: State | None) -> tuple[int, list[tuple[int, float]]]:
    """The generation after a state's; and earlier ones whose records are kept, with the times when they were replaced.

    These are the last one, and those that somebody may have opened who has not read all records yet.
    """
    if state is None:
        return 1, []
    now = time.time()
    recent = [(each, then) for each, then in state.meta.get("earlier", ()) if now - then < KEPT_SECONDS]
    return state.generation + 1, [*recent, (state.generation, now)]
