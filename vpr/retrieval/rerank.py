"""Re-ranking: the first hits of a query ordered anew by their local descriptors.

A global descriptor says what is in an image, not where. The local descriptors that it pools still know, and are
computed already: `matching.py` finds which positions of the maps of a query and of a hit show the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vpr.common.progress import Progress
from vpr.descriptors.local_maps import LocalMaps
from vpr.retrieval.long_work import Pause, no_pause
from vpr.retrieval.matching import SCORES, Compared, matches_of, pairs_of
from vpr.retrieval.rules import Reranking
from vpr.retrieval.verification.head import head_of, probability

AT_ONCE = 8  # hits between two pauses
MOST_MATCHES = 40  # with the first hit, that are told or drawn


@dataclass(frozen=True)
class Reranked:
    """Hits in their new order, with what it was made by."""

    found: np.ndarray  # int64 [M, c], as given but for the order of the first K
    order: np.ndarray  # int64 [M, K], for each new rank the old one
    scores: np.ndarray  # float32 [M, K], final, in the new order; -inf where there is no hit
    local: dict[str, np.ndarray]  # float32 [M, K] by name of a score, local scores, 0 to 1
    agreeing: np.ndarray  # float32 [M, K], how many matches there are, each counted by how sure it is


def rerank(
    found: np.ndarray,
    similarities: np.ndarray,
    queries: LocalMaps,
    database: LocalMaps,
    how: Reranking,
    pause: Pause = no_pause,
    images: np.ndarray | None = None,
) -> Reranked:
    """Order the first hits of each query anew: by cosine + weight x local score, or by a head over these.

    Args:
        found: int64 [M, c] database indices, best first; -1 is none.
        similarities: [M, at least K] cosines of the global descriptors, K = min(depth, c).
        pause: called every few milliseconds.
        images: the database indices of which `database` has local descriptors, in rising order, all first hits among
            them; None: it has those of all.
    """
    depth = min(how.depth, found.shape[1])
    by = how.by if how.by in SCORES else "soft"
    # What the head for verified hits takes beside, of those that will be verified alone.
    later = [name for name in SCORES if name != by and how.verified and by != how.by and name in head_of(True).weights]
    local = {name: np.zeros((len(found), depth), np.float32) for name in (by, *later)}
    agreeing = np.zeros((len(found), depth), np.float32)
    scores = np.full_like(agreeing, -np.inf)
    with Progress("re-ranking", len(found), "queries") as progress:
        for query, hits in enumerate(found[:, :depth]):
            there = np.flatnonzero(hits >= 0)
            if len(there):
                stored = hits[there] if images is None else np.searchsorted(images, hits[there])
                cosines = similarities[query, there]
                own, counts = local_scores(query, stored, queries, database, by, pause)
                local[by][query, there], agreeing[query, there] = own, counts
                if by == how.by:
                    final = cosines + how.weight * own
                else:
                    final = probability(head_of(False).log_odds({"global": cosines, by: own}))
                scores[query, there] = final
                ahead = np.argsort(-final, kind="stable")[: how.verified]
                for name in later:
                    local[name][query, there[ahead]], _ = local_scores(
                        query, stored[ahead], queries, database, name, pause
                    )
            progress.advance()
    order = np.argsort(-scores, axis=1, kind="stable")
    first, scores, agreeing, *ordered = (
        np.take_along_axis(values, order, axis=1) for values in (found[:, :depth], scores, agreeing, *local.values())
    )
    found = np.concatenate([first, found[:, depth:]], axis=1)
    return Reranked(found, order, scores, dict(zip(local, ordered, strict=True)), agreeing)


def local_scores(
    query: int, hits: np.ndarray, queries: LocalMaps, database: LocalMaps, by: str = "soft", pause: Pause = no_pause
) -> tuple[np.ndarray, np.ndarray]:
    """How well the positions in a query's map match those of each of its hits.

    Args:
        query: its index in `queries`; hits: [C] indices in `database`.
        by: a key of SCORES.
        pause: called every few milliseconds.

    Returns:
        local scores float32 [C], 0 to 1: the sum of the weights of all matches, divided by the geometric mean of the
        two maps' sizes; and how many matches there are, each counted by how sure it is, float32 [C].
    """
    scored, size, sizes = [], int(queries.grids[query].prod()), database.grids[hits].prod(axis=1)
    step = len(hits) if pause is no_pause else AT_ONCE
    for start in range(0, len(hits), step):
        scored.append(SCORES[by](pairs_of(query, hits[start : start + step], queries, database)))
        pause()
    sums, counts = (np.concatenate(each) for each in zip(*scored, strict=True))
    return sums / np.sqrt(float(size) * sizes).astype(np.float32), counts


Compare = Callable[[int, int], Compared]  # the index of a query and that of a database image


def comparer(queries: LocalMaps, database: LocalMaps, how: Reranking, images: np.ndarray | None = None) -> Compare:
    """Compares queries with database images as re-ranking did; `images` as of `rerank`."""

    def compare(query: int, image: int) -> Compared:
        hit = image if images is None else int(np.searchsorted(images, image))
        score, _ = local_scores(query, np.array([hit]), queries, database, how.by if how.by in SCORES else "soft")
        return Compared(matches_of(query, hit, queries, database, MOST_MATCHES), float(score[0]))

    return compare
