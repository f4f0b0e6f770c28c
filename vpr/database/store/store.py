"""What is known of a database's images: no acknowledged change is lost, and none that was refused happens.

    NAME.sqlite           what is known of each image, and which row its descriptors have
    NAME.G.descriptors    float16 [rows, dim], one row after the other
    NAME.G.local          int8 [places of all rows, d]: local descriptors, where they are kept, in the order of rows

Descriptors are appended behind the rows that SQLite knows of, and synced; then SQLite commits: the commit makes a row
real. What lies behind the committed rows was left by a writer that was cut off, and the next one writes over it. A row
is never changed: a replaced or removed image is marked as gone, until the rows that are left are copied into the files
of another generation G. Records of the generation before stay, for readers that are still there.

One process writes (`FlatFiles.hold`); any number read meanwhile. SQLite keeps a rollback journal: write-ahead logs want
memory that all processes share, which network disks do not have (https://sqlite.org/wal.html), and readers here hold
their lock for one statement, so that they and a commit wait for each other for milliseconds.

Each row has a CRC-32 of its descriptor and its record. Rows are compared with it when they are copied, and all of them
by `damaged`; not when they are searched, which would read an index of gigabytes before its first answer.
"""

import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.database.records import Records
from vpr.database.store.flat_files import FlatFiles
from vpr.database.store.sqlite_file import REMEDY, SqliteFile
from vpr.database.store.table import RECORD, ROW, as_bytes, as_text, checksum, local_columns, rows_of
from vpr.descriptors.local_maps import FileValues, LocalMaps, QuantizedMap, starts_of
from vpr.models.local_projection import LocalProjection

BLOCK_BYTES = 64 << 20  # of descriptors that are copied or checked at a time


@dataclass(frozen=True)
class State:
    """What one commit left.

    Attributes:
        meta: what is said of the database as a whole: provenance, zone, whether it was edited, ...
        generation: of the flat files.
        rows: how many rows they have.
        gone: int64, those of images that were removed or replaced.
    """

    meta: Mapping[str, Any]
    generation: int
    rows: int
    gone: np.ndarray


class Store:
    """The files of one database; any thread may ask, one at a time is answered.

    Attributes:
        path: of NAME.sqlite.
        dim: of a descriptor.
        files: beside it; `files.hold` is the right to write.
    """

    def __init__(self, path: Path, dim: int) -> None:
        """Nothing is opened or written yet."""
        self.path, self.dim, self.files = path, dim, FlatFiles(path)
        self._table = SqliteFile(path, self.files)

    def state(self) -> State | None:
        """What the last commit left; None: there is no database yet.

        Raises:
            UserError: the file cannot be read, or is damaged.
        """
        found = self._table.last_commit()
        if found is None:
            return None
        meta, gone = found
        return State(meta, meta["generation"], meta["rows"], gone)

    def changed(self) -> bool:
        """Whether somebody has committed since `state` was asked for."""
        return self._table.changed()

    def columns(self, generation: int, names: Sequence[str], start: int, stop: int) -> list[tuple]:
        """Columns of the table of images for rows start .. stop - 1.

        Raises:
            UserError: the file is damaged, or lacks the rows.
        """
        ask = f"SELECT {', '.join(names)} FROM images WHERE generation = ? AND row >= ? AND row < ? ORDER BY row"
        with self._table.reading() as connection:
            found = connection.execute(ask, (generation, start, stop)).fetchall() if connection else []
        if len(found) != stop - start:
            raise UserError(f"{self.path} has lost {stop - start - len(found):,} rows: {REMEDY}")
        return found

    def lacking(self) -> list[tuple]:
        """RECORD of images whose descriptors are to be made again."""
        with self._table.reading() as connection:
            ask = f"SELECT {', '.join(RECORD)} FROM lacking ORDER BY rowid"
            return connection.execute(ask).fetchall() if connection else []

    def projection(self) -> LocalProjection | None:
        """What projected the local descriptors; None where the model did, or there are none."""
        with self._table.reading() as connection:
            ask = "SELECT mean, components, learnt_on FROM projection"
            found = connection.execute(ask).fetchone() if connection else None
        if found is None:
            return None
        mean = torch.from_numpy(np.frombuffer(found[0], np.float32).copy())
        return LocalProjection(
            mean, torch.from_numpy(np.frombuffer(found[1], np.float32).copy()).view(-1, len(mean)), found[2]
        )

    def descriptors(self, state: State) -> torch.Tensor:
        """float16 [rows, dim], mapped into memory: read from the disk as they are used.

        Where the file has become shorter there are fewer rows.
        """
        if not state.rows:
            return torch.empty(0, self.dim, dtype=torch.float16)
        path = self.files.flat(state.generation, "descriptors")
        try:
            rows = min(state.rows, path.stat().st_size // (2 * self.dim))
            if not rows:
                return torch.empty(0, self.dim, dtype=torch.float16)
            # Copied on write, since torch warns of memory that cannot be written.
            return torch.from_numpy(np.memmap(path, np.float16, "c", shape=(rows, self.dim)))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): {REMEDY}") from error

    def local(self, state: State, grids: np.ndarray, checksums: np.ndarray) -> LocalMaps:
        """Local descriptors by row, of which each image's are compared with their checksum when they are read."""
        path, dim = self.files.flat(state.generation, "local"), int(state.meta["local_stored"])
        starts = starts_of(grids.prod(axis=1, dtype=np.int64))
        return LocalMaps(FileValues(path, int(starts[-1]), dim), grids, starts, checksums, str(path))

    def damaged(self, state: State) -> list[int]:
        """The rows of images, not gone, whose descriptor, local descriptors or record do not fit their checksums."""
        there = np.ones(state.rows, bool)
        there[state.gone] = False
        values, found = self.descriptors(state), list[int]()
        step = max(1, BLOCK_BYTES // (2 * self.dim))
        for start in range(0, state.rows, step):
            rows = self.columns(state.generation, (*RECORD, "crc"), start, min(start + step, state.rows))
            block = values[start : start + step].numpy()
            for row, known in enumerate(rows, start):
                whole = row < len(values) and known[-1] == checksum(known[:-1], block[row - start])
                if there[row] and not whole:
                    found.append(row)
        if state.meta.get("local_stored"):
            maps = self.columns(state.generation, ROW[-3:], 0, state.rows)
            local = self.local(state, *local_columns(maps))
            for row in np.setdiff1d(np.flatnonzero(there), found):
                try:
                    local.rows(int(row))
                except UserError:
                    found.append(int(row))
        return sorted(found)

    def begin(self, state: State | None, meta: Mapping[str, Any], lacking: Sequence[tuple] = ()) -> None:
        """A generation without images.

        Args:
            state: of the generation before, if there is one.
            lacking: RECORD of images to be described again.
        """
        generation = state.generation + 1 if state else 1
        for ending in ("descriptors", "local") if meta["local_dim"] else ("descriptors",):
            self.files.create(generation, ending)
        with self._table.writing(meta, generation, 0) as connection:
            connection.execute("DELETE FROM projection")
            self._lack(connection, lacking)
            self._forget_generations(connection, generation)
        self.files.remove_generations(generation)

    def append(
        self,
        state: State,
        meta: Mapping[str, Any],
        records: Records,
        descriptors: torch.Tensor,
        local: Sequence[QuantizedMap] | None,
    ) -> None:
        """Images in new rows, in place of those of their names."""
        values = np.ascontiguousarray(descriptors.to(torch.float16).cpu().numpy())
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

        Args:
            names: of images that are not described again either.
            lacking: RECORD of those that are to be.
        """
        with self._table.writing(meta, state.generation, state.rows) as connection:
            which = "UPDATE images SET gone = 1 WHERE generation = ? AND row = ?"
            connection.executemany(which, [(state.generation, int(row)) for row in rows])
            connection.executemany("DELETE FROM lacking WHERE name = ?", [(as_bytes(name),) for name in names])
            self._lack(connection, lacking)

    def say(self, state: State, meta: Mapping[str, Any], projection: LocalProjection | None = None) -> None:
        """Change what is said of the database as a whole."""
        with self._table.writing(meta, state.generation, state.rows) as connection:
            if projection is not None:
                arrays = [values.float().cpu().numpy().tobytes() for values in (projection.mean, projection.components)]
                connection.execute("DELETE FROM projection")
                connection.execute("INSERT INTO projection VALUES (?, ?, ?)", (*arrays, projection.learnt_on))

    def rewrite(self, state: State, meta: Mapping[str, Any], rows: np.ndarray, local: LocalMaps | None) -> None:
        """Copy some rows, in the order given, into a new generation, after each has been found whole.

        Args:
            local: theirs, by row, where they are kept.

        Raises:
            UserError: a row is damaged, or there is no room; the generation that was there stays.
        """
        generation, values = state.generation + 1, self.descriptors(state)
        known = self.columns(state.generation, (*RECORD, "crc"), 0, state.rows)
        step, places = max(1, BLOCK_BYTES // (2 * self.dim)), 0
        try:
            for ending in ("descriptors",) if local is None else ("descriptors", "local"):
                self.files.create(generation, ending)
            for start in range(0, len(rows), step):
                some = rows[start : start + step]
                block = np.ascontiguousarray(values[torch.from_numpy(some)].numpy())
                self.require_whole([known[row] for row in some], block)
                self.files.write(generation, "descriptors", 2 * self.dim * start, block.data)
                for row in some if local is not None else ():
                    assert local is not None
                    own = np.ascontiguousarray(local.rows(int(row)))
                    self.files.write(generation, "local", places, own.data, sync=False)
                    places += own.nbytes
            if local is not None:
                self.files.write(generation, "local", places, memoryview(b""))
            kept = ROW if local is not None else ROW[: -len(ROW[-3:])]
            copied = (
                f"INSERT INTO images (generation, row, {', '.join(kept)}) SELECT ?, ?, {', '.join(kept)} "
                "FROM images WHERE generation = ? AND row = ?"
            )
            with self._table.writing({**meta, "local_bytes": places}, generation, len(rows)) as connection:
                numbers = ((generation, new, state.generation, int(old)) for new, old in enumerate(rows))
                self._forget_generations(connection, generation)
                connection.executemany(copied, numbers)
                if local is None:
                    connection.execute("DELETE FROM projection")
        except UserError:
            for ending in ("descriptors", "local"):
                self.files.flat(generation, ending).unlink(missing_ok=True)
            raise
        self.files.remove_generations(generation)

    def require_whole(self, known: Sequence[tuple], values: np.ndarray) -> None:
        """Raise a UserError unless descriptors [n, dim] fit the checksums, which stand behind RECORD, of their rows."""
        for record, value in zip(known, values, strict=True):
            if checksum(record[:-1], value) != record[-1]:
                raise UserError(
                    f"{self.path}: the descriptor of {as_text(record[0])} is damaged: --mode=index describes it again"
                )

    def close(self) -> None:
        """Let go of all files."""
        self.files.release()
        self._table.close()

    def _lack(self, connection: sqlite3.Connection, records: Sequence[tuple]) -> None:
        places = ", ".join("?" * len(RECORD))
        connection.executemany(f"INSERT OR REPLACE INTO lacking VALUES ({places})", records)

    def _forget_generations(self, connection: sqlite3.Connection, generation: int) -> None:
        """Records of the generation before this one stay, for those who read it and have not read them yet."""
        connection.execute("DELETE FROM images WHERE generation < ?", (generation - 1,))
