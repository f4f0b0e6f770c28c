"""A journal: entries that are appended to a file one by one, each whole or not there.

    NAME.journal    a line that names the format, then entries: length (8 bytes, little-endian), SHA-256 (32), content
    content         length of a JSON text (8), the text (what it says, types and shapes of its arrays), the arrays

An entry is on the disk when `append` returns. Who is cut off while writing one leaves a torn end, which the next writer
cuts off: nothing but that entry is lost.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say

FORMAT = b"netvlad journal 1\n"
REMEDY = "delete it: what it holds is described again"
MERGED = "merged"  # attribute of an index's file: the id of the journal that was merged into it


@dataclass(frozen=True)
class Entry:
    """What one entry says, and its arrays by name."""

    says: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def read_journal(path: Path) -> tuple[list[Entry], int]:
    """The entries of a journal, and how many bytes of the file they take; a torn end does not count.

    Raises:
        UserError: the file is of another format, or an entry before the last is damaged.
    """
    entries, end = list[Entry](), len(FORMAT)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            front = file.read(len(FORMAT))
            if front != FORMAT[: len(front)]:
                raise UserError(f"{path} is no journal of an index, or is damaged: {REMEDY}")
            while (content := _next(file, path, size)) is not None:
                entries.append(_unpacked(content, path))
                end = file.tell()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {REMEDY}") from error
    return entries, end


def _next(file: IO[bytes], path: Path, size: int) -> bytes | None:
    """The next entry's content; None at the end, or where a torn entry begins."""
    head = file.read(40)
    length = int.from_bytes(head[:8], "little")
    if len(head) < 40 or file.tell() + length > size:
        return None
    content = file.read(length)
    if hashlib.sha256(content).digest() != head[8:]:
        if file.tell() == size:  # a machine that lost its power may have written the length alone
            return None
        raise UserError(f"{path} is damaged: an entry does not fit its checksum; {REMEDY}")
    return content


def _packed(entry: Entry) -> bytes:
    arrays = {name: np.ascontiguousarray(values) for name, values in entry.arrays.items()}
    kinds = {name: [values.dtype.str, list(values.shape)] for name, values in arrays.items()}
    text = json.dumps([entry.says, kinds]).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *(values.tobytes() for values in arrays.values())])


def _unpacked(content: bytes, path: Path) -> Entry:
    try:
        at = 8 + int.from_bytes(content[:8], "little")
        says, kinds = json.loads(content[8:at])
        arrays = {}
        for name, (kind, shape) in kinds.items():
            arrays[name] = np.frombuffer(content, np.dtype(kind), math.prod(shape), at).reshape(shape)
            at += arrays[name].nbytes
        return Entry(says, arrays)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} has an entry that cannot be read ({error}): {REMEDY}") from error


class Journal:
    """A journal that is written; nobody else writes it meanwhile.

    Attributes:
        entries: those that were there.
    """

    def __init__(self, path: Path) -> None:
        """Opens the journal, or begins one; a torn end is cut off.

        Raises:
            UserError: another process writes it, or it is damaged or cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b")  # noqa: SIM115 - open as long as entries may come
            _lock(self._file, path)
            self._begin()
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}): make room or choose another folder") from error

    def _begin(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        whole_front = size >= len(FORMAT)
        self.entries, end = read_journal(self.path) if whole_front else (list[Entry](), 0)
        if end < size:
            say(f"{self.path}: the last entry was cut off while it was written, and is dropped")
            self._file.truncate(end)
        if not whole_front:
            self._file.write(FORMAT)
            self._kept()

    def append(self, entry: Entry) -> None:
        """Add an entry; it is on the disk, whole, when this returns, or the file is as it was.

        Raises:
            UserError: it cannot be written.
        """
        content, end = _packed(entry), os.fstat(self._file.fileno()).st_size
        try:
            self._file.write(len(content).to_bytes(8, "little") + hashlib.sha256(content).digest())
            self._file.write(content)
            self._kept()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise UserError(f"cannot write {self.path} ({error.strerror}): make room; what it holds stays") from error

    def _kept(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def delete(self) -> None:
        """What it holds is elsewhere now."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def set_aside(self, mark: str) -> None:
        """Keep what it holds in a file of another name, of which `mark` is the end, and say so."""
        kept = self.path.with_name(f"{self.path.name}.{mark}")
        say(f"{self.path} goes on from another file than is there: kept as {kept}")
        self.path.replace(kept)
        self._file.close()

    def close(self) -> None:
        """Nothing more will be written."""
        self._file.close()


def _lock(file: IO[bytes], path: Path) -> None:
    """Hold a file for this process alone; its end, however it comes, lets go. Not on file systems without locks."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path} is being written by another process: end that first") from None
    except OSError:
        return
    if not os.path.exists(path) or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise UserError(f"{path} was being written by another process, which has just ended: try again")


def entries_of(path: Path) -> Iterator[Entry]:
    """The entries of a journal that is only read; none where there is no journal."""
    if path.is_file():
        yield from read_journal(path)[0]


def belongs(entries: Sequence[Entry], seal: str, provenance: Mapping[str, str]) -> bool:
    """Whether a journal goes on where a file ends; one that was merged already, or of another model, does not."""
    return bool(entries) and (entries[0].says["base"], entries[0].says["provenance"]) == (seal, dict(provenance))


def id_of(entries: Sequence[Entry]) -> str:
    """That of the journal with these entries; an earlier version gave it none."""
    return str(entries[0].says.get("id", "")) if entries else ""


def is_merged(entries: Sequence[Entry], attributes: Mapping[str, Any]) -> bool:
    """Whether what a journal holds is in the file of which these are attributes: who merged it was then cut off."""
    return id_of(entries) == attributes.get(MERGED)


def remove_journal(path: Path) -> None:
    """Delete a journal, if there is one, whatever it holds.

    Raises:
        UserError: another process writes it.
    """
    if path.is_file():
        with open(path, "rb") as file:
            _lock(file, path)
            path.unlink(missing_ok=True)
