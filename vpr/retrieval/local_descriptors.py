"""Local descriptors for re-ranking: those that an index keeps, or computed from the files of its images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpr.common.errors import UserError
from vpr.data.reader import ImageReader, Reading, SizeGroup
from vpr.database.engine import Engine
from vpr.database.records import Records
from vpr.descriptors.describe import LocalDescribing, describe
from vpr.descriptors.local_maps import LocalMaps, MemorySink
from vpr.models.local_projection import LOCAL_DIM, LocalProjection
from vpr.models.spec import DEFAULT_SEED
from vpr.retrieval.ask import Changed, NotServed
from vpr.retrieval.long_work import Pause, no_pause
from vpr.runs.local_projection import projection_for, stored_projection
from vpr.runs.model import LoadedModel

MISSING = "the index has no local descriptors, which rerank and agreement need, and its images are not all there"


class FilesOf(Sequence[Path]):
    """The files of an index's images, each named when it is asked for: there may be millions."""

    def __init__(self, records: Records, root: Path) -> None:
        self._records, self._root = records, root

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> Path:  # type: ignore[override]  # a reader takes one at a time
        return self._records.file(row, self._root)


@dataclass(frozen=True)
class PausingReader(ImageReader):
    """Calls `pause` when a batch has been made use of, before it gives out the next."""

    pause: Pause = no_pause

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[SizeGroup]]:
        """See `ImageReader`."""
        for batch in super().batches(batches):
            yield batch
            self.pause()


class LocalDescriptors:
    """Those of an index's images, and what projects those of queries likewise."""

    def __init__(
        self,
        loaded: LoadedModel,
        engine: Engine,
        read: Reading,
        root: Path,
        batch_size: int | None,
        dim: int = LOCAL_DIM,
        seed: int = DEFAULT_SEED,
    ) -> None:
        """Nothing is read or described yet.

        Args:
            root: folder of the database's images, where the records do not say.
            batch_size: images that are described at once, between two pauses.
            dim, seed: of the projection, where the index has none.
        """
        self._loaded, self._engine, self._read, self._root = loaded, engine, read, root
        self._batch_size, self._dim, self._seed = batch_size, dim, seed
        self._learnt: list[LocalProjection | None] = []  # when it is first wanted
        self.changes = 0  # how often images came or went

    @property
    def are_kept(self) -> bool:
        """Whether the index has them; else images are described for each question."""
        return self._engine.local is not None

    def prepare(self) -> None:
        """Learn the projection now, where no images have to be described for it; it takes a second.
        Raises a UserError: the centroids that it is learnt on are damaged."""
        if not self.are_kept and (stored := stored_projection(self._loaded, self._dim)):
            self._learnt.append(stored)

    def projection(self, pause: Pause = no_pause) -> LocalProjection | None:
        """What projects local descriptors: the index's, or one that is learnt on some of its images.

        `pause` is called every few images. Who asks for it meanwhile learns it too: to wait for work that is behind it
        in a line would be for ever. Raises a NotServed: there are no such images.
        """
        if self.are_kept:
            return self._engine.projection
        if not self._learnt:
            try:
                records = self._engine.records
                there = records.only([row for row, name in enumerate(records.names) if name])  # not the removed ones
                reader = self._reader(there, pause)
                self._learnt.append(projection_for(self._loaded, reader, self._seed, self._dim, self._batch_size))
            except UserError as error:
                raise NotServed(str(error), MISSING) from error
        return self._learnt[0]

    def of(self, found: np.ndarray, records: Records, pause: Pause = no_pause) -> tuple[LocalMaps, np.ndarray]:
        """Those of hits int64 [M, K], computed from their files: of n images, and the n rows of these, rising.
        Raises a NotServed: not all files of the images are there; a Changed: they were, and the database has changed
        meanwhile."""
        rows, changes = np.unique(found), self.changes
        rows, sink = rows[rows >= 0], MemorySink(len(rows))
        try:
            local = LocalDescribing(self.projection(pause), sink)
            describe(
                self._loaded.model, self._reader(records, pause), rows.tolist(), self._batch_size, "first hits", local
            )
        except UserError as error:
            if changes != self.changes:
                raise Changed("images came or went meanwhile: ask again") from error
            raise NotServed(str(error), MISSING) from error
        return sink.finished(), rows

    def _reader(self, records: Records, pause: Pause) -> ImageReader:
        return PausingReader(**vars(self._read.of(FilesOf(records, self._root))), pause=pause)
