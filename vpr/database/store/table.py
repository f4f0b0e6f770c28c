"""Rows of a store's table of images, and what they are for the rest of the program."""

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vpr.database.records import Records

RECORD = ("name", "folder", "size", "modified", "hash", "easting", "northing", "columns")
ROW = (*RECORD, "crc", "local_height", "local_width", "local_crc")


def rows_of(records: Records) -> list[tuple]:
    """RECORD of each."""
    places = [tuple(None if np.isnan(value) else float(value) for value in place) for place in records.positions]
    return [
        (
            as_bytes(records.names[n]), as_bytes(records.folders[n]), int(records.sizes[n]), int(records.modified[n]),
            records.hashes[n].tobytes(), *places[n],
            json.dumps({name: values[n] for name, values in records.columns.items() if values[n] is not None}),
        )
        for n in range(len(records))
    ]  # fmt: skip


def local_columns(rows: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Grids int32 [N, 2] and checksums uint32 [N] of local descriptors."""
    values = np.array(rows, np.int64).reshape(-1, 3)
    return values[:, :2].astype(np.int32), values[:, 2].astype(np.uint32)


def checksum(record: Sequence[Any], descriptor: np.ndarray) -> int:
    """CRC-32 of a descriptor and of RECORD."""
    return zlib.crc32(descriptor.data, zlib.crc32(repr(tuple(record)).encode()))


def as_bytes(text: str) -> bytes:
    """A name of a file, which need not be of Unicode's characters."""
    return text.encode("utf-8", "surrogateescape")


def as_text(name: bytes) -> str:
    """The other way round."""
    return name.decode("utf-8", "surrogateescape")
