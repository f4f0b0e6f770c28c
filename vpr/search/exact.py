"""Exact search: the nearest database descriptors of each query, by FAISS in tiles."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import faiss
import numpy as np
import torch

from vpr.common.progress import Progress

TILE_BYTES = 256 << 20  # of descriptors that are in float32 at a time, database and queries each
# Of the database where few queries ask: a tile that stays in the processor's cache between conversion and search, in
# memory that the last one left. Pages that the kernel has to clear first take longer than all the arithmetic.
FEW, FEW_TILE_BYTES = 20, 8 << 20


class Rows(Protocol):
    """Descriptors [N, dim], a tensor or a file's, of which rows are read as they are asked for."""

    @property
    def shape(self) -> Any: ...
    def __getitem__(self, rows: Any, /) -> torch.Tensor: ...


# (queries [m, dim], count) -> indices int64 [m, at most count], nearest first.
Search = Callable[[torch.Tensor, int], np.ndarray]


def nearest(database: Rows, queries: torch.Tensor, count: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """Exact Euclidean search by FAISS, tile by tile, so that float16 descriptors are never all in float32.

    Args:
        database: [N, dim]; queries: [M, dim]; float16 or float32.
        allowed: database indices to search among; None: all.

    Returns:
        int64 [M, min(count, N)], nearest first.
    """
    every, allowed = allowed is None, np.arange(database.shape[0]) if allowed is None else allowed
    count, tile_bytes = min(count, len(allowed)), FEW_TILE_BYTES if len(queries) < FEW else TILE_BYTES
    found = np.empty((len(queries), count), np.int64)
    with Progress("search", len(queries), "queries") as progress:
        for asking in tiles(len(queries), queries.shape[1]):
            rows = queries[asking].float().numpy()
            best = faiss.ResultHeap(len(rows), count)
            for tile in tiles(len(allowed), database.shape[1], tile_bytes):
                values = database[tile if every else allowed[tile]].float().numpy()
                distances, indices = faiss.knn(rows, values, min(count, len(values)))
                best.add_result(distances, allowed[tile][indices])
            best.finalize()
            found[asking] = best.I
            progress.advance(len(rows))
    return found


def search_exactly(
    database: torch.Tensor, queries: torch.Tensor, count: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest`, with the distances float32 [M, c], by which hits are ordered: of hits that are nearly as far as
    each other FAISS's order is that of sums, which rounding may turn."""
    found = nearest(database, queries, count, allowed)
    return in_order(found, descriptor_distances(database, queries, found))


def descriptor_distances(database: torch.Tensor, queries: torch.Tensor, found: np.ndarray) -> np.ndarray:
    """Euclidean distances float32 [M, c] of queries [M, dim] to what was found for them, indices [M, c]; NaN at -1."""
    distances = np.full(found.shape, np.nan, np.float32)
    for row, hits in enumerate(found):
        there, query = np.flatnonzero(hits >= 0), queries[row].float()
        for part in tiles(len(there), database.shape[1], FEW_TILE_BYTES // 8):
            differences = database.index_select(0, torch.from_numpy(hits[there[part]])).float().sub_(query)
            distances[row, there[part]] = torch.linalg.vector_norm(differences, dim=1).numpy()
    return distances


def measured(
    descriptors: Callable[[np.ndarray], torch.Tensor], queries: torch.Tensor, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hits of any search in the order of their exact distances, as of `descriptor_distances`.

    Args:
        descriptors: gives those of some rows int64 [n], each once: [n, dim]; NaN where one is gone.
        queries: [M, dim]; found: rows [M, c], -1 is none.

    Returns:
        rows int64 [M, c], nearest first, and distances float32 [M, c]; -1 and NaN last.
    """
    distances = np.full(found.shape, np.nan, np.float32)
    for some in tiles(len(found), max(1, found.shape[1]) * queries.shape[1]):
        rows, which = np.unique(found[some], return_inverse=True)
        there = int((rows < 0).sum())  # -1 stands first
        stored = descriptors(rows[there:])
        distances[some] = descriptor_distances(stored, queries[some], which.reshape(found[some].shape) - there)
    return in_order(np.where(np.isnan(distances), -1, found), distances)


def in_order(found: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hits [M, c] by their distances, -1 last; of the same distance as they are."""
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


def tiles(count: int, dim: int, tile_bytes: int = TILE_BYTES) -> list[slice]:
    """Rows 0 .. count - 1 of `dim` numbers in slices of at most so many bytes in float32."""
    rows = max(1, tile_bytes // (4 * dim))
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
