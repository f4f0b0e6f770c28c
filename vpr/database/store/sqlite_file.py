"""The table of a store: a file of SQLite that one process writes and any number read meanwhile."""

import contextlib
import json
import os
import secrets
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from vpr.common.errors import UserError
from vpr.database.store.flat_files import FlatFiles, sync_folder
from vpr.database.store.table import RECORD, ROW

FORMAT = 1
REMEDY = "make it anew with --mode=index, or name another with --indexFile"
PATIENCE = 60.0  # seconds that a statement waits for another process's
SCHEMA = f"""
CREATE TABLE meta (content TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE projection (mean BLOB NOT NULL, components BLOB NOT NULL, learnt_on TEXT NOT NULL);
CREATE TABLE images (generation INTEGER, row INTEGER, {", ".join(ROW)}, gone INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (generation, row)) WITHOUT ROWID;
CREATE UNIQUE INDEX once ON images (generation, name) WHERE gone = 0;
CREATE INDEX removed ON images (generation, row) WHERE gone = 1;
CREATE TABLE lacking ({", ".join(RECORD)}, PRIMARY KEY (name));
"""


class SqliteFile:
    """Transactions on NAME.sqlite; any thread may ask, one at a time is answered."""

    def __init__(self, path: Path, files: FlatFiles) -> None:
        """Nothing is opened or written yet; `files.hold` is the right to write."""
        self.path, self.files, self._lock = path, files, threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[object, ...] = ()
        self._seen: tuple[object, ...] = ()

    def last_commit(self) -> tuple[dict[str, Any], np.ndarray] | None:
        """What the last commit said of the whole, and the rows int64 [n] that are gone; None: there is no database.
        Raises a UserError: the file cannot be read, or is damaged."""
        with self.reading() as connection:
            self._seen = self._version()
            if connection is None:
                return None
            with connection:
                connection.execute("BEGIN")  # one commit's, though another follows meanwhile
                content, crc = connection.execute("SELECT content, crc FROM meta").fetchone() or ("", -1)
                if not isinstance(content, str) or zlib.crc32(content.encode()) != crc:
                    raise UserError(f"{self.path} is damaged (its table meta does not fit its checksum): {REMEDY}")
                meta = json.loads(content)
                if meta["format"] != FORMAT:
                    raise UserError(f"{self.path} is of format {meta['format']}, wanted {FORMAT}: {REMEDY}")
                which = "SELECT row FROM images INDEXED BY removed WHERE generation = ? AND gone = 1"
                found = connection.execute(which, (meta["generation"],)).fetchall()
            return meta, np.array(found, np.int64).ravel()  # an error where a damaged page gives something else

    def changed(self) -> bool:
        """Whether somebody has committed since `last_commit` was asked for."""
        with self.reading():
            return self._version() != self._seen

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """The connection, which is opened again where another file has taken the place; None: there is none."""
        with self._lock:
            try:
                now = self._version()[:2]
                if self._connection is not None and now and self._opened != now:
                    self._connection.close()
                    self._connection = None
                if self._connection is None and now:
                    self._connection, self._opened = self._connect("rw"), now
                there = self._connection is not None and self._seen_tables(self._connection)
                yield self._connection if there else None
            except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path} cannot be read as an index ({error}): {REMEDY}") from error

    @contextlib.contextmanager
    def writing(self, meta: Mapping[str, Any], generation: int, rows: int) -> Iterator[sqlite3.Connection]:
        """A transaction, committed with what is said of the whole when the block ends well, else as if it never was.
        Raises a UserError: it cannot be written."""
        self.files.hold()
        with self._lock:
            try:
                if self._connection is None:
                    new = not self.path.exists()
                    self._connection = self._connect("rwc")
                    self._opened = self._version()[:2]
                    if new:
                        sync_folder(self.path.parent)
                connection = self._connection
                connection.execute("BEGIN IMMEDIATE")
                if not self._seen_tables(connection):
                    for statement in SCHEMA.split(";"):
                        connection.execute(statement)
                yield connection
                began, commit = meta.get("began", secrets.token_hex(8)), max(time.time_ns(), meta.get("commit", 0) + 1)
                said = {"format": FORMAT, "generation": generation, "rows": rows, "began": began, "commit": commit}
                content = json.dumps({**meta, **said})
                connection.execute("DELETE FROM meta")
                connection.execute("INSERT INTO meta VALUES (?, ?)", (content, zlib.crc32(content.encode())))
                connection.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):
                    if self._connection is not None:
                        self._connection.rollback()
                if isinstance(error, sqlite3.Error | OSError):
                    raise self.files.unwritten(error) from error
                raise

    def close(self) -> None:
        """Let go of all files."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _version(self) -> tuple[object, ...]:
        """Another one after each commit of another process, and where another file lies there; empty without a file."""
        try:
            status = os.stat(self.path)
        except OSError:
            return ()
        version = self._connection.execute("PRAGMA data_version").fetchone() if self._connection else None
        return status.st_dev, status.st_ino, version

    def _seen_tables(self, connection: sqlite3.Connection) -> bool:
        return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None

    def _connect(self, mode: str) -> sqlite3.Connection:
        """A connection; one that only reads where the file cannot be written, which then has no journal of a writer."""
        address = f"file:{quote(os.fsencode(self.path))}?mode="
        if mode == "rw" and not os.access(self.path, os.W_OK):
            mode = "ro"
        connection = sqlite3.connect(
            address + mode, timeout=PATIENCE, isolation_level=None, check_same_thread=False, uri=True
        )
        connection.execute("PRAGMA synchronous = EXTRA")  # the folder is synced too when the journal is gone
        connection.execute("PRAGMA cache_spill = OFF")  # else a large transaction shuts readers out before its commit
        return connection
