"""Matches between the local descriptors of a query and those of its hits, position by position, and their scores.

`soft` scores all pairs of positions, each by how likely the two match: the product of two softmaxes, over the positions
of the one image and of the other (the dual softmax of LoFTR, Sun et al., CVPR 2021, section 3.3, which names Rocco et
al., NeurIPS 2018, for it). `spatial` scores mutual nearest neighbours alone, each by how well its displacement agrees
with that of the others; it follows the rapid spatial score of Patch-NetVLAD (Hausler et al., CVPR 2021, section 3.5),
on single positions, with a robust mean in place of the plain one.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from vpr.common.device import compute_threads
from vpr.descriptors.local_maps import LARGEST_MAP, SCALE, LocalMaps

TEMPERATURE = 0.1  # of the softmaxes over cosines
POWER = 3  # of a match's cosine: chance matches, whose cosines are low, count little
SPREAD = 0.3  # of the image's side: by so much displacements deviate that still agree
PASSES = 3  # of the robust mean
SMALLEST = 1e-9  # sum of weights
Result = TypeVar("Result")


@dataclass(frozen=True)
class Matches:
    """Matches of a query with one of its hits, the heaviest first."""

    query_points: np.ndarray  # float32 [m, 2], (x, y) from 0 to 1 across the image
    hit_points: np.ndarray  # likewise
    weights: np.ndarray  # float32 [m], 0 to 1


@dataclass(frozen=True)
class Verification:
    """What keypoints tell of a query and a hit."""

    inliers: int  # matches that agree with one camera's movement
    matches: int  # of all keypoints that are each other's nearest
    fundamental: list[list[float]] | None  # 3x3, from (x, y, 1) of the query to lines in the hit, in their pixels
    query_size: tuple[int, int]  # width and height in pixels, upright and as the model sees it
    hit_size: tuple[int, int]  # likewise


@dataclass(frozen=True)
class Compared:
    """What re-ranking found of a query and one of its hits."""

    matches: Matches
    local_score: float
    verification: Verification | None = None  # None: of local descriptors


@dataclass(frozen=True)
class Pairs:
    """The local descriptors of a query and of some of its hits."""

    query: np.ndarray  # int8 [Q, d]
    query_grid: np.ndarray  # int32 [2], rows and columns of its map
    hits: np.ndarray  # [C] indices in `database`
    database: LocalMaps

    def of_each(self, compare: Callable[[np.ndarray], Result]) -> list[Result]:
        """What a function makes of the local descriptors int8 [P, d] of each hit, by a thread for each core."""
        return by_threads(lambda hit: compare(self.database.rows(int(hit))), self.hits)


def by_threads(compare: Callable[[Any], Result], hits: Iterable[Any]) -> list[Result]:
    """What a function makes of each hit, by a thread for each core.

    The products of two maps, and what is computed of them, then stay in the core's cache, where one hit after the
    other by all cores would wait for memory. BLAS's number of threads is the process's: two that limit it at once may
    leave it limited, so they take turns.
    """
    with _limiting, _libraries().limit(limits=1, user_api="blas"):
        return list(_threads(compute_threads()).map(compare, hits))


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "re-ranking")


class _Memory(threading.local):
    """Two arrays of each thread, used again for every hit: new ones cost more than what is computed in them."""

    def __init__(self) -> None:
        self._both = np.empty((2, 0), np.float32)

    def of(self, rows: int, columns: int) -> np.ndarray:
        """Float32 [2, rows, columns], of any values."""
        if self._both.shape[1] < rows * columns:
            self._both = np.empty((2, rows * columns), np.float32)
        return self._both[:, : rows * columns].reshape(2, rows, columns)


memory, _limiting = _Memory(), threading.Lock()


def pairs_of(query: int, hits: np.ndarray, queries: LocalMaps, database: LocalMaps) -> Pairs:
    """A query, by its index in `queries`, and its hits [C], by theirs in `database`."""
    return Pairs(queries.rows(query), queries.grids[query], hits, database)


def soft_sums(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """The sum over all pairs of positions of p x cosine, and of p, the probability that they match; float32 [C] each.

    p_ij = softmax over i of (cosine_ij / TEMPERATURE) x softmax over j of the same; negative cosines count as 0.
    """
    query = np.ascontiguousarray(pairs.query.T, np.float32) / np.float32(SCALE**2 * TEMPERATURE)  # [d, Q]
    ones, zeros = np.ones(LARGEST_MAP, np.float32), np.zeros(query.shape[1], np.float32)

    def sums(hit: np.ndarray) -> tuple[float, float]:
        logits, shares = memory.of(len(hit), query.shape[1])  # [P, Q], -10 to 10
        np.matmul(hit.astype(np.float32), query, out=logits)
        np.exp(logits, out=shares)
        # BLAS sums faster than NumPy, and NumPy's maximum with a row is faster than that with a number.
        of_query, of_hit = 1 / (ones[: len(hit)] @ shares), 1 / (shares @ ones[: query.shape[1]])
        np.multiply(shares, shares, out=shares)  # times the two reciprocals: p
        count = of_hit @ (shares @ of_query)
        np.maximum(logits, zeros, out=logits)
        np.multiply(shares, logits, out=shares)
        return TEMPERATURE * (of_hit @ (shares @ of_query)), count

    found = np.array(pairs.of_each(sums), np.float32)
    return found[:, 0], found[:, 1]


def spatial_sums(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """The sum over all matches of cosine^POWER x agreement, and of agreement; float32 [C] each."""
    likeness, agreement, _ = weighted_matches(pairs)
    return (likeness * agreement).sum(axis=1), agreement.sum(axis=1)


# Pairs -> for each hit the sum of its matches' weights, and how many there are, each counted by how sure it is.
SCORES: dict[str, Callable[[Pairs], tuple[np.ndarray, np.ndarray]]] = {"soft": soft_sums, "spatial": spatial_sums}


def weighted_matches(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mutual nearest neighbours of a query and of each hit.
    Gives for each hit and position of the query cosine^POWER of its match float32 [C, Q], 0 where it has none; how well
    the match agrees with the others, 0 to 1, likewise; and the matched position of the hit, int64 [C, Q]."""
    query = np.concatenate([pairs.query.T.astype(np.float32) * LARGEST_MAP, np.ones((1, len(pairs.query)), np.float32)])
    found = pairs.of_each(lambda hit: mutual_matches(nearest_products(hit, query)))
    position, cosines = (np.stack(each) for each in zip(*found, strict=True))
    points = points_of(position, pairs.database.grids[pairs.hits])  # [C, Q, 2]
    likeness = cosines**POWER
    agreement = displacement_agreement(all_points(pairs.query_grid), points, likeness)
    return likeness, agreement * (cosines > 0), position


def nearest_products(hit: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Products of all local descriptors of a hit with those of a query, each with the hit's position in it.

    Args:
        hit: int8 [P, d].
        query: float32 [d + 1, Q]: 2^10 times its local descriptors, and ones.

    Returns:
        float32 [P, Q]: 2^10 times the product, plus P - 1 - position. These are exact whole numbers below 2^24, in
        any order of summation: a product of two descriptors in 8 bits is below 2^14 (`vpr/descriptors/local_maps.py`,
        SCALE), and 2^10 is left for the position, so that one maximum finds both the nearest and which it is. They
        hold until the thread's next.
    """
    numbers = np.arange(len(hit) - 1, -1, -1, dtype=np.float32)[:, None]  # the first of equals is taken
    left = np.concatenate([hit, numbers], axis=1, dtype=np.float32)  # [P, d + 1]
    return np.matmul(left, query, out=memory.of(len(hit), query.shape[1])[0])


def mutual_matches(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest neighbours of query and hit, from `nearest_products` [P, Q].
    Gives the hit's position nearest to each of the query's, int64 [Q], and their cosine float32 [Q], 0 where the match
    is not mutual or its cosine negative. A position of the hit has one match at most."""
    best = products.max(axis=0)  # [Q]
    whole = np.floor(best / LARGEST_MAP)
    position = len(products) - 1 - (best - whole * LARGEST_MAP).astype(np.int64)
    mutual = np.flatnonzero(best == products.max(axis=1)[position])
    # Of several equal positions of the query the first is the match, as of several of the hit.
    matched = mutual[np.unique(position[mutual], return_index=True)[1]]
    cosines = np.zeros(len(best), np.float32)
    cosines[matched] = (whole[matched] / SCALE**2).clip(0, 1)
    return position, cosines


def points_of(positions: np.ndarray, grids: np.ndarray) -> np.ndarray:
    """Where positions [C, m] of maps of (rows, columns) [C, 2], row by row, lie: float32 [C, m, 2], (x, y), 0 to 1."""
    rows, columns = grids.T[:, :, None].astype(np.int64)  # each [C, 1]
    x, y = positions % columns, positions // columns
    return np.stack([(x + 0.5) / columns, (y + 0.5) / rows], axis=2).astype(np.float32)


def all_points(grid: np.ndarray) -> np.ndarray:
    """Where all positions of a map of (rows, columns) lie: float32 [P, 2]."""
    return points_of(np.arange(int(grid.prod()))[None], grid[None])[0]


def displacement_agreement(query: np.ndarray, hit: np.ndarray, likeness: np.ndarray) -> np.ndarray:
    """How well the displacement of each match agrees with their robust mean: exp(-|deviation|^2 / 2 SPREAD^2), [C, Q].

    The mean is computed PASSES times, each match weighing its likeness times its agreement with the mean before.
    `query`: [Q, 2], points (x, y); `hit`: [C, Q, 2], their matches; `likeness`: [C, Q], 0 where there is no match.
    """
    displacement = hit - query  # [C, Q, 2]
    weights = (likeness > 0).astype(np.float32)
    for _ in range(PASSES):
        total = np.maximum(weights.sum(axis=1), SMALLEST)
        mean = np.einsum("cqx,cq->cx", displacement, weights) / total[:, None]  # [C, 2]
        deviation = displacement - mean[:, None]
        agreement = np.exp(np.square(deviation).sum(axis=2) / np.float32(-2 * SPREAD**2))
        weights = likeness * agreement
    return agreement


def matches_of(query: int, hit: int, queries: LocalMaps, database: LocalMaps, most: int = 50) -> Matches:
    """The mutual nearest neighbours of a query and a hit that agree best, to be drawn."""
    pairs = pairs_of(query, np.array([hit]), queries, database)
    likeness, agreement, position = weighted_matches(pairs)
    weights = (likeness * agreement)[0]
    heaviest = np.argsort(-weights, kind="stable")[:most]
    heaviest = heaviest[weights[heaviest] > 0]
    hit_points = points_of(position[:, heaviest], database.grids[[hit]])[0]
    return Matches(all_points(pairs.query_grid)[heaviest], hit_points, weights[heaviest])


def beyond_chance(matches: Matches, others: Sequence[Matches]) -> Matches:
    """Matches that weigh more than those of the same points of the query with images of other places: `others`, of the
    database, drawn at random.

    What all images show, such as the camera's own frame, sky or padding, matches itself everywhere and says nothing.
    """
    usual: dict[tuple, float] = {}
    for other in others:
        for point, weight in zip(map(tuple, other.query_points.tolist()), other.weights.tolist(), strict=True):
            usual[point] = max(weight, usual.get(point, 0.0))
    points = map(tuple, matches.query_points.tolist())
    kept = np.array(
        [w > usual.get(point, 0.0) for point, w in zip(points, matches.weights.tolist(), strict=True)], bool
    )
    return Matches(matches.query_points[kept], matches.hit_points[kept], matches.weights[kept])
