"""Which database images may not be found for a query: those of its own time, or the frames just before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pittsburgh import Places
from vpr.data.frames import times_in_sequences

# Indices of queries int64 [m] -> bool [m, N], database images that may not be found for them.
Excluded = Callable[[np.ndarray], np.ndarray]


def own_time(places: Places) -> Excluded:
    """Excludes the images of the query's own time stamp (Tokyo Time Machine)."""
    assert places.query_times is not None and places.database_times is not None
    asking, there = places.query_times, places.database_times
    return lambda queries: asking[queries][:, None] == there


@dataclass(frozen=True)
class RecentFrames:
    """Frames of the query's own walk that may not be found, as loop closure has it: itself and those around it.

    Attributes:
        frames: how many before the query, and how many after.
        causal: all that come after it: when it was taken, they were not there.
    """

    frames: int
    causal: bool = False

    def text(self) -> str:
        """How results name it."""
        after = "all after it" if self.causal else f"{self.frames} after it"
        return f"no hits nor positives among the {self.frames} frames of its walk before the query and {after}"

    def of(self, database_names: Sequence[str], query_names: Sequence[str]) -> Excluded:
        """The rule for queries that are images of the database, or frames between them: see `times_in_sequences`."""
        walks, ranks = times_in_sequences([*database_names, *query_names])
        count = len(database_names)

        def excluded(queries: np.ndarray) -> np.ndarray:
            ago = ranks[count + queries][:, None] - ranks[:count]  # [m, N], in frames
            near = (ago <= self.frames) if self.causal else (np.abs(ago) <= self.frames)
            return near & (walks[count + queries][:, None] == walks[:count])

        return excluded


def either(one: Excluded | None, other: Excluded | None) -> Excluded | None:
    """Excludes what one of two rules excludes, if there are any."""
    if one is None or other is None:
        return one or other
    return lambda queries: one(queries) | other(queries)


def without_excluded(positives: Sequence[np.ndarray], excluded: Excluded) -> list[np.ndarray]:
    """The database indices that are right for each query, without those that may not be found for it."""
    return [
        right[~excluded(np.array([query]))[0, right]] if len(right) else right for query, right in enumerate(positives)
    ]
