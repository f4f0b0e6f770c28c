"""Flat files of a store, to which one process at a time appends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vpr.common.errors import UserError
from vpr.common.files import take_lock
from vpr.database.engine import WrittenByAnother

ENDINGS = ("descriptors", "local", "faiss", "lists")  # of files of a generation


class FlatFiles:
    """The files NAME.G.ENDING beside NAME.sqlite, and the right to write them."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened or written yet; `path` is that of NAME.sqlite."""
        self.path = path
        self._held: IO[bytes] | None = None

    def flat(self, generation: int, ending: str) -> Path:
        """The path of a file of a generation."""
        return self.path.with_name(f"{self.path.stem}.{generation}.{ending}")

    @property
    def held(self) -> bool:
        """Whether this process is the one that writes."""
        return self._held is not None

    def hold(self) -> bool:
        """Be the one that writes, until `release`; False where it is already.
        Raises a UserError: another process is (WrittenByAnother), or the folder cannot be written."""
        if self._held is not None:
            return False
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = take_lock(lock, needed=True)  # two writers would overwrite each other
        except OSError as error:
            raise self.unwritten(error) from error
        if file is None:
            raise WrittenByAnother(f"{self.path} is being written by another process: end that first")
        self._held = file
        return True

    def release(self) -> None:
        """Let others write."""
        if self._held is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._held.name)  # while it is held
            self._held.close()
        self._held = None

    def create(self, generation: int, ending: str) -> None:
        """An empty flat file; one that a writer left which was cut off is another file, whatever still reads it."""
        self.hold()
        path = self.flat(generation, ending)
        try:
            path.unlink(missing_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            sync_folder(path.parent)
        except OSError as error:
            raise self.unwritten(error) from error

    def write(self, generation: int, ending: str, at: int, data: memoryview, sync: bool = True) -> None:
        """Bytes at an offset of a flat file, on the disk when it returns."""
        self.hold()
        try:
            file = os.open(self.flat(generation, ending), os.O_WRONLY)
            try:
                left = data.cast("B")
                while left:
                    written = os.pwrite(file, left, at)
                    left, at = left[written:], at + written
                if sync:
                    os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise self.unwritten(error) from error

    def remove_generations(self, generation: int) -> None:
        """Remove the flat files of other generations; who reads them has them open."""
        for path, number, ending in self.of_generations():
            if number != generation and ending.rpartition(".")[2] in ENDINGS:
                with contextlib.suppress(OSError):
                    path.unlink()

    def of_generations(self) -> Iterator[tuple[Path, int, str]]:
        """Files of all generations, with its number and what stands behind that in the name."""
        for path in self.path.parent.iterdir():
            number, _, ending = path.name.removeprefix(f"{self.path.stem}.").partition(".")
            if path.name.startswith(f"{self.path.stem}.") and number.isdecimal():
                yield path, int(number), ending

    def unwritten(self, error: BaseException) -> UserError:
        """What is raised where something cannot be written."""
        reason = getattr(error, "strerror", None) or str(error)
        return UserError(
            f"cannot write {self.path} ({reason}), nothing has changed: make room or choose another folder"
        )


def sync_folder(folder: Path) -> None:
    """Have names of new files on the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
