"""Stage 4, search: the nearest database descriptors of each query, by the protocol of the set."""

import faiss
import numpy as np

from pittsburgh import Places

CUTOUTS_PER_PANORAMA = 12  # Tokyo 24/7
TOKYO_247 = "tokyo247"


def nearest(database: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Exact Euclidean search by FAISS.

    Args:
        database: float32 [N, dim].
        queries: float32 [M, dim].
        count: how many to find, at most.

    Returns:
        int64 [M, min(count, N)], nearest first.
    """
    # faiss.knn works on the arrays in place; an index would copy the database.
    _, found = faiss.knn(queries, database, min(count, len(database)))
    return found


def search_places(database: np.ndarray, queries: np.ndarray, count: int, places: Places) -> np.ndarray:
    """Find `count` hits for each query as the set's own protocol counts them.

    Tokyo 24/7: only the first hit of each panorama counts (Torii et al., CVPR 2015). Tokyo Time
    Machine: hits with the query's own time stamp do not count. Elsewhere: the nearest.

    Returns:
        int64 [M, count]; -1 where there are not so many.
    """
    if places.database_times is not None and places.query_times is not None:
        found = _nearest_of_other_times(database, queries, count, places)
    elif places.name == TOKYO_247:
        candidates = nearest(database, queries, count * CUTOUTS_PER_PANORAMA)
        found = first_per_panorama(candidates, panoramas_of(places.database_names))
    else:
        found = nearest(database, queries, count)
    padded = np.full((len(queries), count), -1, np.int64)
    padded[:, : min(count, found.shape[1])] = found[:, :count]
    return padded


def panoramas_of(names: list[str]) -> np.ndarray:
    """The panorama of each Tokyo 24/7 cut-out [N]: names are alike up to the heading behind the last '_'."""
    _, panoramas = np.unique([name.rsplit("_", 1)[0] for name in names], return_inverse=True)
    return panoramas


def first_per_panorama(candidates: np.ndarray, panoramas: np.ndarray) -> np.ndarray:
    """Keep the first hit of each panorama in each row; [M, c] -> [M, c], filled up with -1."""
    kept = np.full_like(candidates, -1)
    for row, hits in enumerate(candidates):
        _, first = np.unique(panoramas[hits], return_index=True)
        kept[row, : len(first)] = hits[np.sort(first)]
    return kept


def _nearest_of_other_times(database: np.ndarray, queries: np.ndarray, count: int, places: Places) -> np.ndarray:
    found = np.full((len(queries), count), -1, np.int64)
    for time in np.unique(places.query_times):
        asking = np.flatnonzero(places.query_times == time)
        allowed = np.flatnonzero(places.database_times != time)
        if len(allowed):
            hits = allowed[nearest(database[allowed], queries[asking], count)]
            found[asking, : hits.shape[1]] = hits
    return found
