"""Matches between the local descriptors of a query and those of its hits, position by position, and their scores.

`soft` scores all pairs of positions, each by how likely the two match: the product of two softmaxes, over the positions
of the one image and of the other (the dual softmax of LoFTR, Sun et al., CVPR 2021, section 3.3, which names Rocco et
al., NeurIPS 2018, for it). `spatial` scores mutual nearest neighbours alone, each by how well its displacement agrees
with that of the others; it follows the rapid spatial score of Patch-NetVLAD (Hausler et al., CVPR 2021, section 3.5),
on single positions, with a robust mean in place of the plain one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vpr.descriptors.local_maps import LARGEST_MAP, SCALE, LocalMaps

TEMPERATURE = 0.1  # of the softmaxes over cosines
POWER = 3  # of a match's cosine: chance matches, whose cosines are low, count little
SPREAD = 0.3  # of the image's side: by so much displacements deviate that still agree
PASSES = 3  # of the robust mean
PADDING = -128  # first value of a row behind the end of a map; no descriptor has it
NOWHERE = -float(1 << 24)  # below all products
SMALLEST = 1e-9  # sum of weights


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


@dataclass(frozen=True)
class Pairs:
    """The local descriptors of a query and of some of its hits.

    Attributes:
        query: int8 [Q, d]; hits: int8 [C, P, d], padded.
        query_grid, grids: int32 [2] and [C, 2], rows and columns of their maps.
    """

    query: torch.Tensor
    query_grid: np.ndarray
    hits: torch.Tensor
    grids: np.ndarray


def pairs_of(query: int, hits: np.ndarray, queries: LocalMaps, database: LocalMaps) -> Pairs:
    """A query, by its index in `queries`, and its hits [C], by theirs in `database`."""
    own = torch.from_numpy(queries.rows(query).copy())
    return Pairs(own, queries.grids[query], padded_maps(hits, database), database.grids[hits])


def soft_sums(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over all pairs of positions of p x cosine, and of p, the probability that they match; float32 [C] each.

    p_ij = softmax over i of (cosine_ij / TEMPERATURE) x softmax over j of the same; negative cosines count as 0.
    """
    hits, query = pairs.hits, pairs.query.float() / (SCALE**2 * TEMPERATURE)
    logits = (hits.flatten(0, 1).float() @ query.T).view(*hits.shape[:2], len(query))  # [C, P, Q], -10 to 10
    logits.masked_fill_((hits[:, :, 0] == PADDING)[:, :, None], -torch.inf)
    shares = logits.exp()
    of_query = shares.sum(dim=1).reciprocal_()  # [C, Q]
    of_hit = shares.sum(dim=2).clamp_min_(SMALLEST).reciprocal_()  # [C, P]
    shares.square_()  # times the two reciprocals: p
    count = ((shares @ of_query[:, :, None])[:, :, 0] * of_hit).sum(dim=1)
    weighted = shares.mul_(logits.clamp_min_(0))
    return ((weighted @ of_query[:, :, None])[:, :, 0] * of_hit).sum(dim=1) * TEMPERATURE, count


def spatial_sums(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over all matches of cosine^POWER x agreement, and of agreement; float32 [C] each."""
    likeness, agreement, _ = weighted_matches(pairs)
    return (likeness * agreement).sum(dim=1), agreement.sum(dim=1)


# Pairs -> for each hit the sum of its matches' weights, and how many there are, each counted by how sure it is.
SCORES: dict[str, Callable[[Pairs], tuple[torch.Tensor, torch.Tensor]]] = {"soft": soft_sums, "spatial": spatial_sums}


def weighted_matches(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mutual nearest neighbours of a query and of each hit.

    Returns:
        for each hit and position of the query cosine^POWER of its match float32 [C, Q], 0 where it has none; how well
        the match agrees with the others, 0 to 1, likewise; and the matched position of the hit, int64 [C, Q].
    """
    position, cosines = mutual_matches(nearest_products(pairs.hits, pairs.query))
    query_points = points_of(pairs.query_grid[None])[0]  # [Q, 2]
    points = points_of(pairs.grids).gather(1, position[:, :, None].expand(-1, -1, 2))  # [C, Q, 2]
    likeness = cosines**POWER
    return likeness, displacement_agreement(query_points, points, likeness) * (cosines > 0), position


def nearest_products(hits: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Products of all local descriptors of hits with those of a query, each with the hit's position in it.

    Args:
        hits: int8 [C, P, d], padded; query: int8 [Q, d].

    Returns:
        float32 [C, P, Q]: 2^10 times the product, plus P - 1 - position. These are exact whole numbers below 2^24, in
        any order of summation: a product of two descriptors in 8 bits is below 2^14 (`vpr/descriptors/local_maps.py`,
        SCALE), and 2^10 is left for the position, so that one maximum finds both the nearest and which it is.
    """
    count, positions, _ = hits.shape
    numbers = torch.arange(positions - 1, -1, -1, dtype=torch.float32).expand(count, -1)  # the first of equals is taken
    padding = hits[:, :, 0] == PADDING
    left = hits.float().masked_fill_(padding[:, :, None], 0)
    left = torch.cat([left, numbers.masked_fill(padding, NOWHERE)[:, :, None]], dim=2)  # [C, P, d + 1]
    right = torch.cat([query.float() * LARGEST_MAP, torch.ones(len(query), 1)], dim=1)  # [Q, d + 1]
    return (left.flatten(0, 1) @ right.T).view(count, positions, len(query))


def mutual_matches(products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mutual nearest neighbours of query and hits, from `nearest_products` [C, P, Q].

    Returns:
        the hit's position nearest to each of the query's, int64 [C, Q], and their cosine float32 [C, Q], 0 where the
        match is not mutual or its cosine negative. A position of the hit has one match at most.
    """
    count, positions, own = products.shape
    best = products.amax(dim=1)  # [C, Q]
    best_of_hit = products.amax(dim=2)  # [C, P]
    whole = torch.floor(best / LARGEST_MAP)
    position = positions - 1 - (best - whole * LARGEST_MAP).long()  # [C, Q]
    mutual = best == best_of_hit.gather(1, position)
    # Of several equal positions of the query the first is the match, as of several of the hit.
    numbers = torch.arange(own).expand(count, -1)
    first = torch.full((count, positions), own)
    first.scatter_reduce_(1, position, torch.where(mutual, numbers, own), "amin", include_self=True)
    mutual &= first.gather(1, position) == numbers
    return position, (whole / SCALE**2).clamp_(0, 1) * mutual


def points_of(grids: np.ndarray) -> torch.Tensor:
    """Where the positions of maps of (rows, columns) [C, 2] lie, row by row: float32 [C, P, 2], (x, y) from 0 to 1."""
    number = torch.arange(int(grids.prod(axis=1).max()))
    rows, columns = torch.from_numpy(grids.astype(np.int64)).T[:, :, None]  # each [C, 1]
    x, y = number % columns, number // columns  # [C, P]
    return torch.stack([(x + 0.5) / columns, (y + 0.5) / rows], dim=2)


def displacement_agreement(query: torch.Tensor, hit: torch.Tensor, likeness: torch.Tensor) -> torch.Tensor:
    """How well the displacement of each match agrees with their robust mean: exp(-|deviation|^2 / 2 SPREAD^2), [C, Q].

    The mean is computed PASSES times, each match weighing its likeness times its agreement with the mean before.

    Args:
        query: [Q, 2], points (x, y); hit: [C, Q, 2], their matches; likeness: [C, Q], 0 where there is no match.
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


def matches_of(query: int, hit: int, queries: LocalMaps, database: LocalMaps, most: int = 50) -> Matches:
    """The mutual nearest neighbours of a query and a hit that agree best, to be drawn."""
    pairs = pairs_of(query, np.array([hit]), queries, database)
    likeness, agreement, position = weighted_matches(pairs)
    weights = (likeness * agreement)[0]
    heaviest = weights.argsort(descending=True, stable=True)[:most]
    heaviest = heaviest[weights[heaviest] > 0]
    query_points = points_of(pairs.query_grid[None])[0, heaviest]
    hit_points = points_of(pairs.grids)[0, position[0, heaviest]]
    return Matches(query_points.numpy(), hit_points.numpy(), weights[heaviest].numpy())


def padded_maps(hits: np.ndarray, database: LocalMaps) -> torch.Tensor:
    """The local descriptors of images as int8 [C, P, d], P of the largest, padded by PADDING."""
    parts = [torch.from_numpy(database.rows(int(hit)).copy()) for hit in hits]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=PADDING)
