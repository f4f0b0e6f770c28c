"""Stage 4, search: the nearest database descriptors of each query, by the protocol of the set."""

from collections.abc import Callable

import faiss
import numpy as np
import torch

from pittsburgh import Places
from vpr.catalogue import OTHER_TIME, PANORAMA
from vpr.progress import Progress

CUTOUTS_PER_PANORAMA = 12  # Tokyo 24/7
TILE_BYTES = 256 << 20  # of descriptors that are in float32 at a time, database and queries each

# (queries [m, dim], count) -> indices int64 [m, at most count], nearest first.
Search = Callable[[torch.Tensor, int], np.ndarray]


def nearest(database: torch.Tensor, queries: torch.Tensor, count: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """Exact Euclidean search by FAISS, tile by tile, so that float16 descriptors are never all in float32.

    Args:
        database: [N, dim], float16 or float32; queries: [M, dim], likewise.
        count: how many to find, at most.
        allowed: database indices to search among; None is all.

    Returns:
        int64 [M, min(count, N)], nearest first.
    """
    allowed = np.arange(len(database)) if allowed is None else allowed
    count = min(count, len(allowed))
    found = np.empty((len(queries), count), np.int64)
    with Progress("search", len(queries), "queries") as progress:
        for asking in tiles(len(queries), queries.shape[1]):
            rows = queries[asking].float().numpy()
            best = faiss.ResultHeap(len(rows), count)
            for tile in tiles(len(allowed), database.shape[1]):
                values = database[allowed[tile]].float().numpy()
                distances, indices = faiss.knn(rows, values, min(count, len(values)))
                best.add_result(distances, allowed[tile][indices])
            best.finalize()
            found[asking] = best.I
            progress.advance(len(rows))
    return found


def descriptor_distances(database: torch.Tensor, queries: torch.Tensor, found: np.ndarray) -> np.ndarray:
    """Euclidean distances of queries [M, dim] to database descriptors that were found for them.

    Args:
        found: [M, c] database indices; -1 is none.

    Returns:
        float32 [M, c]; NaN where there is none.
    """
    distances = np.full(found.shape, np.nan, np.float32)
    for row, hits in enumerate(found):
        there = hits >= 0
        differences = database[hits[there]].float() - queries[row].float()
        distances[row, there] = differences.norm(dim=1).numpy()
    return distances


def tiles(count: int, dim: int) -> list[slice]:
    """Rows 0 .. count - 1 of `dim` numbers in slices of at most TILE_BYTES in float32."""
    rows = max(1, TILE_BYTES // (4 * dim))
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


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
