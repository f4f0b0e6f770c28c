"""Keypoints of a database's images, kept in a file beside its index, or made when they are first wanted."""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.progress import say, track
from vpr.data.images import image_size
from vpr.data.reader import Reading
from vpr.database.location import beside
from vpr.database.records import Records
from vpr.retrieval.ask import NotServed
from vpr.retrieval.long_work import Pause, no_pause
from vpr.retrieval.matching import Compared, Matches, Verification, by_threads
from vpr.retrieval.verification.keypoints import KeypointNetwork, Keypoints
from vpr.retrieval.verification.pairs import Verified, verify

MISSING = "the index has no keypoints, which its verification needs, and its images are not all there"
DAMAGED = "the file of the index's keypoints is damaged"
AT_ONCE = 10  # hits between two pauses
_TABLE = "create table if not exists keypoints (name text primary key, stamp text, packed blob)"


def keypoints_file(index: Path) -> Path:
    """Where the keypoints for an index lie or shall lie."""
    return beside(index, "keypoints.sqlite")


class KeptKeypoints:
    """Keypoints by images' names; those of an image that has changed, or of another network, are made anew."""

    def __init__(self, network: KeypointNetwork, read: Reading, path: Path | None = None) -> None:
        """Of images that are so read; kept in a file, or (None) as long as the program runs.
        Raises a UserError: the file is damaged."""
        self.network, self._read, self._path = network, read, path
        self._recipe = f"{network.weights_hash} {read.size}"
        try:
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
            # An empty name is a file of its own that SQLite removes.
            self._file = sqlite3.connect(path or "", check_same_thread=False, isolation_level=None)
            self._file.execute("pragma synchronous = off")  # what is lost is made again
            self._file.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{path} is no file of keypoints ({error}): delete it, it is made again") from error

    def of(self, name: str, file: Path) -> Keypoints:
        """Those of an image by its name and its file, which need not be there if they are kept.
        Raises a NotServed: it is not there, or cannot be decoded."""
        now = self._stamp(file)
        with self._whole():
            found = self._file.execute("select stamp, packed from keypoints where name = ?", [name]).fetchone()
            if found and self._holds(found[0], now):
                return Keypoints.unpack(found[1])
        packed = self.made_of(file).pack()
        with contextlib.suppress(sqlite3.OperationalError):  # others write, or nobody may: it is made again
            self._file.execute("insert or replace into keypoints values (?, ?, ?)", [name, now, packed])
        return Keypoints.unpack(packed)  # as they will be found again, rounded

    def _stamp(self, file: Path) -> str:
        """What keypoints of a file as it is now are kept by; empty where it is not there."""
        try:
            status = file.stat()
        except OSError:
            return ""
        return f"{self._recipe} {status.st_size} {status.st_mtime_ns}"

    def _holds(self, kept: str, now: str) -> bool:
        """Whether those of a stamp are still those of the file; of one that is gone they are."""
        return kept == now if now else kept.startswith(self._recipe)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Raises a NotServed where the file turns out to be damaged."""
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise NotServed(f"{self._path} is damaged ({error}): delete it, it is made again", DAMAGED) from error

    def made_of(self, file: Path) -> Keypoints:
        """Those of an image's file. Raises a NotServed: it cannot be decoded."""
        image = self._read.of([file])[0]
        if isinstance(image, UserError):
            raise NotServed(str(image), MISSING) from image
        return self.network.detect(image)

    @property
    def bytes_per_image(self) -> float:
        """Of those that are kept, on the average."""
        (size,) = self._file.execute("select avg(length(packed)) from keypoints").fetchone()
        return size or 0.0

    def prepare(self, records: Records, root: Path) -> None:
        """Make those of all images that are not kept; says how many bytes they take.
        Raises a NotServed: an image is not there, or cannot be decoded."""
        with self._whole():
            have = dict(self._file.execute("select name, stamp from keypoints"))
        lacking = [
            row
            for row, name in enumerate(records.names)
            if name and not (name in have and self._holds(have[name], self._stamp(records.file(row, root))))
        ]
        if lacking:
            for row in track(lacking, "keypoints", len(lacking)):
                self.of(records.names[row], records.file(row, root))
            say(f"keypoints of {len(lacking):,} images, {self.bytes_per_image:,.0f} bytes each")


class KeypointPairs:
    """Keypoints of M queries, compared with those of database images."""

    def __init__(
        self, queries: Sequence[Keypoints], kept: KeptKeypoints, image: Callable[[int], tuple[str, Path]]
    ) -> None:
        """`image` gives the name and the file of a database image by its row."""
        self._queries, self._kept, self._image = queries, kept, image

    def of(self, query: int, rows: np.ndarray, pause: Pause = no_pause) -> list[Verified]:
        """What a query, by its index, has in common with images, by their rows.
        Raises a NotServed: an image is not there."""
        own, found = self._queries[query], list[Verified]()
        step = max(1, len(rows)) if pause is no_pause else AT_ONCE
        for start in range(0, len(rows), step):
            keypoints = [self._kept.of(*self._image(int(row))) for row in rows[start : start + step]]
            found += by_threads(lambda hit: verify(own, hit), keypoints)
            pause()
        return found

    def compared(self, query: int, row: int) -> Compared:
        """As `vpr.retrieval.rerank.Compare`: the keypoints that agree, and which share of the matches they are."""
        own, hit = self._queries[query], self._kept.of(*self._image(row))
        found = verify(own, hit)
        matrix = None if found.fundamental is None else found.fundamental.tolist()
        told = Verification(found.inliers, found.matches, matrix, (own.width, own.height), (hit.width, hit.height))
        weights = np.ones(found.inliers, np.float32)
        matches = Matches(found.query_points, found.hit_points, weights)
        return Compared(matches, found.inliers / max(1, found.matches), told)


def write_matches(path: Path, pairs: Path, kept: KeptKeypoints, root: Path, base: Path) -> None:
    """Write keypoints in pixels, and verified matches of the pairs of a list, in hloc's layout (`docs/hloc.md`).
    The list has paths below `root`, `kept` names below `base`.
    Raises a NotServed or UserError: an image is not there, or two pairs have one name."""
    import h5py

    listed = [line.split() for line in pairs.read_text(encoding="utf-8").splitlines()]
    with atomic_write(path) as temporary, h5py.File(temporary, "w", libver="latest", locking=False) as file:
        for first, second in track(listed, "matches", len(listed)):
            both = [kept.of(os.path.relpath(root / name, base), root / name) for name in (first, second)]
            for name, each in zip((first, second), both, strict=True):
                if f"{name}/keypoints" not in file:  # in pixels of the file, which the model may have seen smaller
                    size = file[f"{name}/image_size"] = np.array(image_size(root / name)[::-1])
                    file[f"{name}/keypoints"] = (each.points * size).astype(np.float32)
            rows, matches = verify(*both).rows, np.full(len(both[0].points), -1, np.int16)
            matches[rows[:, 0]] = rows[:, 1]
            if (pair := "/".join(name.replace("/", "-") for name in (first, second))) in file:
                raise UserError(f"--hlocMatches: {pair} stands for two pairs, - being for / too: rename an image")
            group = file.create_group(pair)
            group["matches0"], group["matching_scores0"] = matches, (matches >= 0).astype(np.float16)
    say(f"wrote {path}: keypoints and verified matches of {len(listed)} pairs")
