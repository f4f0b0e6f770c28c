"""What our files say of themselves: what made them, and a checksum over every byte.

HDF5 files, PyTorch files and ONNX files each have a place where other readers expect foreign text: the user block in
front of an HDF5 file, the comment behind a zip archive (which is what `torch.save` writes), one more metadata entry
behind an ONNX model. There stands the SHA-256 of all other bytes. It is checked before a library parses anything, since
libraries may crash on damaged files. Files without a checksum, made by earlier versions, are still read.
"""

import contextlib
import functools
import hashlib
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.progress import say

if TYPE_CHECKING:
    import h5py
    import numpy as np

Result = TypeVar("Result")
LABEL = b"netvlad sha256 "
SEAL = re.compile(rb"netvlad sha256 [0-9a-f]{64}")
SEAL_LENGTH = len(LABEL) + 64
CHUNK = 1 << 24  # bytes that are hashed at a time
NOTE = "of the whole file, checked when it is read"  # stands where a file without its checksum would show its loss

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
USER_BLOCK = 512  # bytes, the least that HDF5 allows

ZIP_START, ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
ZIP_END_LENGTH = 22  # bytes, without the comment; its last two are the comment's length

# Field 14 of ONNX's ModelProto is metadata_props; its entries have a key (field 1) and a value (field 2).
_ENTRY = b"\x0a\x08checksum\x12" + bytes([SEAL_LENGTH])
ONNX_FRONT = b"\x72" + bytes([len(_ENTRY) + SEAL_LENGTH]) + _ENTRY


@dataclass(frozen=True)
class Blocks:
    """An array too large to be in memory at once: its shape and type, and its rows block by block."""

    shape: tuple[int, ...]
    dtype: str
    blocks: "Iterable[np.ndarray]"


def of_each(files: Sequence[Path], read: Callable[[Path], Result]) -> Iterator[Result]:
    """What is read of each file. Raises a UserError where one is gone or cannot be read."""
    for file in files:
        try:
            yield read(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): get the image again") from error


def files_digest(names: Sequence[str], files: Sequence[Path]) -> str:
    """A hash of images by name, size and time of modification; UserError where a file is gone.

    Names are relative to the images' folder, so that an index can travel with them. Times are compared to the
    nanosecond: a copy that does not keep them counts as other images, which costs time but never a wrong answer.
    """
    digest = hashlib.sha256()
    for name, status in zip(names, of_each(files, os.stat), strict=True):
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def recipe_hash(recipe: Mapping[str, object], length: int = 6) -> str:
    """A short hash of what made a file, for its name."""
    text = "\n".join(f"{name}={recipe[name]}" for name in sorted(recipe))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def write_hdf5(path: Path, datasets: "Mapping[str, np.ndarray | Blocks]", attributes: Mapping[str, object]) -> None:
    """Write arrays by name and attributes of the file, with a checksum: whole, or not at all and a UserError."""
    import h5py

    with atomic_write(path) as temporary:
        with h5py.File(temporary, "w", userblock_size=USER_BLOCK, locking=False) as file:
            for name, values in datasets.items():
                if not isinstance(values, Blocks):
                    file.create_dataset(name, data=values)
                    continue
                stored, row = file.create_dataset(name, values.shape, values.dtype), 0
                for block in values.blocks:
                    stored[row : row + len(block)] = block
                    row += len(block)
            file.attrs.update({**attributes, "checksum": NOTE})
        seal = _seal(temporary, USER_BLOCK)
        with open(temporary, "r+b") as file:
            file.write(seal)


@contextlib.contextmanager
def open_hdf5(path: Path, what: str, remedy: str) -> Iterator["h5py.File"]:
    """An HDF5 file to read from, after its checksum has been found right.
    `what`: it shall be, for the message, such as `an index`. `remedy`: what to do where it is not.
    Raises a UserError: the file is missing, damaged or of another kind, also where the block finds that out."""
    import h5py

    try:
        sealed = _check_hdf5(path, what, remedy)
        with h5py.File(path, locking=False) as file:  # never changed, only replaced; some network disks have no locks
            if not sealed and "checksum" in file.attrs:
                raise _damaged(path, what, remedy)
            yield file
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as {what} ({error}): {remedy}") from error
    if not sealed:
        say_without_checksum(path)


def save_torch(path: Path, content: object) -> None:
    """Write tensors, numbers and text in PyTorch's format, with a checksum: whole, or not at all and a UserError."""
    import torch

    # Through a file of our own: torch would keep its one open after a failure, and with it the disk's room.
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as file:
            torch.save(content, file)
        with open(temporary, "r+b") as file:
            file.seek(-2, 2)
            file.write(struct.pack("<H", SEAL_LENGTH))  # the length of the archive's comment, which follows
        append_seal(temporary)


def load_torch(path: Path, what: str, remedy: str) -> object:
    """What `torch.save` wrote, checked to be whole, without running code of it; UserError where it cannot be read."""
    import torch

    sealed = check_torch(path, what, remedy)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything at all on a damaged or foreign file
        raise UserError(f"{path} cannot be read as {what} ({type(error).__name__}): {remedy}") from error
    if not sealed:
        say_without_checksum(path)
    return content


def check_torch(path: Path, what: str, remedy: str) -> bool:
    """Compare a file in PyTorch's format with its checksum; without one, with the CRCs of the zip archive.

    Returns whether it has our checksum. PyTorch's format before version 1.6 has nothing to compare with.
    Raises a UserError: it cannot be read, or bytes of it were changed.
    """
    if check_seal_at_end(path, what, remedy):
        return True
    try:
        with open(path, "rb") as file:
            if file.read(4) != ZIP_START:
                return False
        end = last_bytes(path, ZIP_END_LENGTH)
        whole = end.startswith(ZIP_END) and end[-2:] == b"\0\0"  # neither another's comment nor anything behind it
        with zipfile.ZipFile(path) as archive:
            whole &= archive.testzip() is None and not min(entry.header_offset for entry in archive.infolist())
    except Exception:  # zipfile raises half a dozen kinds of errors on damaged archives
        whole = False
    if not whole:
        raise _damaged(path, what, remedy)
    return False


def seal_onnx(body: bytes) -> bytes:
    """A serialised ONNX model with one more metadata entry, the checksum of all before it."""
    return body + ONNX_FRONT + LABEL + hashlib.sha256(body).hexdigest().encode()


def check_onnx(path: Path, remedy: str) -> bool:
    """`check_seal_at_end` of an ONNX file."""
    return check_seal_at_end(path, "an ONNX model", remedy, ONNX_FRONT)


def append_seal(path: Path, of: Path | None = None) -> None:
    """Write a checksum behind a file: of all its bytes, or of those of another file."""
    seal = _seal(of or path)
    with open(path, "ab") as file:
        file.write(seal)


def check_seal_at_end(path: Path, what: str, remedy: str, front: bytes = b"") -> bool:
    """Compare a file with the checksum at its end; gives whether it has one.
    `what` and `remedy`: see `open_hdf5`. `front`: what stands before the checksum and is not part of what it is of.
    Raises a UserError: it cannot be read, or bytes of it were changed."""
    length = len(front) + SEAL_LENGTH
    try:
        end = last_bytes(path, length)
        if not (end.startswith(front) and SEAL.fullmatch(end[len(front) :])):
            return False
        if end[len(front) :] != _seal(path, stop=path.stat().st_size - length):
            raise _damaged(path, what, remedy)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from error
    return True


def last_bytes(path: Path, count: int) -> bytes:
    """So many bytes from a file's end, or all that there are."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - count))
        return file.read()


@functools.cache
def say_without_checksum(path: Path) -> None:
    """Say once that an earlier version wrote a file."""
    say(f"{path} was written by an earlier version, without a checksum: damage to it may go unnoticed")


def sha256_of(path: Path, start: int = 0, stop: int | None = None) -> str:
    """The SHA-256 of a file's bytes from `start` up to `stop`, or to its end."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        left = (path.stat().st_size if stop is None else stop) - start
        while left > 0 and (block := file.read(min(CHUNK, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _check_hdf5(path: Path, what: str, remedy: str) -> bool:
    """Whether a file has a checksum, which then is right."""
    with open(path, "rb") as file:
        front = file.read(USER_BLOCK)
    if front.startswith(HDF5_SIGNATURE):
        return False
    if front[SEAL_LENGTH:] != bytes(USER_BLOCK - SEAL_LENGTH) or not SEAL.fullmatch(front[:SEAL_LENGTH]):
        raise UserError(f"{path} cannot be read as {what} (it is damaged or of another format): {remedy}")
    if front[:SEAL_LENGTH] != _seal(path, USER_BLOCK):
        raise _damaged(path, what, remedy)
    return True


def _seal(path: Path, start: int = 0, stop: int | None = None) -> bytes:
    return LABEL + sha256_of(path, start, stop).encode()


def _damaged(path: Path, what: str, remedy: str) -> UserError:
    return UserError(f"{path} cannot be read as {what} (it is damaged: its bytes do not fit its checksum): {remedy}")
