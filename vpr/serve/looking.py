"""Local descriptors for a second look: those that an index keeps, or computed from the files of its images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import overload

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.reader import ImageReader, Reading, SizeGroup
from vpr.database.engine import Engine
from vpr.database.records import Records
from vpr.models.local_maps import LocalMaps
from vpr.models.local_projection import LOCAL_DIM, LocalProjection
from vpr.models.spec import DEFAULT_SEED
from vpr.retrieval.answer_features import Answers
from vpr.retrieval.first_hits import describe_first_hits
from vpr.retrieval.rerank import SecondLook, answers_of, rerank, rerank_few
from vpr.runs.local_projection import projection_for, stored_projection
from vpr.runs.model import LoadedModel
from vpr.serve.problems import Problem

AT_ONCE = 2  # images that are described between two pauses: of the largest networks half a second's work
MISSING = "the index has no local descriptors, which rerank and agreement need, and its images are not all there"


class FilesOf(Sequence[Path]):
    """The files of an index's images, each named when it is asked for: there may be millions."""

    def __init__(self, records: Records, root: Path) -> None:
        self._records, self._root = records, root

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, row: int) -> Path: ...
    @overload
    def __getitem__(self, row: slice) -> list[Path]: ...
    def __getitem__(self, row: int | slice) -> Path | list[Path]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._records.file(row, self._root)


def no_pause() -> None:
    """For work that nothing else waits for."""


@dataclass(frozen=True)
class PausingReader(ImageReader):
    """Calls `pause` when a batch has been made use of, before it gives out the next."""

    pause: Callable[[], None] = no_pause

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[SizeGroup]]:
        """See `ImageReader`."""
        for batch in super().batches(batches):
            yield batch
            self.pause()


class LocalDescriptors:
    """Those of an index's images, and what projects those of queries likewise."""

    def __init__(
        self, loaded: LoadedModel, engine: Engine, read: Reading, root: Path, dim: int = LOCAL_DIM,
        seed: int = DEFAULT_SEED,
    ) -> None:  # fmt: skip
        """Take what is there.

        Args:
            root: folder of the database's images, where the records do not say.
            dim, seed: of the projection, where the index has none.
        """
        self._loaded, self._engine, self._read, self._root = loaded, engine, read, root
        self._dim, self._seed = dim, seed
        self._learnt: list[LocalProjection | None] = []  # when it is first wanted
        self._is_learning = False

    @property
    def are_kept(self) -> bool:
        """Whether the index has them; else images are described for each question."""
        return self._engine.local is not None

    def prepare(self) -> None:
        """Learn the projection of `projection` where no images have to be described for it; it takes a second.

        Raises:
            UserError: the centroids that it is learnt on are damaged.
        """
        if not self.are_kept and (stored := stored_projection(self._loaded, self._dim)):
            self._learnt.append(stored)

    def projection(self, pause: Callable[[], None] = no_pause) -> LocalProjection | None:
        """What projects local descriptors: the index's, or one that is learnt on some of its images.

        Args:
            pause: called every few images; others may call this meanwhile.

        Raises:
            Problem: there are no such images.
        """
        if self.are_kept:
            return self._engine.projection
        while self._is_learning:
            pause()
        if not self._learnt:
            self._is_learning = True
            try:
                records = self._engine.records
                there = records.only([row for row, name in enumerate(records.names) if name])  # not the removed ones
                reader = self._reader(there, pause)
                self._learnt.append(projection_for(self._loaded, reader, self._seed, self._dim, AT_ONCE))
            except UserError as error:
                say(f"no second look: {error}")
                raise Problem(422, MISSING) from error
            finally:
                self._is_learning = False
        return self._learnt[0]

    def of(
        self, found: np.ndarray, records: Records, pause: Callable[[], None] = no_pause
    ) -> tuple[LocalMaps, np.ndarray | None]:
        """Those of hits int64 [M, K]: of all images as the index keeps them, or those of n with the n rows, rising.

        Args:
            records: of the search.
            pause: called every few images.

        Raises:
            Problem: they are not kept, and not all files of the images are there.
        """
        if self._engine.local is not None:
            return self._engine.local, None
        try:
            reader = self._reader(records, pause)
            return describe_first_hits(self._loaded.model, reader, found, self.projection(pause), AT_ONCE)
        except UserError as error:
            say(f"no second look: {error}")
            if records is not self._engine.records:
                raise Problem(503, "images came or went meanwhile: ask again") from error
            raise Problem(422, MISSING) from error

    def _reader(self, records: Records, pause: Callable[[], None]) -> ImageReader:
        reader = self._read.of(FilesOf(records, self._root))
        return PausingReader(**{each.name: getattr(reader, each.name) for each in fields(reader)}, pause=pause)


def looked_again(
    answers: Answers, queries: LocalMaps, known: LocalMaps, rows: np.ndarray | None, look: SecondLook,
    pause: Callable[[], None] = no_pause,
) -> Answers:  # fmt: skip
    """Answers in the order of a second look; `known` and `rows` as of `LocalDescriptors.of`."""
    similarities = 1 - answers.distances**2 / 2
    if rows is None:
        again = rerank(answers.found, similarities, queries, known, look, pause)
    else:
        again = rerank_few(answers.found, similarities, queries, known, rows, look, pause)
    return answers_of(again, answers.distances, answers.positions)
