"""Reads dbStruct `.mat` specs: which images exist, where they were taken, and which of them match.

The layout is that of NetVLAD's public release (Pittsburgh, Tokyo 24/7, Tokyo Time Machine); sets differ in which fields
they have. The format is level 5 of MathWorks' "MAT-File Format": a header of 128 bytes, then elements, each a tag
(type, size) and its content, checked: damaged files are errors. Files of v7.3 are HDF5 and read by h5py.
"""

import dataclasses
import hashlib
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Fields = dict[str, Any]  # of a structure
AnyPlaces = TypeVar("AnyPlaces", bound="Places")

# m^2; "further than 1 m from the query" in the original release, so that no image is its own positive.
LEAST_POSITIVE_SQUARED_DISTANCE = 1.0
ROLES = {  # of images: the fields of their names, positions, time stamps and number
    "database": ("dbImageFns", "utmDb", "dbTimeStamp", "numImages"),
    "query": ("qImageFns", "utmQ", "qTimeStamp", "numQueries"),
}
NEEDED = ("dbImageFns", "utmDb", "qImageFns", "utmQ", "posDistThr", "nonTrivPosDistSqThr")
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # by type
TEXTS = {1: "utf-8", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
INT32, UINT32, MATRIX, COMPRESSED, LAST_TYPE = 5, 6, 14, 15, 18
CELL, STRUCT, CHARACTERS, DOUBLE, UINT64 = 1, 2, 4, 6, 15  # classes of arrays; the last two enclose those of numbers
COMPLEX = 0x800  # a flag beside the class
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
        positive_radius, training_positive_radius: how far away a hit, or a training positive, is at most, metres.
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
        """For each query the database indices that are hits: within `positive_radius`, of any other time stamp."""
        return self._near(self.positive_radius, own_time=False)

    def training_positives(self) -> list[np.ndarray]:
        """For each query its training positives, of any other time stamp: 1 m^2 < d^2 <= training_positive_radius^2."""
        return self._near(self.training_positive_radius, LEAST_POSITIVE_SQUARED_DISTANCE, own_time=False)

    def not_negatives(self) -> list[np.ndarray]:
        """For each query the database indices that may not be negatives: all within `positive_radius`."""
        return self._near(self.positive_radius)

    def only(self: AnyPlaces, database: Sequence[int] | None = None, queries: Sequence[int] | None = None) -> AnyPlaces:
        """The same places with these database images and queries alone, by index; None: all."""
        kept: Fields = {}
        for name, values in vars(self).items():
            rows = {"database": database, "query": queries}.get(name.partition("_")[0])
            if rows is not None and values is not None:
                kept[name] = values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
        return dataclasses.replace(self, **kept)

    def fingerprint(self) -> str:
        """A hash of names and positions: the same images at the same places, and only those, share it."""
        digest = hashlib.sha256()
        for role in ROLES:
            digest.update("\n".join(getattr(self, f"{role}_names")).encode())
            digest.update(np.ascontiguousarray(getattr(self, f"{role}_positions")).tobytes())
        return digest.hexdigest()[:12]

    def _near(self, radius: float, least: float = -1.0, own_time: bool = True) -> list[np.ndarray]:
        """For each query the sorted database indices with least < d^2 <= radius^2, of other times where asked for."""
        from scipy.spatial import cKDTree  # scipy takes a while to import

        # A hair more than the radius, then the exact test: the border itself belongs to the place.
        found = cKDTree(self.database_positions).query_ball_point(self.query_positions, radius * (1 + 1e-9))
        near = []
        for query, indices in enumerate(np.array(sorted(each), np.int64) for each in found):
            squared = ((self.database_positions[indices] - self.query_positions[query]) ** 2).sum(axis=1)
            kept = (squared > least) & (squared <= radius**2)
            if not own_time and self.database_times is not None and self.query_times is not None:
                kept &= self.database_times[indices] != self.query_times[query]
            near.append(indices[kept])
        return near


def read_places(path: Path) -> Places:
    """Read a dbStruct `.mat` (MATLAB v5 to v7, or v7.3, which wants h5py); one with time stamps is `other_time`.

    Raises:
        SpecError: the file is missing, damaged, of another kind, or contradicts itself.
    """
    fields = _read_fields(path)
    try:
        return _places(path.stem, fields)
    except ValueError as error:
        raise SpecError(f"{path}: {error}: get the spec again") from error


def _places(name: str, fields: Fields) -> Places:
    """The places of a dbStruct. Raises ValueError where fields contradict each other."""
    timed = [times in fields for _, _, times, _ in ROLES.values()]
    if any(timed) and not all(timed):
        raise ValueError("only one of dbTimeStamp and qTimeStamp is there")
    found: Fields = {}
    for role, (names, positions, times, number) in ROLES.items():
        listed = found[f"{role}_names"] = _names(fields, names)
        count = int(_numbers(fields, number, 1, 1).item()) if number in fields else len(listed)
        if count != len(listed):
            raise ValueError(f"{number} says {count} but {len(listed)} names are listed")
        found[f"{role}_positions"] = _numbers(fields, positions, 2, count).T.astype(np.float64)
        found[f"{role}_times"] = _numbers(fields, times, 1, count)[0] if all(timed) else None
    found["positive_radius"] = float(_numbers(fields, "posDistThr", 1, 1, 0).item())
    found["training_positive_radius"] = _numbers(fields, "nonTrivPosDistSqThr", 1, 1, 0).item() ** 0.5
    return Places(name, **found, protocol="other_time" if all(timed) else "plain")


def write_places(path: Path, places: Places) -> None:
    """Write a dbStruct `.mat` (MATLAB v5) that `read_places` and other programs read; all but the protocol."""
    from scipy.io import savemat  # scipy takes a while to import

    structure: Fields = {"whichSet": places.name.rsplit("_", 1)[-1]}
    values = vars(places)
    for role, (names, positions, times, number) in ROLES.items():
        structure[names] = np.array(values[f"{role}_names"], object).reshape(-1, 1)
        structure |= {positions: values[f"{role}_positions"].T, number: float(len(values[f"{role}_names"]))}
        if values[f"{role}_times"] is not None:
            structure[times] = values[f"{role}_times"].reshape(1, -1)
    structure |= {"posDistThr": places.positive_radius, "posDistSqThr": places.positive_radius**2}
    structure["nonTrivPosDistSqThr"] = places.training_positive_radius**2
    savemat(path, {"dbStruct": structure}, appendmat=False)


def is_v73(head: bytes) -> bool:
    """Whether a file that begins so, with 520 bytes or more, is of MATLAB's v7.3: HDF5, usually behind 512 bytes."""
    return b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:520])


def _read_fields(path: Path) -> Fields:
    """The fields of the file's dbStruct, as `_array` reads them."""
    content = b""
    try:
        content = path.read_bytes()
        limit = max(SMALLEST_LIMIT, LARGEST_GROWTH * len(content))
        variables = _hdf5_variables(path, limit) if is_v73(content) else dict(_variables(memoryview(content)))
        fields = variables.get("dbStruct")
        if not isinstance(fields, dict):
            raise ValueError(f"it holds {', '.join(variables) or 'nothing'} instead of one dbStruct")
        if missing := [name for name in NEEDED if name not in fields]:
            raise ValueError(f"dbStruct has no field {', '.join(missing)}, it has {[*fields]}")
    except Exception as error:  # h5py raises anything at all on damaged files, or is not there
        save = f"load it in MATLAB and save('{path.name}', 'dbStruct', '-v7'), or get another"
        form, remedy = ("v7.3", save) if is_v73(content) else ("v5", "get it again")
        reason = " ".join(str(error).split())
        raise SpecError(f"{path} cannot be read as a spec in a MATLAB {form} file ({reason}): {remedy}") from error
    return fields


def _names(fields: Fields, name: str) -> list[str]:
    cells = fields[name]
    if isinstance(cells, tuple):  # a character matrix instead of a cell array
        return [text.rstrip() for text in cells]
    for row, cell in enumerate(cells if isinstance(cells, list) or not np.size(cells) else [cells]):
        if not (isinstance(cell, tuple) and len(cell) == 1):
            raise ValueError(f"entry {row + 1} of {name} is not a file name")
    return [text for (text,) in cells]


def _numbers(fields: Fields, name: str, rows: int, count: int, least: float = -np.inf) -> np.ndarray:
    """A field of finite numbers [rows, count] that are at least `least`; a single row may stand upright in the file."""
    values = fields[name]
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise ValueError(f"{name} does not hold numbers")
    if values.size != rows * count or (rows > 1 and values.size and len(values) != rows):
        raise ValueError(f"{name} has {values.shape} numbers, wanted {(rows, count)}")
    values = values.reshape(rows, count)
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= least)).all(axis=0))
    if bad.size:
        raise ValueError(f"{bad.size} values of {name} are not finite or too small, the first is number {bad[0] + 1}")
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
        yield from (_array(*element, order) for element in elements)


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


def _array(kind: int, data: memoryview, order: str, depth: int = 0) -> tuple[str, Any]:
    """Name and content of a MATLAB array: numbers [rows, columns] (uint8 stays uint8, in which 25 squared overflows),
    lines of characters (tuple), cells (list), a structure's fields (dict), or None for what no spec has."""
    if kind != MATRIX:
        raise ValueError(f"an element of type {kind} where an array should be")
    if not len(data):
        return "", np.empty((0, 0))
    parts, empty = _elements(data, order), (0, memoryview(b""))
    (first, head), (second, sizes), (_, label) = (next(parts, empty) for _ in range(3))
    if (first, second) != (UINT32, INT32):
        raise ValueError("an array without class and size")
    (flags,), shape = struct.unpack(order + "I4x", head), struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    kind, name, count = flags & 0xFF, bytes(label).decode("ascii"), math.prod(shape)
    if min(shape, default=-1) < 0 or not name.isprintable():
        raise ValueError(f"an array {name!r} of size {shape}")
    if kind == CELL and depth < 2:
        cells = [_array(*part, order, depth + 1)[1] for part in parts]
        if len(cells) != count:
            raise ValueError(f"{len(cells)} cells where {count} are wanted")
        return name, cells
    if kind == STRUCT and depth == 0 and count == 1:
        (_, length), (_, text) = next(parts, empty), next(parts, empty)
        (width,) = struct.unpack(order + "I", length)
        names = [bytes(text[start : start + width]).split(b"\0")[0] for start in range(0, len(text), width)]
        contents = (_array(*part, order, depth + 1)[1] for part in parts)
        return name, {field.decode("ascii"): content for field, content in zip(names, contents, strict=True)}
    if len(shape) == 2 and (kind == CHARACTERS or DOUBLE <= kind <= UINT64) and not flags & COMPLEX:
        return name, _values(*next(parts, empty), order, kind == CHARACTERS, shape) if count else np.empty(shape)
    return name, None


def _values(kind: int, content: memoryview, order: str, characters: bool, shape: tuple[int, ...]) -> np.ndarray | tuple:
    """Numbers [rows, columns], or the lines of a character matrix; stored column after column."""
    if kind not in (TEXTS if characters else NUMBERS):
        raise ValueError(f"an array of data of type {kind}")
    if not characters:
        return np.frombuffer(content, order + NUMBERS[kind]).reshape(shape, order="F").astype(NUMBERS[kind])
    text = bytes(content).decode(TEXTS[kind].replace("16", "16-le" if order == "<" else "16-be"))
    if len(text) != math.prod(shape):
        raise ValueError(f"{len(text)} characters in an array of size {shape}")
    return tuple(text[row :: shape[0]] for row in range(shape[0]))
