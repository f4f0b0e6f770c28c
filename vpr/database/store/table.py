"""Rows of a store's table of images, and what they are for the rest of the program."""

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vpr.database.records import Records, no_records

RECORD = ("name", "folder", "size", "modified", "hash", "easting", "northing", "columns")
ROW = (*RECORD, "crc", "local_height", "local_width", "local_crc")


def rows_of(records: Records) -> list[tuple]:
    """RECORD of each."""
    positions = [tuple(None if np.isnan(metres) else float(metres) for metres in pair) for pair in records.positions]
    return [
        (
            as_bytes(records.names[n]), as_bytes(records.folders[n]), int(records.sizes[n]), int(records.modified[n]),
            records.hashes[n].tobytes(), *positions[n],
            json.dumps({name: values[n] for name, values in records.columns.items() if values[n] is not None}),
        )
        for n in range(len(records))
    ]  # fmt: skip


def records_of(rows: Sequence[tuple], zone: str | None) -> Records:
    """Rows of RECORD as Records."""
    if not rows:
        return no_records(zone)
    names, folders, sizes, modified, hashes, easting, northing, tables = list(zip(*rows, strict=True))[: len(RECORD)]
    return Records(
        list(map(as_text, names)), np.array([easting, northing], np.float64).T, zone, np.array(sizes, np.int64),
        np.array(modified, np.int64), hashes_of(hashes), list(map(as_text, folders)), by_heading(tables),
    )  # fmt: skip


def hashes_of(blobs: Sequence[bytes]) -> np.ndarray:
    """SHA-256, uint8 [N, 32]."""
    return np.frombuffer(b"".join(blobs), np.uint8).reshape(-1, 32)


def by_heading(tables: Sequence[str]) -> dict[str, list]:
    """The JSON of each image's further columns as lists of all images' values; None where an image has none."""
    rows = list(map(json.loads, tables))
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def local_columns(rows: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Grids int32 [N, 2] and checksums uint32 [N] of local descriptors."""
    values = np.array(rows, np.int64).reshape(-1, 3)
    return values[:, :2].astype(np.int32), values[:, 2].astype(np.uint32)


def is_whole(row: Sequence[Any], descriptor: np.ndarray) -> bool:
    """Whether the checksum that stands behind RECORD in a row is that of it and of the descriptor."""
    return bool(row[len(RECORD)] == checksum(row[: len(RECORD)], descriptor))


def checksum(record: Sequence[Any], descriptor: np.ndarray) -> int:
    """CRC-32 of a descriptor and of RECORD."""
    return zlib.crc32(descriptor.data, zlib.crc32(repr(tuple(record)).encode()))


def as_bytes(text: str) -> bytes:
    """A file's name, which need not be valid Unicode."""
    return text.encode("utf-8", "surrogateescape")


def as_text(name: bytes) -> str:
    """The inverse of `as_bytes`."""
    return name.decode("utf-8", "surrogateescape")
