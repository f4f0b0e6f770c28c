"""Reads dbStruct `.mat` specs: which photos exist, where they were taken, and which of them match.

The layout is that of NetVLAD's public release (Pittsburgh, Tokyo 24/7, Tokyo Time Machine). Fields
are read by name: sets differ in which fields they have and in which order.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpr.errors import UserError

# "We use only those potential positives that are further than 1 m from the query", so that a photo
# is never its own positive. Stated as a squared distance in the original release.
LEAST_POSITIVE_SQUARED_DISTANCE = 1.0


@dataclass(frozen=True)
class Places:
    """The database and the queries of one split.

    Attributes:
        name: file name of the spec without its ending, e.g. `pitts30k_val`.
        database_names, query_names: file names inside the photo folders, in the spec's order.
        database_positions [N, 2], query_positions [M, 2]: UTM easting and northing, metres, float64.
        positive_radius: a retrieved photo at most this far away is a hit, metres.
        training_positive_radius: a training positive is at most this far away, metres.
        database_times [N], query_times [M]: time stamps (yyyymm) where the set has them, else None.
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

    def positives(self) -> list[np.ndarray]:
        """For each query the database indices that count as hits: within `positive_radius`, inclusive."""
        return self._without_own_time(self._near(self.positive_radius))

    def training_positives(self) -> list[np.ndarray]:
        """For each query its potential training positives: 1 m^2 < d^2 <= training_positive_radius^2.

        Tokyo Time Machine also asks for another time stamp than the query's.
        """
        near = self._near(self.training_positive_radius)
        kept = [
            indices[self._squared_distances(query, indices) > LEAST_POSITIVE_SQUARED_DISTANCE]
            for query, indices in enumerate(near)
        ]
        return self._without_own_time(kept)

    def not_negatives(self) -> list[np.ndarray]:
        """For each query the database indices that may not be negatives: all within `positive_radius`."""
        return self._near(self.positive_radius)

    def only(self, database: list[int], queries: list[int]) -> "Places":
        """The same places with these database photos and queries alone, by index."""
        times = {"database_times": database, "query_times": queries}
        return dataclasses.replace(
            self,
            database_names=[self.database_names[index] for index in database],
            query_names=[self.query_names[index] for index in queries],
            database_positions=self.database_positions[database],
            query_positions=self.query_positions[queries],
            **{name: getattr(self, name)[rows] for name, rows in times.items() if getattr(self, name) is not None},
        )

    def fingerprint(self) -> str:
        """A hash of names and positions: the same photos at the same places, and only those, share it."""
        digest = hashlib.sha256()
        for names, positions in (
            (self.database_names, self.database_positions),
            (self.query_names, self.query_positions),
        ):
            digest.update("\n".join(names).encode())
            digest.update(np.ascontiguousarray(positions).tobytes())
        return digest.hexdigest()[:12]

    def _near(self, radius: float) -> list[np.ndarray]:
        """For each query the sorted database indices within `radius` metres, inclusive."""
        from scipy.spatial import cKDTree  # scipy takes a while to import

        if not len(self.query_positions) or not len(self.database_positions):
            return [np.empty(0, np.int64) for _ in self.query_names]
        tree = cKDTree(self.database_positions)
        # A hair more than the radius, then the exact test: the border itself belongs to the place.
        found = tree.query_ball_point(self.query_positions, radius * (1 + 1e-9), return_sorted=True)
        near = []
        for query, indices in enumerate(found):
            indices = np.asarray(indices, dtype=np.int64)
            near.append(indices[self._squared_distances(query, indices) <= radius**2])
        return near

    def _squared_distances(self, query: int, indices: np.ndarray) -> np.ndarray:
        return ((self.database_positions[indices] - self.query_positions[query]) ** 2).sum(axis=1)

    def _without_own_time(self, indices_of_query: list[np.ndarray]) -> list[np.ndarray]:
        if self.database_times is None or self.query_times is None:
            return indices_of_query
        return [
            indices[self.database_times[indices] != time]
            for indices, time in zip(indices_of_query, self.query_times, strict=True)
        ]


def read_places(path: Path) -> Places:
    """Read a dbStruct `.mat` (MATLAB v5).

    Raises:
        UserError: the file is missing, damaged, of another kind, or contradicts itself.
    """
    fields = _read_fields(path)
    database_names, query_names = _names(fields, "dbImageFns", path), _names(fields, "qImageFns", path)
    places = Places(
        name=path.stem,
        database_names=database_names,
        query_names=query_names,
        database_positions=_positions(fields, "utmDb", len(database_names), path),
        query_positions=_positions(fields, "utmQ", len(query_names), path),
        positive_radius=_number(fields, "posDistThr", path),
        training_positive_radius=_number(fields, "nonTrivPosDistSqThr", path) ** 0.5,
        database_times=_times(fields, "dbTimeStamp", len(database_names), path),
        query_times=_times(fields, "qTimeStamp", len(query_names), path),
    )
    if (places.database_times is None) != (places.query_times is None):
        raise UserError(f"{path}: only one of dbTimeStamp and qTimeStamp is there: get the spec again")
    for field, names in (("numImages", database_names), ("numQueries", query_names)):
        if field in fields and int(_number(fields, field, path)) != len(names):
            raise UserError(
                f"{path}: {field} says {int(_number(fields, field, path))} but {len(names)} names are listed: "
                "get the spec again"
            )
    return places


def write_places(path: Path, places: Places) -> None:
    """Write a dbStruct `.mat` (MATLAB v5) that `read_places` and other programs read.

    Raises:
        UserError: the disk is full or may not be written to.
    """
    from scipy.io import savemat

    from vpr.files import replacing

    radius, training_radius = places.positive_radius, places.training_positive_radius
    structure = {
        "whichSet": places.name.rsplit("_", 1)[-1],
        "dbImageFns": _cells(places.database_names), "utmDb": places.database_positions.T,
        "qImageFns": _cells(places.query_names), "utmQ": places.query_positions.T,
        "numImages": float(len(places.database_names)), "numQueries": float(len(places.query_names)),
        "posDistThr": radius, "posDistSqThr": radius**2, "nonTrivPosDistSqThr": training_radius**2,
    }  # fmt: skip
    with replacing(path) as temporary, open(temporary, "wb") as file:
        savemat(file, {"dbStruct": structure})


def _cells(names: list[str]) -> np.ndarray:
    cells = np.empty((len(names), 1), dtype=object)  # MATLAB's cell array
    cells[:, 0] = names
    return cells


def _read_fields(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat  # scipy takes a while to import

    if not path.is_file():
        raise UserError(
            f"{path} is missing: put the specs of netvlad_v100_datasets.tar.gz into {path.parent}, name their "
            "folder's parent with --root, or try --dataset=toy, which needs no data"
        )
    try:
        content = loadmat(str(path))
    except Exception as error:  # scipy raises a dozen kinds of errors on damaged files
        raise UserError(
            f"{path} cannot be read as a MATLAB v5 file ({type(error).__name__}: {error}): get it again"
        ) from error
    structure = content.get("dbStruct")
    if structure is None or structure.dtype.names is None or structure.size != 1:
        found = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise UserError(f"{path} holds {found} instead of one dbStruct: it is not a NetVLAD spec")
    record = structure.reshape(-1)[0]
    return {name: record[name] for name in structure.dtype.names}


def _field(fields: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    if name not in fields:
        raise UserError(f"{path}: dbStruct has no field {name} (it has {', '.join(fields)}): get the spec again")
    return fields[name]


def _names(fields: dict[str, np.ndarray], name: str, path: Path) -> list[str]:
    cells = _field(fields, name, path)
    if cells.dtype.kind == "U":  # a character matrix instead of a cell array
        return [str(text).rstrip() for text in cells.ravel()]
    if cells.size and cells.dtype != object:
        raise UserError(f"{path}: {name} holds {cells.dtype} instead of file names: get the spec again")
    texts = [np.asarray(cell).ravel() for cell in cells.ravel()]
    bad = next((row for row, text in enumerate(texts) if text.size != 1 or text.dtype.kind != "U"), None)
    if bad is not None:
        raise UserError(f"{path}: entry {bad + 1} of {name} is not a file name: get the spec again")
    return [str(text[0]) for text in texts]


def _positions(fields: dict[str, np.ndarray], name: str, count: int, path: Path) -> np.ndarray:
    values = np.asarray(_field(fields, name, path))
    if count == 0 and values.size == 0:
        return np.empty((0, 2))
    if values.shape != (2, count) or values.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name} is {values.dtype} {values.shape}, wanted numbers (2, {count})")
    positions = values.T.astype(np.float64)  # [2, count] -> [count, 2]
    broken = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if broken.size:
        raise UserError(
            f"{path}: {broken.size} positions of {name} are not finite, the first is number {broken[0] + 1}"
        )
    return positions


def _number(fields: dict[str, np.ndarray], name: str, path: Path) -> float:
    """A scalar as a Python number: the files hold uint8, in which 25 squared overflows."""
    values = np.asarray(_field(fields, name, path)).ravel()
    if values.size != 1 or values.dtype.kind not in "fiu" or not 0 <= float(values[0]) < float("inf"):
        raise UserError(f"{path}: {name} is not one number of at least 0: get the spec again")
    return float(values[0])


def _times(fields: dict[str, np.ndarray], name: str, count: int, path: Path) -> np.ndarray | None:
    if name not in fields:
        return None
    times = np.asarray(fields[name]).ravel()
    if times.size != count:
        raise UserError(f"{path}: {name} has {times.size} time stamps for {count} names: get the spec again")
    return times
