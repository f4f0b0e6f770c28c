"""Which hits count: the search protocol of each data set."""

import numpy as np
import torch

from pittsburgh import Places
from vpr.data.catalogue import OTHER_TIME, PANORAMA
from vpr.search.exact import Search, nearest

CUTOUTS_PER_PANORAMA = 12  # Tokyo 24/7


def search_places(
    database: torch.Tensor, queries: torch.Tensor, count: int, places: Places, search: Search | None = None
) -> np.ndarray:
    """Find `count` hits for each query as the set's own protocol counts them.

    `panorama` (Tokyo 24/7): only the first hit of each panorama counts (Torii et al., CVPR 2015). `other_time`
    (Tokyo Time Machine): hits with the query's own time stamp do not count. `plain`: the nearest.

    Args:
        search: an approximate search of the database; None searches exactly.

    Returns:
        int64 [M, count]; -1 where there are not so many.
    """
    if places.protocol == OTHER_TIME:
        found = _nearest_of_other_times(database, queries, count, places, search)
    elif places.protocol == PANORAMA:
        candidates = _find(database, queries, count * CUTOUTS_PER_PANORAMA, search)
        found = first_per_panorama(candidates, panoramas_of(places.database_names))
    else:
        found = _find(database, queries, count, search)
    padded = np.full((len(queries), count), -1, np.int64)
    padded[:, : min(count, found.shape[1])] = found[:, :count]
    return padded


def _find(database: torch.Tensor, queries: torch.Tensor, count: int, search: Search | None) -> np.ndarray:
    return search(queries, count) if search else nearest(database, queries, count)


def panoramas_of(names: list[str]) -> np.ndarray:
    """The panorama of each Tokyo 24/7 cut-out [N]: names are alike up to the heading behind the last '_'."""
    _, panoramas = np.unique([name.rsplit("_", 1)[0] for name in names], return_inverse=True)
    return panoramas


def first_per_panorama(candidates: np.ndarray, panoramas: np.ndarray) -> np.ndarray:
    """Keep the first hit of each panorama in each row; [M, c] -> [M, c], filled up with -1."""
    first = np.zeros(candidates.shape, bool)
    for row, hits in enumerate(candidates):
        first[row, np.unique(panoramas[hits], return_index=True)[1]] = True
    return _in_front(candidates, first & (candidates >= 0))


def _in_front(hits: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Move the hits that are kept to the front of each row, in their order, and fill up with -1."""
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(np.where(kept, hits, -1), order, axis=1)


def _nearest_of_other_times(
    database: torch.Tensor, queries: torch.Tensor, count: int, places: Places, search: Search | None
) -> np.ndarray:
    assert places.query_times is not None and places.database_times is not None
    found = np.full((len(queries), count), -1, np.int64)
    for time in np.unique(places.query_times):
        asking = np.flatnonzero(places.query_times == time)
        allowed = np.flatnonzero(places.database_times != time)
        if not len(allowed):
            continue
        if search:
            hits = _search_allowed(search, queries[asking], count, allowed, len(database))
        else:
            hits = nearest(database, queries[asking], count, allowed)
        found[asking, : hits.shape[1]] = hits
    return found


def _search_allowed(
    search: Search, queries: torch.Tensor, count: int, allowed: np.ndarray, database_size: int
) -> np.ndarray:
    """Hits of an approximate search that are allowed [m, count], filled up with -1.

    Each query asks for twice as many as before until `count` of its hits are allowed, as one would in use. To ask
    at once for so many that `count` must be left would be slower and flatter some indexes: refined ones (RFlat) and
    NSG look the deeper the more hits they are asked for.
    """
    found = np.full((len(queries), count), -1, np.int64)
    enough = min(count + database_size - len(allowed), database_size)  # so many leave `count`, whichever they are
    open_queries, wanted = np.arange(len(queries)), count
    while len(open_queries):
        wanted = min(2 * wanted, enough)
        hits = search(queries[open_queries], wanted)
        hits = _in_front(hits, np.isin(hits, allowed))[:, :count]
        found[open_queries, : hits.shape[1]] = hits
        if wanted == enough:
            break
        open_queries = open_queries[(hits < 0).any(axis=1)]
    return found
