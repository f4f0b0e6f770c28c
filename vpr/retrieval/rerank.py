"""Re-ranking: the first hits of a query ordered anew by their local descriptors.

A global descriptor says what is in an image, not where. The local descriptors that it pools still know, and are
computed already: `matching.py` finds which places of a query and of a hit are the same. Results, calibrations and
messages call re-ranking a second look.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vpr.common.progress import Progress
from vpr.descriptors.local_maps import LocalMaps
from vpr.retrieval.matching import SCORES, Matches, matches_of, pairs_of
from vpr.retrieval.rules import Reranking

TILE_BYTES = 8 << 20  # of products of local descriptors at a time
MOST_MATCHES = 40  # with the first hit, that are told or drawn


@dataclass(frozen=True)
class Reranked:
    """Hits in their new order, with what it was made by.

    Attributes:
        found: int64 [M, c], as given but for the order of the first `depth`.
        order: int64 [M, K], for each new place the old one.
        scores: float32 [M, K], final, in the new order; -inf where there is no hit.
        local: float32 [M, K], local scores, 0 to 1.
        agreeing: float32 [M, K], how many matches there are, each counted by how sure it is.
    """

    found: np.ndarray
    order: np.ndarray
    scores: np.ndarray
    local: np.ndarray
    agreeing: np.ndarray


def rerank(
    found: np.ndarray,
    similarities: np.ndarray,
    queries: LocalMaps,
    database: LocalMaps,
    how: Reranking,
    pause: Callable[[], None] | None = None,
    images: np.ndarray | None = None,
) -> Reranked:
    """Order the first hits of each query anew by cosine + weight x local score.

    Args:
        found: int64 [M, c] database indices, best first; -1 is none.
        similarities: [M, at least K] cosines of the global descriptors, K = min(depth, c).
        pause: called every few milliseconds.
        images: the database indices of which `database` has local descriptors, in rising order, all first hits among
            them; None: it has those of all.
    """
    depth = min(how.depth, found.shape[1])
    shape = (len(found), depth)
    order, scores = np.tile(np.arange(depth), (len(found), 1)), np.full(shape, -np.inf, np.float32)
    local, agreeing, ordered = np.zeros(shape, np.float32), np.zeros(shape, np.float32), found.copy()
    with Progress("second look", len(found), "queries") as progress:
        for query, hits in enumerate(found[:, :depth]):
            there = np.flatnonzero(hits >= 0)
            if len(there):
                stored = hits[there] if images is None else np.searchsorted(images, hits[there])
                own, counts = local_scores(query, stored, queries, database, how.by, pause)
                final = np.full(depth, -np.inf, np.float32)
                final[there] = similarities[query, there] + how.weight * own
                local[query, there], agreeing[query, there] = own, counts
                order[query] = np.argsort(-final, kind="stable")
                scores[query] = final[order[query]]
                ordered[query, :depth] = hits[order[query]]
            progress.advance()
    local, agreeing = (np.take_along_axis(values, order, axis=1) for values in (local, agreeing))
    return Reranked(ordered, order, scores, local, agreeing)


def local_scores(
    query: int,
    hits: np.ndarray,
    queries: LocalMaps,
    database: LocalMaps,
    by: str = "soft",
    pause: Callable[[], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """How well the places of a query match those of each of its hits.

    Args:
        query: its index in `queries`.
        hits: [C] indices in `database`.
        by: a key of SCORES.
        pause: called every few milliseconds.

    Returns:
        local scores float32 [C], 0 to 1: the sum of the weights of all matches, divided by the geometric mean of the
        two numbers of places; and how many matches there are, each counted by how sure it is, float32 [C].
    """
    scored = []
    for part in _tiles(query, hits, queries, database):
        scored.append(SCORES[by](pairs_of(query, part, queries, database)))
        if pause:
            pause()
    sums, counts = zip(*scored, strict=True)
    places = np.sqrt(float(queries.grids[query].prod()) * database.grids[hits].prod(axis=1))
    return torch.cat(sums).numpy() / places.astype(np.float32), torch.cat(counts).numpy()


def _tiles(query: int, hits: np.ndarray, queries: LocalMaps, database: LocalMaps) -> list[np.ndarray]:
    """Hits in parts whose products with the query take at most TILE_BYTES."""
    largest = int(database.grids[hits].prod(axis=1).max())
    at_once = max(1, TILE_BYTES // (4 * largest * int(queries.grids[query].prod())))
    return [hits[start : start + at_once] for start in range(0, len(hits), at_once)]


@dataclass(frozen=True)
class Compared:
    """What re-ranking found of a query and one of its hits."""

    matches: Matches
    local_score: float


Compare = Callable[[int, int], Compared]  # the index of a query and that of a database image


def comparer(queries: LocalMaps, database: LocalMaps, how: Reranking, images: np.ndarray | None = None) -> Compare:
    """Compares queries with database images as re-ranking did.

    Args:
        images: as of `rerank`.
    """

    def compare(query: int, image: int) -> Compared:
        hit = image if images is None else int(np.searchsorted(images, image))
        score, _ = local_scores(query, np.array([hit]), queries, database, how.by)
        return Compared(matches_of(query, hit, queries, database, MOST_MATCHES), float(score[0]))

    return compare
