"""Which hits count: the search protocol of each data set, and database images that may not be found for a query."""

import functools
from collections.abc import Sequence

import numpy as np

from pittsburgh import Places
from vpr.data.catalogue import OTHER_TIME, PANORAMA
from vpr.data.frames import Frames, find_sequences
from vpr.search.exact import Search, in_front, nearest
from vpr.search.floats import Descriptors
from vpr.search.limited import search_allowed
from vpr.search.rules import Excluded, SequenceRule
from vpr.search.sequences import require_order, search_sequences

CUTOUTS_PER_PANORAMA = 12  # Tokyo 24/7


def search_places(
    database: Descriptors, queries: Descriptors, count: int, places: Places, search: Search | None = None
) -> np.ndarray:
    """Find `count` hits for each query as the set's own protocol counts them.

    `panorama` (Tokyo 24/7): only the first hit of each panorama counts (Torii et al., CVPR 2015). `other_time`
    (Tokyo Time Machine): hits with the query's own time stamp do not count. `plain`: the nearest.
    `search`: an approximate search of the database; None searches exactly. Gives int64 [M, count]; -1 where there are
    not so many.
    """
    find = search or functools.partial(nearest, database)
    if places.protocol == OTHER_TIME:
        return _nearest_of_other_times(database, queries, count, places, search)
    if places.protocol == PANORAMA:
        found = find(queries, count * CUTOUTS_PER_PANORAMA)
        return _padded(in_front(found, first_of_panoramas(found, panoramas_of(places.database_names))), count)
    return _padded(find(queries, count), count)


def search_frames(
    database: Descriptors,
    queries: Descriptors,
    count: int,
    places: Places,
    rule: SequenceRule,
    excluded: Excluded | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `search_places`, exactly, by sequences of frames; names say which images are frames of one sequence.
    Raises a UserError: the images are no frames in order.

    Args:
        excluded: database images that may not be found, beside those of the set's protocol.

    Returns:
        int64 [M, count], best first, -1 where there are not so many; and float32 [M, count], what they were ordered by:
        similarities, -inf where there is none.
    """
    sequences = sequences_of(places)
    require_order(sequences, rule)
    if places.protocol == OTHER_TIME:
        excluded = either(excluded, own_time(places))
    factor = CUTOUTS_PER_PANORAMA if places.protocol == PANORAMA else 1
    found, scores = search_sequences(database, queries, count * factor, sequences, rule, excluded)
    if places.protocol == PANORAMA:
        kept = first_of_panoramas(found, panoramas_of(places.database_names))
        found, scores = in_front(found, kept), in_front(scores, kept, -np.inf)
    return _padded(found, count), _padded(scores, count, np.float32(-np.inf))


def sequences_of(places: Places) -> tuple[Frames, Frames]:
    """The sequences of the database and of the queries, by their names."""
    return find_sequences(places.database_names), find_sequences(places.query_names)


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


def panoramas_of(names: list[str]) -> np.ndarray:
    """The panorama of each Tokyo 24/7 cut-out [N]: names are alike up to the heading behind the last '_'."""
    return np.unique([name.rsplit("_", 1)[0] for name in names], return_inverse=True)[1]


def first_of_panoramas(found: np.ndarray, panoramas: np.ndarray) -> np.ndarray:
    """Which hits are the first of their panorama in their row: bool [M, c]."""
    first = np.zeros(found.shape, bool)
    for row, hits in enumerate(found):
        first[row, np.unique(panoramas[hits], return_index=True)[1]] = True
    return first & (found >= 0)


def _padded(values: np.ndarray, count: int, filling: float = -1) -> np.ndarray:
    """The first `count` values of each row, filled up to as many."""
    padded = np.full((len(values), count), filling, values.dtype)
    padded[:, : values.shape[1]] = values[:, :count]
    return padded


def _nearest_of_other_times(
    database: Descriptors, queries: Descriptors, count: int, places: Places, search: Search | None
) -> np.ndarray:
    assert places.query_times is not None and places.database_times is not None
    found = np.full((len(queries), count), -1, np.int64)
    for time in np.unique(places.query_times):
        asking = np.flatnonzero(places.query_times == time)
        allowed = np.flatnonzero(places.database_times != time)
        if not len(allowed):
            continue
        if search:
            # So many leave `count`, whichever they are.
            enough = min(count + len(database) - len(allowed), len(database))
            hits = search_allowed(search, queries[asking], count, allowed, enough)
        else:
            hits = nearest(database, queries[asking], count, allowed)
        found[asking, : hits.shape[1]] = hits
    return found
