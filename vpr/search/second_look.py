"""The second look: the first hits of a query ordered anew by where their local descriptors agree.

A global descriptor says what is in an image, not where. Here the local descriptors of query and hit that are each
other's nearest are matched, and a match counts by how well its displacement agrees with that of the others: the
rapid spatial score of Patch-NetVLAD (Hausler et al., CVPR 2021, section 3.5), on single places, with the cosine of the
two descriptors as a further weight.

Products are exact whole numbers below 2^24, so the same on every processor, in any order of summation: descriptors
come in 8 bits, a product of two is below 2^14 (`vpr/models/local_maps.py`, SCALE), and 2^10 is left for the number of a
place, so that one maximum over products finds both the nearest and which it is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from vpr.common.progress import Progress
from vpr.models.local_maps import LARGEST_MAP, SCALE, LocalMaps

LOCAL_WEIGHT = 4.0  # of the local score beside the cosine of global descriptors, which both are at most 1
POWER = 3  # of a match's cosine: chance matches, whose cosines are low, count little
SPREAD = 0.3  # of the image's side: by so much displacements deviate that still agree
PASSES = 3  # of the robust mean
TILE_BYTES = 16 << 20  # of products at a time
NOWHERE = -float(1 << 24)  # below all products
SMALLEST = 1e-9  # sum of weights


@dataclass(frozen=True)
class SecondLook:
    """How hits are ordered anew.

    Attributes:
        depth: how many first hits of each query; the others stay behind them.
        by: a key of AGREEMENTS.
        weight: of the local score; the global cosine has 1.
    """

    depth: int
    by: str = "spatial"
    weight: float = LOCAL_WEIGHT


@dataclass(frozen=True)
class Reranked:
    """Hits in their new order, with what it was made by.

    Attributes:
        found: int64 [M, c], as given but for the order of the first `depth`.
        order: int64 [M, K], for each new place the old one.
        scores: float32 [M, K], final, in the new order; -inf where there is no hit.
        local: float32 [M, K], local scores, 0 to 1.
        agreeing: float32 [M, K], how many matches agree, each counted by how well.
    """

    found: np.ndarray
    order: np.ndarray
    scores: np.ndarray
    local: np.ndarray
    agreeing: np.ndarray


@dataclass(frozen=True)
class Matches:
    """Matches of a query with one of its hits, the heaviest first.

    Attributes:
        query_points, hit_points: float32 [m, 2], (x, y) from 0 to 1 across the image.
        weights: float32 [m], 0 to 1.
    """

    query_points: np.ndarray
    hit_points: np.ndarray
    weights: np.ndarray


def rerank(
    found: np.ndarray, similarities: np.ndarray, queries: LocalMaps, database: LocalMaps, look: SecondLook
) -> Reranked:
    """Order the first hits of each query anew by cosine + weight x local score.

    Args:
        found: int64 [M, c] database indices, best first; -1 is none.
        similarities: [M, at least K] cosines of the global descriptors, K = min(depth, c).
    """
    depth = min(look.depth, found.shape[1])
    shape = (len(found), depth)
    order, scores = np.tile(np.arange(depth), (len(found), 1)), np.full(shape, -np.inf, np.float32)
    local, agreeing, ordered = np.zeros(shape, np.float32), np.zeros(shape, np.float32), found.copy()
    with Progress("second look", len(found), "queries") as progress:
        for query, hits in enumerate(found[:, :depth]):
            there = np.flatnonzero(hits >= 0)
            if len(there):
                own, counts = local_scores(query, hits[there], queries, database, look.by)
                final = np.full(depth, -np.inf, np.float32)
                final[there] = similarities[query, there] + look.weight * own
                local[query, there], agreeing[query, there] = own, counts
                order[query] = np.argsort(-final, kind="stable")
                scores[query] = final[order[query]]
                ordered[query, :depth] = hits[order[query]]
            progress.advance()
    local, agreeing = (np.take_along_axis(values, order, axis=1) for values in (local, agreeing))
    return Reranked(ordered, order, scores, local, agreeing)


def rerank_few(
    found: np.ndarray,
    similarities: np.ndarray,
    queries: LocalMaps,
    few: LocalMaps,
    images: np.ndarray,
    look: SecondLook,
) -> Reranked:
    """As `rerank`, where only some images of the database have local descriptors, and all first hits are among them.

    Args:
        few: of the database images [n] whose indices `images` has in rising order.
    """
    first = found[:, : look.depth]
    places = np.where(first >= 0, np.searchsorted(images, first), -1)
    again = rerank(places, similarities, queries, few, look)
    ordered = found.copy()
    ordered[:, : look.depth] = np.take_along_axis(first, again.order, axis=1)
    return replace(again, found=ordered)


def local_scores(
    query: int, hits: np.ndarray, queries: LocalMaps, database: LocalMaps, by: str = "spatial"
) -> tuple[np.ndarray, np.ndarray]:
    """How well the places of a query agree with those of each of its hits.

    Args:
        query: its index in `queries`.
        hits: [C] indices in `database`.

    Returns:
        local scores float32 [C], 0 to 1: the sum of cosine^POWER x agreement over all matches, divided by the
        geometric mean of the two numbers of places; and how many matches agree, float32 [C].
    """
    weights, agreements, counts = [], [], []
    for part in _tiles(query, hits, queries, database):
        likeness, agreement, _ = weighted_matches(query, part, queries, database, by)
        weights.append((likeness * agreement).sum(dim=1))
        agreements.append(agreement.sum(dim=1))
        counts.append(np.sqrt(float(queries.grids[query].prod()) * database.grids[part].prod(axis=1)))
    return torch.cat(weights).numpy() / np.concatenate(counts).astype(np.float32), torch.cat(agreements).numpy()


def weighted_matches(
    query: int, hits: np.ndarray, queries: LocalMaps, database: LocalMaps, by: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The matches of a query with several hits.

    Returns:
        for each hit and place of the query cosine^POWER of its match float32 [C, Q], 0 where it has none; how well
        the match agrees with the others, 0 to 1, likewise; and the place of the hit that it is, int64 [C, Q].
    """
    grids = database.grids[hits]
    products = nearest_products(_padded(hits, database), torch.from_numpy(queries.rows(query).copy()))
    place, cosines = mutual_matches(products)
    query_points = places_of(queries.grids[query : query + 1])[0]  # [Q, 2]
    points = places_of(grids).gather(1, place[:, :, None].expand(-1, -1, 2))  # [C, Q, 2]
    likeness = cosines**POWER
    return likeness, AGREEMENTS[by](query_points, points, likeness) * (cosines > 0), place


def nearest_products(hits: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Products of all local descriptors of hits with those of a query, each with the hit's place in it.

    Args:
        hits: int8 [C, P, d], padded by rows whose first value is -128, which no descriptor has.
        query: int8 [Q, d].

    Returns:
        float32 [C, P, Q]: 2^10 times the product, plus P - 1 - place. Exact whole numbers.
    """
    count, places, _ = hits.shape
    numbers = torch.arange(places - 1, -1, -1, dtype=torch.float32).expand(count, -1)  # the first of equals is taken
    padding = hits[:, :, 0] == -128
    left = hits.float().masked_fill_(padding[:, :, None], 0)
    left = torch.cat([left, numbers.masked_fill(padding, NOWHERE)[:, :, None]], dim=2)  # [C, P, d + 1]
    right = torch.cat([query.float() * LARGEST_MAP, torch.ones(len(query), 1)], dim=1)  # [Q, d + 1]
    return (left.flatten(0, 1) @ right.T).view(count, places, len(query))


def mutual_matches(products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of query and hit that are each other's nearest, from `nearest_products` [C, P, Q].

    Returns:
        the place of the hit nearest to each of the query's, int64 [C, Q], and their cosine float32 [C, Q], 0 where
        the match is not mutual or its cosine negative. A place of the hit has one match at most.
    """
    count, places, own = products.shape
    best = products.amax(dim=1)  # [C, Q]
    best_of_hit = products.amax(dim=2)  # [C, P]
    whole = torch.floor(best / LARGEST_MAP)
    place = places - 1 - (best - whole * LARGEST_MAP).long()  # [C, Q]
    mutual = best == best_of_hit.gather(1, place)
    # Of several equal places of the query the first is the match, as of several of the hit.
    numbers = torch.arange(own).expand(count, -1)
    first = torch.full((count, places), own).scatter_reduce_(
        1, place, torch.where(mutual, numbers, own), "amin", include_self=True
    )
    mutual &= first.gather(1, place) == numbers
    return place, (whole / SCALE**2).clamp_(0, 1) * mutual


def places_of(grids: np.ndarray) -> torch.Tensor:
    """The middle of each place of maps of (rows, columns) [C, 2], row by row: float32 [C, P, 2], (x, y) from 0 to 1."""
    number = torch.arange(int(grids.prod(axis=1).max()))
    rows, columns = torch.from_numpy(grids.astype(np.int64)).T[:, :, None]  # each [C, 1]
    x, y = number % columns, number // columns  # [C, P]
    return torch.stack([(x + 0.5) / columns, (y + 0.5) / rows], dim=2)


def displacement_agreement(query: torch.Tensor, hit: torch.Tensor, likeness: torch.Tensor) -> torch.Tensor:
    """How well the displacement of each match agrees with their robust mean: exp(-|deviation|^2 / 2 SPREAD^2).

    The mean is computed PASSES times, each match weighing its likeness times its agreement with the mean before.

    Args:
        query: [Q, 2], points (x, y); hit: [C, Q, 2], their matches; likeness: [C, Q], 0 where there is no match.

    Returns:
        float32 [C, Q], 0 to 1.
    """
    displacement = hit - query  # [C, Q, 2]
    weights = (likeness > 0).float()
    for _ in range(PASSES):
        total = weights.sum(dim=1).clamp_min(SMALLEST)
        mean = (displacement * weights[:, :, None]).sum(dim=1) / total[:, None]  # [C, 2]
        deviation = displacement - mean[:, None]
        agreement = torch.exp(deviation.square().sum(dim=2) / (-2 * SPREAD**2))
        weights = likeness * agreement
    return agreement


def any_displacement(_query: torch.Tensor, _hit: torch.Tensor, likeness: torch.Tensor) -> torch.Tensor:
    """All matches agree, wherever they are: for other viewpoints, where things move against each other."""
    return (likeness > 0).float()


# (query points [Q, 2], hit points [C, Q, 2], likeness [C, Q]) -> agreement [C, Q]
Agreement = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
AGREEMENTS: dict[str, Agreement] = {"spatial": displacement_agreement, "matches": any_displacement}


def matches_of(
    query: int, hit: int, queries: LocalMaps, database: LocalMaps, by: str = "spatial", most: int = 50
) -> Matches:
    """The matches of a query with a hit that weigh most, to be drawn."""
    likeness, agreement, place = weighted_matches(query, np.array([hit]), queries, database, by)
    weights = (likeness * agreement)[0]
    heaviest = weights.argsort(descending=True, stable=True)[:most]
    heaviest = heaviest[weights[heaviest] > 0]
    query_points = places_of(queries.grids[query : query + 1])[0][heaviest]
    hit_points = places_of(database.grids[hit : hit + 1])[0][place[0, heaviest]]
    return Matches(query_points.numpy(), hit_points.numpy(), weights[heaviest].numpy())


def _tiles(query: int, hits: np.ndarray, queries: LocalMaps, database: LocalMaps) -> list[np.ndarray]:
    """Hits in parts whose products with the query take at most TILE_BYTES."""
    largest = int(database.grids[hits].prod(axis=1).max())
    at_once = max(1, TILE_BYTES // (4 * largest * int(queries.grids[query].prod())))
    return [hits[start : start + at_once] for start in range(0, len(hits), at_once)]


def _padded(hits: np.ndarray, database: LocalMaps) -> torch.Tensor:
    """The local descriptors of images as int8 [C, P, d], P of the largest, padded by -128."""
    parts = [database.rows(int(hit)) for hit in hits]
    padded = np.full((len(parts), max(map(len, parts)), database.dim), -128, np.int8)
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
    return torch.from_numpy(padded)
