"""Which database images may not be found for a query: those of its own time, or the frames just before it."""

from collections.abc import Callable, Sequence

import numpy as np

from pittsburgh import Places
from vpr.data.walks import times_in_walks

# Indices of queries int64 [m] -> bool [m, N], database images that may not be found for them.
Excluded = Callable[[np.ndarray], np.ndarray]


def own_time(places: Places) -> Excluded:
    """Excludes the images of the query's own time stamp (Tokyo Time Machine)."""
    assert places.query_times is not None and places.database_times is not None
    asking, there = places.query_times, places.database_times
    return lambda queries: asking[queries][:, None] == there


def recent_frames(
    database_names: Sequence[str], query_names: Sequence[str], frames: int, causal: bool = False
) -> Excluded:
    """Excludes the frames of the query's own walk just before and after it, and itself, as loop closure does.

    Queries are images of the database, or frames between them; `times_in_walks` says how names tell.

    Args:
        frames: how many before, and how many after.
        causal: exclude all frames after the query: when it was taken they were not.
    """
    walks, ranks = times_in_walks([*database_names, *query_names])
    count = len(database_names)

    def excluded(queries: np.ndarray) -> np.ndarray:
        ago = ranks[count + queries][:, None] - ranks[:count]  # [m, N], in frames
        near = (ago <= frames) if causal else (np.abs(ago) <= frames)
        return near & (walks[count + queries][:, None] == walks[:count])

    return excluded


def either(rules: Sequence[Excluded]) -> Excluded | None:
    """Excludes what any of the rules excludes; None without rules."""
    if not rules:
        return None
    return lambda queries: np.any([rule(queries) for rule in rules], axis=0)


def without_excluded(positives: Sequence[np.ndarray], excluded: Excluded) -> list[np.ndarray]:
    """The database indices that are right for each query, without those that may not be found for it."""
    return [
        right[~excluded(np.array([query]))[0, right]] if len(right) else right for query, right in enumerate(positives)
    ]
