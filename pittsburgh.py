"""Reads dbStruct `.mat` specs: which images exist, where they were taken, and which of them match.

The layout is that of NetVLAD's public release (Pittsburgh, Tokyo 24/7, Tokyo Time Machine). Fields are read by name:
sets differ in which they have. The file format is level 5 of MathWorks' "MAT-File Format": a header of 128 bytes, then
elements, each a tag (type, size) and its content. Types and sizes are checked before use: damaged files are errors.
Files of v7.3 are HDF5 and read by h5py.
"""

import dataclasses
import hashlib
import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Fields = dict[str, Any]  # of a structure

# "We use only those potential positives that are further than 1 m from the query", so that an image
# is never its own positive. Stated as a squared distance in the original release.
LEAST_POSITIVE_SQUARED_DISTANCE = 1.0

NEEDED = ("dbImageFns", "utmDb", "qImageFns", "utmQ", "posDistThr", "nonTrivPosDistSqThr")
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # by type
TEXTS = {1: "utf-8", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
INT32, UINT32, MATRIX, COMPRESSED, LAST_TYPE = 5, 6, 14, 15, 18
CELL, STRUCT, CHARACTERS, DOUBLE, UINT64 = 1, 2, 4, 6, 15  # classes of arrays; the last two enclose those of numbers
COMPLEX = 0x800  # a flag beside the class
HDF5 = b"\x89HDF\r\n\x1a\n"
# A compressed element may grow to so many times its bytes, or to so many bytes: those of the public specs to 22 times.
LARGEST_GROWTH, SMALLEST_LIMIT = 100, 1 << 26


class SpecError(ValueError):
    """A spec is missing, damaged, of another kind, or contradicts itself; the text is one line and names the file."""


@dataclass(frozen=True)
class Places:
    """The database and the queries of one split.

    Attributes:
        name: file name of the spec without its ending, e.g. `pitts30k_val`.
        database_names, query_names: file names inside the image folders, in the spec's order.
        database_positions [N, 2], query_positions [M, 2]: UTM easting and northing, metres, float64.
        positive_radius: a retrieved image at most this far away is a hit, metres.
        training_positive_radius: a training positive is at most this far away, metres.
        database_times [N], query_times [M]: time stamps (yyyymm) where the set has them, else None.
        protocol: which hits count in a search: all (`plain`), those of another time stamp than the query's
            (`other_time`), or the first of each panorama (`panorama`).
    """

    name: str
    database_names: list[str]
    query_names: list[str]
    database_positions: np.ndarray
    query_positions: np.ndarray
    positive_radius: float
    training_positive_radius: float
    database_times: np.ndarray | None = None
    query_times: np.ndarray | None = None
    protocol: str = "plain"

    def positives(self) -> list[np.ndarray]:
        """For each query the database indices that count as hits: within `positive_radius`, inclusive."""
        return self._without_own_time(self._near(self.positive_radius))

    def training_positives(self) -> list[np.ndarray]:
        """For each query its potential training positives: 1 m^2 < d^2 <= training_positive_radius^2.

        Tokyo Time Machine also asks for another time stamp than the query's.
        """
        near, least = enumerate(self._near(self.training_positive_radius)), LEAST_POSITIVE_SQUARED_DISTANCE
        return self._without_own_time([each[self._squared_distances(query, each) > least] for query, each in near])

    def not_negatives(self) -> list[np.ndarray]:
        """For each query the database indices that may not be negatives: all within `positive_radius`."""
        return self._near(self.positive_radius)

    def only(self, database: list[int], queries: list[int]) -> "Places":
        """The same places with these database images and queries alone, by index."""
        kept: Fields = {}
        for role, rows in (("database", database), ("query", queries)):
            kept[f"{role}_names"] = [getattr(self, f"{role}_names")[row] for row in rows]
            arrays = {name: getattr(self, name) for name in (f"{role}_positions", f"{role}_times")}
            kept |= {name: array[rows] for name, array in arrays.items() if array is not None}
        return dataclasses.replace(self, **kept)

    def fingerprint(self) -> str:
        """A hash of names and positions: the same images at the same places, and only those, share it."""
        digest = hashlib.sha256()
        for role in ("database", "query"):
            digest.update("\n".join(getattr(self, f"{role}_names")).encode())
            digest.update(np.ascontiguousarray(getattr(self, f"{role}_positions")).tobytes())
        return digest.hexdigest()[:12]

    def _near(self, radius: float) -> list[np.ndarray]:
        """For each query the sorted database indices within `radius` metres, inclusive."""
        from scipy.spatial import cKDTree  # scipy takes a while to import

        if not len(self.query_positions) or not len(self.database_positions):
            return [np.empty(0, np.int64) for _ in self.query_names]
        tree = cKDTree(self.database_positions)
        # A hair more than the radius, then the exact test: the border itself belongs to the place.
        found = tree.query_ball_point(self.query_positions, radius * (1 + 1e-9), return_sorted=True)
        near = enumerate(np.asarray(indices, np.int64) for indices in found)
        return [indices[self._squared_distances(query, indices) <= radius**2] for query, indices in near]

    def _squared_distances(self, query: int, indices: np.ndarray) -> np.ndarray:
        return ((self.database_positions[indices] - self.query_positions[query]) ** 2).sum(axis=1)

    def _without_own_time(self, indices_of_query: list[np.ndarray]) -> list[np.ndarray]:
        if self.database_times is None or self.query_times is None:
            return indices_of_query
        pairs = zip(indices_of_query, self.query_times, strict=True)
        return [indices[self.database_times[indices] != time] for indices, time in pairs]


def read_places(path: Path) -> Places:
    """Read a dbStruct `.mat` (MATLAB v5 to v7, or v7.3, which wants h5py).

    The protocol is `other_time` where there are time stamps, else `plain`: the file does not name it.

    Raises:
        SpecError: the file is missing, damaged, of another kind, or contradicts itself.
    """
    fields = _read_fields(path)
    database_names, query_names = _names(fields, "dbImageFns", path), _names(fields, "qImageFns", path)
    timed = [field in fields for field in ("dbTimeStamp", "qTimeStamp")]
    if any(timed) and not all(timed):
        raise SpecError(f"{path}: only one of dbTimeStamp and qTimeStamp is there: get the spec again")
    for field, names in (("numImages", database_names), ("numQueries", query_names)):
        count = int(_numbers(fields, field, 1, 1, path).item()) if field in fields else len(names)
        if count != len(names):
            raise SpecError(f"{path}: {field} says {count} but {len(names)} names are listed: get the spec again")
    return Places(
        name=path.stem,
        database_names=database_names,
        query_names=query_names,
        database_positions=_numbers(fields, "utmDb", 2, len(database_names), path).T.astype(np.float64),
        query_positions=_numbers(fields, "utmQ", 2, len(query_names), path).T.astype(np.float64),
        positive_radius=float(_numbers(fields, "posDistThr", 1, 1, path, 0).item()),
        training_positive_radius=_numbers(fields, "nonTrivPosDistSqThr", 1, 1, path, 0).item() ** 0.5,
        database_times=_numbers(fields, "dbTimeStamp", 1, len(database_names), path)[0] if all(timed) else None,
        query_times=_numbers(fields, "qTimeStamp", 1, len(query_names), path)[0] if all(timed) else None,
        protocol="other_time" if all(timed) else "plain",
    )


def write_places(path: Path, places: Places) -> None:
    """Write a dbStruct `.mat` (MATLAB v5) that `read_places` and other programs read; all but the protocol."""
    from scipy.io import savemat  # scipy takes a while to import

    names, queries = (np.array(each, object).reshape(-1, 1) for each in (places.database_names, places.query_names))
    structure = {
        "whichSet": places.name.rsplit("_", 1)[-1],
        "dbImageFns": names, "utmDb": places.database_positions.T, "numImages": float(len(names)),
        "qImageFns": queries, "utmQ": places.query_positions.T, "numQueries": float(len(queries)),
        "posDistThr": places.positive_radius, "posDistSqThr": places.positive_radius**2,
        "nonTrivPosDistSqThr": places.training_positive_radius**2,
    }  # fmt: skip
    for field, times in (("dbTimeStamp", places.database_times), ("qTimeStamp", places.query_times)):
        if times is not None:
            structure[field] = times.reshape(1, -1)
    savemat(path, {"dbStruct": structure}, appendmat=False)


def is_v73(head: bytes) -> bool:
    """Whether a file that begins so, with 520 bytes or more, is of MATLAB's v7.3: HDF5, usually behind 512 bytes."""
    return HDF5 in (head[:8], head[512:520])


def _read_fields(path: Path) -> Fields:
    """The fields of the file's dbStruct, as `_array` reads them."""
    form, remedy = "v5", "get it again"
    try:
        content = path.read_bytes()
        if is_v73(content):
            form, remedy = "v7.3", f"load it in MATLAB and save('{path.name}', 'dbStruct', '-v7'), or get another"
            variables = _hdf5_variables(path, max(SMALLEST_LIMIT, LARGEST_GROWTH * len(content)))
        else:
            variables = dict(_variables(memoryview(content)))
        fields = variables.get("dbStruct")
        if not isinstance(fields, dict):
            raise ValueError(f"it holds {', '.join(variables) or 'nothing'} instead of one dbStruct")
        missing = [name for name in NEEDED if name not in fields]
        if missing:
            raise ValueError(f"dbStruct has no field {', '.join(missing)}, it has {[*fields]}")
    except Exception as error:  # h5py raises anything at all on damaged files, or is not there
        reason = " ".join(str(error).split())
        raise SpecError(f"{path} cannot be read as a spec in a MATLAB {form} file ({reason}): {remedy}") from error
    return fields


def _names(fields: Fields, name: str, path: Path) -> list[str]:
    cells = fields[name]
    if isinstance(cells, tuple):  # a character matrix instead of a cell array
        return [text.rstrip() for text in cells]
    for row, cell in enumerate(cells if isinstance(cells, list) or not np.size(cells) else [cells]):
        if not (isinstance(cell, tuple) and len(cell) == 1):
            raise SpecError(f"{path}: entry {row + 1} of {name} is not a file name: get the spec again")
    return [text for (text,) in cells]


def _numbers(fields: Fields, name: str, rows: int, count: int, path: Path, least: float = -np.inf) -> np.ndarray:
    """A field of finite numbers [rows, count] that are at least `least`; a single row may stand upright in the file."""
    values = fields[name]
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise SpecError(f"{path}: {name} does not hold numbers: get the spec again")
    if values.size != rows * count or (rows > 1 and values.size and len(values) != rows):
        raise SpecError(f"{path}: {name} has {values.shape} numbers, wanted {(rows, count)}: get the spec again")
    values = values.reshape(rows, count)
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= least)).all(axis=0))
    if bad.size:
        raise SpecError(
            f"{path}: {bad.size} values of {name} are not finite or too small, the first is number {bad[0] + 1}"
        )
    return values


def _hdf5_variables(path: Path, limit: int) -> dict[str, Any]:
    """The variables of a v7.3 file as `_array` gives those of v5; HDF5 has arrays transposed, cells by reference."""
    import h5py  # a copy of this file may do without

    def content(item: Any, depth: int) -> Any:
        if isinstance(item, h5py.Group):
            return {name: content(each, depth + 1) for name, each in item.items()} if depth == 0 else None
        if not isinstance(item, h5py.Dataset) or item.nbytes > limit:
            raise ValueError(f"an entry that is no array, or of more than {limit} bytes")
        values, kind = np.atleast_2d(item[()]).T, bytes(item.attrs.get("MATLAB_class", b"")).decode("ascii")
        if values.dtype == np.uint64 and item.attrs.get("MATLAB_empty"):  # what is stored are its sizes
            return np.empty((0, 0))
        if kind == "cell" and depth < 2:
            return [content(file[reference], depth + 1) for reference in values.ravel(order="F")]
        if kind == "char":
            return tuple(row.astype("<u2").tobytes().decode("utf-16-le") for row in values)
        return None if "MATLAB_object_decode" in item.attrs else values  # an object of a class, such as string

    with h5py.File(path, "r") as file:
        return {name: content(item, 0) for name, item in file.items() if not name.startswith("#")}


def _variables(content: memoryview) -> Iterator[tuple[str, Any]]:
    order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(bytes(content[124:128]))  # version 1 and the order of bytes
    if order is None:
        raise ValueError("its header does not say so")
    for kind, data in _elements(content[128:], order):
        elements: Iterable[tuple[int, memoryview]] = [(kind, data)]
        if kind == COMPRESSED:
            limit, stream = max(SMALLEST_LIMIT, LARGEST_GROWTH * len(data)), zlib.decompressobj()
            elements = _elements(memoryview(stream.decompress(data, limit)), order)
            if not stream.eof:  # where it ends, its checksum has been compared
                raise ValueError(f"a compressed element has no end within {limit} bytes")
        yield from _arrays(elements, order, 0)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each of the elements that make up `data`."""
    end = 0
    while end < len(data):
        kind, size = struct.unpack_from(order + "II", data, end)
        start = end = end + 8
        if kind >> 16:  # up to four bytes of content lie within the tag, behind their type and size
            kind, size, start = kind & 0xFFFF, kind >> 16, start - 4
        else:
            end = start + (size if kind == COMPRESSED else -(-size // 8) * 8)
        if not 0 < kind <= LAST_TYPE or start + size > min(end, len(data)):
            raise ValueError(f"an element of type {kind} and {size} bytes where {len(data) - start} are left")
        yield kind, data[start : start + size]


def _arrays(elements: Iterable[tuple[int, memoryview]], order: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Name and content of each of some MATLAB arrays: numbers [rows, columns] (uint8 stays uint8, in which 25 squared
    overflows), lines of characters (tuple), cells (list), a structure's fields (dict), or None for what no spec has."""
    for kind, data in elements:
        if kind != MATRIX:
            raise ValueError(f"an element of type {kind} where an array should be")
        yield _array(data, order, depth) if len(data) else ("", np.empty((0, 0)))


def _array(data: memoryview, order: str, depth: int) -> tuple[str, Any]:
    parts = _elements(data, order)
    empty = (0, memoryview(b""))
    (first, head), (second, sizes), (_, label) = (next(parts, empty) for _ in range(3))
    if (first, second) != (UINT32, INT32):
        raise ValueError("an array without class and size")
    (flags,), shape = struct.unpack(order + "I4x", head), struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    kind, name, count = flags & 0xFF, bytes(label).decode("ascii"), math.prod(shape)
    if min(shape, default=-1) < 0 or not name.isprintable():
        raise ValueError(f"an array {name!r} of size {shape}")
    if kind == CELL and depth < 2:
        cells = [content for _, content in _arrays(parts, order, depth + 1)]
        if len(cells) != count:
            raise ValueError(f"{len(cells)} cells where {count} are wanted")
        return name, cells
    if kind == STRUCT and depth == 0 and count == 1:
        (_, length), (_, text) = next(parts, empty), next(parts, empty)
        (width,) = struct.unpack(order + "I", length)
        names = [bytes(text[start : start + width]).split(b"\0")[0] for start in range(0, len(text), width)]
        contents = (content for _, content in _arrays(parts, order, depth + 1))
        return name, {field.decode("ascii"): content for field, content in zip(names, contents, strict=True)}
    if len(shape) == 2 and (kind == CHARACTERS or DOUBLE <= kind <= UINT64) and not flags & COMPLEX:
        return name, _values(*next(parts, empty), order, kind == CHARACTERS, shape) if count else np.empty(shape)
    return name, None


def _values(kind: int, content: memoryview, order: str, characters: bool, shape: tuple[int, ...]) -> np.ndarray | tuple:
    """Numbers [rows, columns], or the lines of a character matrix; stored column after column."""
    if kind not in (TEXTS if characters else NUMBERS):
        raise ValueError(f"an array of data of type {kind}")
    if not characters:
        dtype = np.dtype(order + NUMBERS[kind])
        return np.frombuffer(content, dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="))
    codec = {"utf-8": "utf-8", "utf-16": "utf-16-le" if order == "<" else "utf-16-be"}[TEXTS[kind]]
    text = bytes(content).decode(codec)
    if len(text) != math.prod(shape):
        raise ValueError(f"{len(text)} characters in an array of size {shape}")
    return tuple(text[row :: shape[0]] for row in range(shape[0]))
