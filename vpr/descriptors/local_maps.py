"""Local descriptors of many images, in 8 bits: what re-ranking compares."""

import itertools
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from vpr.common.errors import UserError
from vpr.common.memory import available_bytes

LARGEST_MAP = 1024  # positions; see `vpr/retrieval/rerank.py` on why a map may not have more
# A component of 1 is stored as this. Then the product of two descriptors of up to 128 dimensions, rounding
# included, is below 2^14 ((120 + 128^0.5 / 2)^2), which the exact products there want.
SCALE = 120
SMALLEST_NORM = 1e-12  # of the sum of several
# An image's local descriptors int8 [P, d], row by row of its map, and the map's rows and columns.
QuantizedMap = tuple[np.ndarray, tuple[int, int]]


class FileValues:
    """Rows int8 [P, d] in a file, read when they are asked for.

    A memory map would keep much of what is around the rows in memory as well.
    """

    def __init__(self, path: Path, count: int, dim: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - open as long as rows may be asked for
        self.shape = (count, dim)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows from `start` to `stop` - 1; zeros where the file has become shorter, which no checksum fits."""
        wanted, dim = (rows.stop - rows.start) * self.shape[1], self.shape[1]
        data = os.pread(self._file.fileno(), wanted, rows.start * dim)
        return np.frombuffer(data.ljust(wanted, b"\0"), np.int8).reshape(-1, dim)


@dataclass(frozen=True)
class LocalMaps:
    """The maps of local descriptors of N images, one after the other."""

    # int8 [positions of all maps, d], in memory or in a file: unit vectors times SCALE, rounded.
    values: np.ndarray | FileValues
    grids: np.ndarray  # int32 [N, 2], rows and columns of each image's map
    starts: np.ndarray  # int64 [N + 1], where each image's rows begin in `values`
    # uint32 [N], CRC-32 of each image's values, compared whenever they are read; None in memory.
    checksums: np.ndarray | None = None
    source: str = ""  # the file of values, for messages

    @property
    def dim(self) -> int:
        return self.values.shape[1]

    @property
    def bytes_per_image(self) -> float:
        """Their mean."""
        return int(self.starts[-1] - self.starts[0]) * self.dim / max(1, len(self.grids))

    def part(self, start: int, stop: int) -> "LocalMaps":
        """Those of images `start` to `stop` - 1."""
        checksums = None if self.checksums is None else self.checksums[start:stop]
        return replace(self, grids=self.grids[start:stop], starts=self.starts[start : stop + 1], checksums=checksums)

    def rows(self, image: int) -> np.ndarray:
        """An image's local descriptors int8 [P, d]. Raises a UserError where the file was damaged meanwhile."""
        rows = self.values[self.starts[image] : self.starts[image + 1]]
        if self.checksums is not None and zlib.crc32(np.ascontiguousarray(rows).data) != self.checksums[image]:
            raise UserError(f"{self.source} is damaged (local descriptors of image {image}): make it again")
        return rows

    def map(self, image: int) -> QuantizedMap:
        """As of `rows`, with the size of its grid."""
        height, width = self.grids[image].tolist()
        return self.rows(image), (height, width)


def quantized(maps: np.ndarray) -> list[QuantizedMap]:
    """Maps of unit vectors [B, d, h, w] -> for each image int8 [P, d] and the (rows, columns) of its map.

    A map of more than LARGEST_MAP positions is averaged over squares of 2 x 2, 3 x 3, ... of them.
    """
    height, width = maps.shape[2:]
    side = next(side for side in itertools.count(1) if -(-height // side) * -(-width // side) <= LARGEST_MAP)
    if side > 1:  # of a sum the direction is the mean's
        maps = np.add.reduceat(np.add.reduceat(maps, np.arange(0, height, side), 2), np.arange(0, width, side), 3)
        maps = maps / np.linalg.norm(maps, axis=1, keepdims=True).clip(SMALLEST_NORM)
    grid = (maps.shape[2], maps.shape[3])
    values = np.rint(maps * np.float32(SCALE)).astype(np.int8).reshape(*maps.shape[:2], -1)  # [B, d, P]
    return [(rows, grid) for rows in np.ascontiguousarray(values.transpose(0, 2, 1))]


class LocalSink(Protocol):
    """Takes the local descriptors of images in their order, and has them all in the end."""

    def write(self, maps: Sequence[QuantizedMap]) -> None:
        """Those of the next images."""

    def finished(self) -> LocalMaps:
        """Those of all images; nothing may be written after it."""


class MemorySink:
    """Keeps the local descriptors of `images` images in memory, half of which may be taken, else a UserError."""

    def __init__(self, images: int) -> None:
        self._images, self._parts = images, list[QuantizedMap]()

    def write(self, maps: Sequence[QuantizedMap]) -> None:
        if not self._parts and maps:
            needed, free = self._images * maps[0][0].nbytes, available_bytes()
            if needed > free // 2:  # they are joined at the end
                raise UserError(
                    f"local descriptors of {self._images} images take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB of "
                    "memory are free, of which half may be taken: keep them in a file by --saveDescriptors, or lower "
                    "--localDim"
                )
        self._parts += maps

    def finished(self) -> LocalMaps:
        parts, self._parts = self._parts, []
        return joined(parts)


def joined(parts: Sequence[QuantizedMap]) -> LocalMaps:
    """The maps of images, in their order, in memory."""
    if not parts:
        return LocalMaps(np.empty((0, 1), np.int8), np.empty((0, 2), np.int32), np.zeros(1, np.int64))
    values = np.concatenate([rows for rows, _ in parts])
    return LocalMaps(values, np.array([grid for _, grid in parts], np.int32), starts_of(len(rows) for rows, _ in parts))


def starts_of(lengths: Iterable[int]) -> np.ndarray:
    """Where each of several pieces begins, and where the last ends; int64 [N + 1]."""
    return np.concatenate([[0], np.cumsum(list(lengths), dtype=np.int64)])
