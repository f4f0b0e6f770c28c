"""Files that are either whole or not there."""

import contextlib
import errno
import functools
import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vpr.common.errors import UserError

LONGEST_WAIT = 60.0  # seconds for another process to add its entry
LEFTOVER_AGE = 24 * 3600.0  # seconds after which nobody writes to a temporary file any more
TEMPORARY = re.compile(r"\..+\.(?P<host>\w+)-(?P<process>\d+)-\d+\.part")
_numbers = itertools.count()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` and rename it onto `path` when the block ends well.

    A reader never sees half a file, and what stood at `path` survives a failed write. Several processes may write at
    once, each under a name of its own; the last one's file stays. Raises a UserError: the block could not write (disk
    full, no permission, ...), or `path` is a device or a pipe, which a renamed file would replace.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"cannot write {path}: found a device or a pipe, wanted the name of a file; name another")
    beginning = os.fsencode(path.name)[:160].decode(errors="ignore")  # file systems count bytes
    temporary = path.with_name(f".{beginning}.{host()}-{os.getpid()}-{next(_numbers)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    # torch.save and h5py report a full disk as RuntimeError, everything else as OSError.
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else "writing broke off"  # their texts help nobody
        kept = "; the file that was there is unchanged" if path.exists() else ""
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free / 1e6  # libraries often do not say that the disk is full
        raise UserError(
            f"cannot write {path} ({reason}; {free:.0f} MB are free){kept}: make room or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())[:24]


@functools.cache
def _remove_leftovers(folder: Path) -> None:
    """Remove, once, what writers left in a folder that were killed: dead ones of this host, and all older than a day.

    Other hosts may write into the same folder, so a writer's number says nothing about theirs.
    """
    for name in os.listdir(folder):
        writer = TEMPORARY.fullmatch(name)
        if not writer:
            continue
        file = folder / name
        with contextlib.suppress(OSError):
            dead = writer["host"] == host() and not _runs(int(writer["process"]))
            if dead or time.time() - file.stat().st_mtime > LEFTOVER_AGE:
                file.unlink()


def _runs(process: int) -> bool:
    """Whether a process of this host runs; True where that cannot be told."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)  # asks, sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that ask likewise from changing `path` until the block ends.

    On file systems without locks the block runs unprotected.
    Raises a UserError: another process has held the lock for LONGEST_WAIT seconds, or the folder is not writable.
    """
    lock = path.with_name(f".{path.name}.lock")
    deadline = time.monotonic() + LONGEST_WAIT
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (held := take_lock(lock)) is None:
            if time.monotonic() > deadline:
                raise UserError(f"{path} is being written by another process for {LONGEST_WAIT:.0f} s: end that first")
            time.sleep(0.02)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): make room or choose another folder") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)  # while it is held
        held.close()


def take_lock(lock: Path, needed: bool = False) -> IO | None:
    """The lock file, open and locked; None while another process has it. Its end ends the lock, however it comes.

    Who closes it removes it first. On file systems without locks it is open and locks nothing.
    Raises an OSError: it cannot be made, or is `needed` on a file system without locks.
    """
    file = open(lock, "ab")  # noqa: SIM115 - the caller closes it
    with contextlib.suppress(FileNotFoundError):
        held = flock(file)
        # Not removed meanwhile by the one who had it.
        if held is None and needed:
            file.close()
            raise OSError(errno.ENOLCK, "its file system has no locks")
        if held is None or (held and os.path.samestat(os.fstat(file.fileno()), lock.stat())):
            return file
    file.close()
    return None


def flock(file: IO, wait: bool = False) -> bool | None:
    """Lock an open file for this process until it is closed; with `wait` once no other has it locked.
    False: another process has; None: locks are not to be had."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows; a file system without locks
        return None
    return True


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> object:
    """Read a JSON file; UserError where it is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def append_to_list(path: Path, entry: object) -> None:
    """Add an entry to the list in a JSON file, which is made if there is none; several processes may do so at once.
    Raises a UserError: the file cannot be read or written, or holds something else; it is unchanged."""
    with locked(path):
        earlier = read_json(path) if path.is_file() else []
        if not isinstance(earlier, list):
            raise UserError(f"{path} holds {type(earlier).__name__} instead of a list: move it away or restore it")
        write_json(path, [*earlier, entry])


def is_file(weights: str) -> bool:
    """Whether a --weights value names a file rather than an entry of torchvision, a tag of timm or none."""
    endings = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".mat", ".safetensors")
    return Path(weights).suffix in endings or "/" in weights or Path(weights).is_file()
