"""What an index knows of its images: name, file, content, position, and the columns of their table."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vpr.data.frames import Frames, find_sequences
from vpr.data.names import on_disk
from vpr.data.positions.coordinates import degrees_of

Value = str | float | None  # of a column; None: the table is silent


@dataclass(frozen=True)
class Records:
    """Images of an index, row by row."""

    names: list[str]  # paths below the images' folder, with forward slashes; each once
    positions: np.ndarray  # float64 [N, 2], UTM easting and northing in metres; NaN where unknown
    zone: str | None  # UTM zone of all positions, such as 17N; None where unknown
    sizes: np.ndarray  # int64 [N], bytes of the files
    modified: np.ndarray  # int64 [N], when the files were modified, nanoseconds since 1970
    hashes: np.ndarray  # uint8 [N, 32], SHA-256 of the files' content
    folders: list[str]  # of each, the folder that its name is a path below; empty: the folder that the index is of
    # Further columns of the images' table, and `time` where it is known, by name.
    columns: Mapping[str, list[Value]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """int64 [N]: what engines call the images; see `record_id`."""
        return np.array([record_id(name) for name in self.names], np.int64)

    @functools.cached_property
    def frames(self) -> Frames:
        """Which are frames of one sequence, by their names."""
        return find_sequences(self.names)

    @functools.cached_property
    def row_of(self) -> dict[str, int]:
        """By name, the row."""
        return {name: row for row, name in enumerate(self.names)}

    @functools.cached_property
    def degrees(self) -> np.ndarray:
        """float64 [N, 2]: WGS 84 latitude and longitude; NaN where they are unknown."""
        found = np.full((len(self), 2), np.nan)
        known = np.flatnonzero(np.isfinite(self.positions).all(axis=1))
        if self.zone and known.size:
            found[known] = degrees_of(self.positions[known], self.zone)
        return found

    def file(self, row: int, root: Path) -> Path:
        """Where an image lies, if its folder is `root` where the index does not say."""
        return on_disk(Path(self.folders[row] or root), self.names[row])

    def only(self, rows: Sequence[int] | np.ndarray) -> "Records":
        """Some rows, in the order given."""
        chosen = np.asarray(rows, np.int64)
        return Records(
            names=[self.names[row] for row in chosen],
            positions=self.positions[chosen],
            zone=self.zone,
            sizes=self.sizes[chosen],
            modified=self.modified[chosen],
            hashes=self.hashes[chosen],
            folders=[self.folders[row] for row in chosen],
            columns={name: [values[row] for row in chosen] for name, values in self.columns.items()},
        )


def no_records(zone: str | None = None) -> Records:
    """Those of no image."""
    nothing = np.empty(0, np.int64)
    return Records([], np.empty((0, 2)), zone, nothing, nothing, np.empty((0, 32), np.uint8), [])


def joined(*parts: Records) -> Records:
    """The rows of all parts, of which there is one at least.

    A column that a part lacks is silent there; the zone is that of the first part that has one.
    """
    names = dict.fromkeys(name for part in parts for name in part.columns)
    return Records(
        [name for part in parts for name in part.names],
        np.concatenate([part.positions for part in parts]),
        next((part.zone for part in parts if part.zone), None),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.modified for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        [folder for part in parts for folder in part.folders],
        {name: [value for part in parts for value in part.columns.get(name, [None] * len(part))] for name in names},
    )


def record_id(name: str) -> int:
    """63 bits of a hash of an image's name: the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1
