"""Exact search: the nearest database descriptors of each query, by FAISS in tiles."""

from collections.abc import Callable, Sequence

import faiss
import numpy as np

from vpr.common.progress import Progress
from vpr.search.floats import FEW_TILE_BYTES, TILE_BYTES, Descriptors, Float32Rows, tiles

FEW = 20  # queries, below which FAISS measures pair by pair: a tile then had best stay in the processor's cache

# (queries [m, dim], count) -> indices int64 [m, at most count], nearest first.
Search = Callable[[Descriptors, int], np.ndarray]


def nearest(database: Descriptors, queries: Descriptors, count: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """Exact Euclidean search by FAISS, tile by tile, so that float16 descriptors are never all in float32.

    Of rows that are equally far the first comes first.
    `database`: [N, dim]; `queries`: [M, dim]; float16 or float32. `allowed`: database indices to search among, or all.
    Gives int64 [M, min(count, N)], nearest first.
    """
    (asked, dim), among = queries.shape, database.shape[0] if allowed is None else len(allowed)
    count, tile_bytes = min(count, among), FEW_TILE_BYTES if asked < FEW else TILE_BYTES // 4
    found = np.empty((asked, count), np.int64)
    of_queries, of_database = Float32Rows(), Float32Rows()
    with Progress("search", asked, "queries") as progress:
        for asking in tiles(asked, dim, TILE_BYTES):
            rows = of_queries(queries, asking)
            best = faiss.ResultHeap(len(rows), count)
            for tile in tiles(among, dim, tile_bytes):
                values = of_database(database, tile if allowed is None else allowed[tile])
                distances, indices = faiss.knn(rows, values, min(count, len(values)))
                best.add_result(distances, indices + tile.start if allowed is None else allowed[tile][indices])
            best.finalize()
            found[asking] = best.I
            progress.advance(len(rows))
    return found


def descriptor_distances(database: Descriptors, queries: Descriptors, found: np.ndarray) -> np.ndarray:
    """Euclidean distances float32 [M, c] of queries [M, dim] to what was found for them, indices [M, c]; NaN at -1."""
    distances = np.full(found.shape, np.nan, np.float32)
    of_queries, of_database, dim = Float32Rows(), Float32Rows(), queries.shape[1]
    for asking in tiles(len(found), dim, TILE_BYTES // 8):
        asked = of_queries(queries, asking)
        row, column = np.nonzero(found[asking] >= 0)
        hits = found[asking][row, column]
        order = np.argsort(hits, kind="stable")  # pairs with the same hit follow each other: it is converted once
        row, column, hits = row[order], column[order], hits[order]
        needed, starts = np.unique(hits, return_index=True)
        bounds = np.append(starts, len(hits))
        for part in tiles(len(needed), dim, FEW_TILE_BYTES):
            pairs = slice(bounds[part.start], bounds[part.stop])
            values, which = of_database(database, needed[part]), np.searchsorted(needed[part], hits[pairs])
            squared = pair_distances(asked, row[pairs], values, which)
            distances[asking][row[pairs], column[pairs]] = np.sqrt(squared)
    return distances


def pair_distances(queries: np.ndarray, asking: np.ndarray, database: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Squared distances float32 [n] of pairs of rows, int64 [n] each, of two float32 arrays; sums of squares."""
    distances = np.empty(len(hits), np.float32)
    asking, hits = np.ascontiguousarray(asking, np.int64), np.ascontiguousarray(hits, np.int64)
    pointers = [faiss.swig_ptr(each) for each in (queries, asking, database, hits, distances)]
    faiss.pairwise_indexed_L2sqr(queries.shape[1], len(hits), *pointers)  # type: ignore[attr-defined]  # as stubs go
    return distances


def measured(
    descriptors: Callable[[np.ndarray], Descriptors], queries: Descriptors, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hits of any search in the order of their exact distances, as of `descriptor_distances`.

    Args:
        descriptors: gives those of some rows int64 [n], each once: [n, dim]; NaN where one is gone.
        queries: [M, dim]; found: rows [M, c], -1 is none.

    Returns:
        rows int64 [M, c], nearest first, and distances float32 [M, c]; -1 and NaN last.
    """
    distances = np.full(found.shape, np.nan, np.float32)
    for some in tiles(len(found), max(1, found.shape[1]) * queries.shape[1], TILE_BYTES):
        rows, which = np.unique(found[some], return_inverse=True)
        there = int((rows < 0).sum())  # -1 stands first
        stored = descriptors(rows[there:])
        distances[some] = descriptor_distances(stored, queries[some], which.reshape(found[some].shape) - there)
    return in_order(np.where(np.isnan(distances), -1, found), distances)


def in_order(found: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hits [M, c] by their distances, -1 last; of the same distance as they are.

    Of hits that are nearly as far as each other a search's own order is that of other sums, which rounding may turn.
    """
    order = np.argsort(np.where(found < 0, np.inf, distances), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(distances, order, axis=1)


def in_front(values: np.ndarray, kept: np.ndarray, filling: float = -1) -> np.ndarray:
    """The values that are kept in front of each row, in their order, then `filling`; both [M, c]."""
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(np.where(kept, values, filling), order, axis=1)


def merged(parts: Sequence[tuple[np.ndarray, np.ndarray]], queries: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of what several searches found, rows and distances [M, c] each; -1 and NaN last."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return np.empty((queries, 0), np.int64), np.empty((queries, 0), np.float32)
    found, distances = (np.concatenate(values, axis=1) for values in zip(*parts, strict=True))
    found, distances = in_order(found, distances)
    return found[:, :count], distances[:, :count]
