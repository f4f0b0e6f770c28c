"""Which database images may not be found for a query: those of its own time, or the frames just before it."""

from collections.abc import Sequence

import numpy as np

from pittsburgh import Places
from vpr.search.rules import Excluded, RecentFrames  # noqa: F401


def own_time(places: Places) -> Excluded:
    """Excludes the images of the query's own time stamp (Tokyo Time Machine)."""
    assert places.query_times is not None and places.database_times is not None
    asking, there = places.query_times, places.database_times
    return lambda queries: asking[queries][:, None] == there


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
