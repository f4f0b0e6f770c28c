"""Bring an engine to what a folder holds now, describing only what it has never seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vpr.common import processes
from vpr.common.progress import Progress
from vpr.data.reader import Reading
from vpr.database.engine import Engine
from vpr.database.folder import FolderNow, content_hashes, same_description, same_file
from vpr.database.records import Records
from vpr.descriptors.describe import describe_in_batches
from vpr.models.local_projection import LocalProjection
from vpr.runs.model import LoadedModel

CHUNK = 40  # batches whose images are hashed, and decoded ahead, together


@dataclass
class Done:
    """How many images were what."""

    added: int = 0
    replaced: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    described: int = 0
    updated: int = 0

    @property
    def anything(self) -> bool:
        """Whether the engine is another than before."""
        return bool(self.added or self.replaced or self.moved or self.removed or self.updated)

    def line(self) -> str:
        parts = [
            (self.added, "added"), (self.replaced, "replaced"), (self.moved, "found again under another name"),
            (self.removed, "removed"), (self.updated, "with another place or table row"), (self.unchanged, "unchanged"),
        ]  # fmt: skip
        counted = ", ".join(f"{count:,} {what}" for count, what in parts if count) or "no images"
        return f"{counted}; {self.described:,} described"


@dataclass(frozen=True)
class Describing:
    """How images are described."""

    loaded: LoadedModel
    reading: Reading
    batch_size: int | None = None  # images that are described, and kept by the engine, at once
    projection: LocalProjection | None = None  # of their local descriptors, where the engine keeps them
    keep_local: bool = False  # whether they are kept


@dataclass(frozen=True)
class Changes:
    """What a folder has that an engine has not, and the other way round."""

    new: list[int]  # rows of the folder whose content is to be looked at
    # Rows of the folder that are the same files of another position, or with another row in the table; and the rows of
    # the engine that they are.
    touched: list[tuple[int, int]]
    gone: list[str]  # names that the folder has no more

    @property
    def anything(self) -> bool:
        return bool(self.new or self.touched or self.gone)


def find_changes(now: FolderNow, records: Records, rows: Sequence[int] | np.ndarray, keep_others: bool) -> Changes:
    """Compare a folder with an engine by name, size and time, opening no image.
    `rows`: of the images that the engine has. `keep_others`: whether images stay that the folder does not have."""
    names, _, _ = list(records.names), list(records.folders), list(records.positions)  # each read as a whole
    at, new, touched = {names[row]: int(row) for row in rows}, [], []
    for row, name in enumerate(now.names):
        known = at.get(name)
        if known is None or not same_file(now, row, records, known):
            new.append(row)
        elif not same_description(now, row, records, known):
            touched.append((row, known))
    others = () if keep_others else at.keys() - set(now.names)
    return Changes(new, touched, [name for name, row in at.items() if name in others and not records.folders[row]])


def synchronise(engine: Engine, now: FolderNow, describing: Describing, keep_others: bool = False) -> Done:
    """Add what is new, replace what changed, remove what is gone; each batch is kept before the next is described.

    An image whose content the engine knows, under whatever name, is not described again. With several processes each
    takes its own share of what is new, and process 0 does the rest.
    `keep_others`: do not remove what the folder does not have. What was added from other folders always stays.
    """
    records, rows = engine.records, engine.rows()
    changes = find_changes(now, records, rows, keep_others)
    done = Done(unchanged=len(now.names) - len(changes.new) - len(changes.touched), removed=len(changes.gone))
    intake = Intake(engine, now, describing, done, records, {records.hashes[row].tobytes(): int(row) for row in rows})
    if changes.new:
        with Progress("index", len(changes.new)) as progress:
            for chunk in in_parts(changes.new, CHUNK * (describing.batch_size or 24)):
                intake.take(chunk, progress)
    if processes.is_main():
        for touched in in_parts(changes.touched, 4096):
            old_rows = [old for _, old in touched]
            intake.copy([row for row, _ in touched], records.hashes[old_rows], old_rows)
            done.updated += len(touched)
        engine.remove(changes.gone)
    return done


@dataclass
class Intake:
    """Takes new images in."""

    engine: Engine
    now: FolderNow
    describing: Describing
    done: Done
    records: Records  # of the engine, before anything was taken in
    known: dict[bytes, int]  # by the hash of an image's content, a row of the engine that has its descriptor

    def take(self, rows: list[int], progress: Progress) -> None:
        """Describe those of some images of the folder whose content is new, batch by batch, and copy the others'."""
        hashes = content_hashes([self.now.files[row] for row in rows])
        contents = [found.tobytes() for found in hashes]
        before = [self.engine.row_of.get(self.now.names[row]) for row in rows]
        stored, done = self.records.hashes, self.done
        moved, fresh, twice, seen = list[int](), list[int](), list[int](), set[bytes]()
        for n, (content, old) in enumerate(zip(contents, before, strict=True)):
            is_known, is_unchanged = content in self.known, old is not None and stored[old].tobytes() == content
            done.unchanged += is_unchanged
            done.replaced += old is not None and not is_unchanged
            done.moved += old is None and is_known
            done.added += old is None and not is_known
            # Processes describe shares of their own, and do not know each other's.
            is_twice = content in seen and processes.world() == 1
            (moved if is_known else twice if is_twice else fresh).append(n)
            seen.update(() if is_known else (content,))
        self._copy(rows, hashes, moved, progress)
        # What was replaced by a copy, or will be by what is described now, has no row any more.
        for row, content in zip(before, contents, strict=True):
            old_content = b"" if row is None else stored[row].tobytes()
            if old_content != content and self.known.get(old_content, -1) == row:
                del self.known[old_content]
        self._describe([rows[n] for n in fresh], hashes[fresh], progress)
        self._copy(rows, hashes, twice, progress)

    def _copy(self, rows: list[int], hashes: np.ndarray, chosen: list[int], progress: Progress) -> None:
        """Copy the descriptors that images of a chunk share with known ones."""
        if chosen and processes.is_main():
            old_rows = [self.known[hashes[n].tobytes()] for n in chosen]
            self.copy([rows[n] for n in chosen], hashes[chosen], old_rows)
        progress.advance(len(chosen))

    def _describe(self, rows: list[int], hashes: np.ndarray, progress: Progress) -> None:
        about, now = self.describing, self.now
        reader = about.reading.of([now.files[row] for row in rows])
        described = describe_in_batches(
            about.loaded.model, reader, range(len(rows)), about.batch_size, about.projection, about.keep_local
        )
        for batch, descriptors, local in described if rows else ():
            chosen, start = list(batch), self.engine.next_row
            self.engine.add(now.records([rows[n] for n in chosen], hashes[chosen]), descriptors, local)
            self.known.update({hashes[n].tobytes(): row for row, n in enumerate(chosen, start)})
            self.done.described += len(chosen)
            progress.advance(len(chosen))

    def copy(self, rows: list[int], hashes: np.ndarray, old_rows: list[int]) -> None:
        """Add images of the folder with the descriptors of the engine's of the same content."""
        local, start = self.engine.local, self.engine.next_row
        maps = None if local is None else [local.map(row) for row in old_rows]
        self.engine.add(self.now.records(rows, hashes), self.engine.descriptors(old_rows), maps)
        self.known.update({content.tobytes(): row for row, content in enumerate(hashes, start)})


def in_parts(items: list, length: int) -> list[list]:
    """Consecutive parts of at most so many."""
    return [items[start : start + length] for start in range(0, len(items), length)]
