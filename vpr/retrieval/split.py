"""The database of a split, searched for that split's queries as its protocol counts hits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.data.frames import Frames
from vpr.database.engine import Engine, Hits
from vpr.database.filters import SearchFilter
from vpr.database.records import Records
from vpr.search.exact import Search, descriptor_distances, in_front, in_order
from vpr.search.protocols import search_frames, search_places
from vpr.search.rules import RecentFrames, SequenceRule


@dataclass
class SplitEngine:
    """Searches descriptors that are at hand, exactly unless another search of them does it."""

    database: np.ndarray  # descriptors [N, dim] of the database of `places`
    places: Places
    find: Search | None = None  # gives indices of the database; None searches exactly
    name: str = ""  # as of `vpr.database.engine.Searchable`
    approximate: str = ""  # as of `vpr.database.engine.Searchable`
    measures: ClassVar[bool] = True  # as of `vpr.database.engine.Searchable`
    searches_sequences: ClassVar[bool] = True  # as of `vpr.database.engine.Engine`
    excludes: ClassVar[bool] = True  # whether frames of the queries' own sequences can be left out

    @cached_property
    def records(self) -> Records:
        """Names and positions of the database's images; files are not looked at."""
        names, positions = self.places.database_names, self.places.database_positions
        count = len(names)
        nothing, hashes = np.zeros(count, np.int64), np.zeros((count, 32), np.uint8)
        return Records(names, positions, None, nothing, nothing, hashes, [""] * count)

    def rows(self) -> np.ndarray:
        return np.arange(len(self.database))

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of some images."""
        return self.database[rows]

    def search(self, queries: np.ndarray, count: int, wanted: SearchFilter | None = None) -> Hits:
        """The hits of all queries of the split, in the order of their exact distances."""
        if wanted:
            raise UserError("a split is searched whole: drop the filter")
        found = search_places(self.database, queries, count, self.places, self.find)
        # Of hits that are nearly as far as each other FAISS's order is that of sums, which rounding may turn.
        return Hits(*in_order(found, descriptor_distances(self.database, queries, found)), self.records)

    def search_in_order(
        self,
        queries: np.ndarray,
        count: int,
        sequences: tuple[Frames, Frames],
        rule: SequenceRule,
        exclusion: RecentFrames | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best by sequences of frames, as of `vpr.database.engine.Engine`; `sequences` are those of the split."""
        names = self.places.database_names, self.places.query_names
        excluded = exclusion.of(*names) if exclusion else None
        found, similarities = search_frames(self.database, queries, count, self.places, rule, excluded)
        return found, descriptor_distances(self.database, queries, found), similarities


@dataclass
class WithoutPlaces:
    """A search of a split in which no query finds its right images, as if its place were not in the database."""

    engine: SplitEngine
    positives: Sequence[np.ndarray]  # of each query

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def search(self, queries: np.ndarray, count: int, wanted: SearchFilter | None = None) -> Hits:
        """As of `SplitEngine`, of what is left."""
        most = max(map(len, self.positives), default=0)
        found, distances, records = self.engine.search(queries, count + most, wanted)
        right = np.array([np.isin(row, own) for row, own in zip(found, self.positives, strict=True)])
        return Hits(in_front(found, ~right)[:, :count], in_front(distances, ~right, np.nan)[:, :count], records)


def by_engine(engine: Engine, names: Sequence[str]) -> Callable[[np.ndarray, int], np.ndarray]:
    """The search of `vpr.search` by an engine, which gives indices of images whose names are in this order.
    Raises a UserError: the engine has other images."""
    if engine.count() != len(names):
        raise UserError(
            f"{engine.name} has {engine.count()} images, wanted the {len(names)} that are tested: name another "
            "--collection"
        )
    index_of = {name: index for index, name in enumerate(names)}

    def search(queries: np.ndarray, count: int) -> np.ndarray:
        rows, _, records = engine.search(queries, min(count, engine.count()))
        images = [index_of[records.names[row]] if row >= 0 else -1 for row in rows.ravel().tolist()]
        return np.array(images, np.int64).reshape(rows.shape)

    return search
