"""Hard negative mining (the paper's appendix on training): which images make a query's tuple."""

from collections import defaultdict

import numpy as np
import torch

from vpr.training.rules import TrainingRules
from vpr.training.tuples import TrainingTuple

NEAREST_KEPT = 100  # of the sampled negatives, before those that do not violate are left out
NO_IMAGE = -1
QUERIES_AT_ONCE = 32  # that share a draw
# Of descriptors that are in float32 at a time: on the CPU few enough to stay in its cache until they are multiplied.
TILE_BYTES, CPU_TILE_BYTES = 128 << 20, 8 << 20


def mine(
    queries: np.ndarray,
    database_descriptors: torch.Tensor,
    query_descriptors: torch.Tensor,
    positives: list[np.ndarray],
    not_negatives: list[np.ndarray],
    hard_negative_cache: np.ndarray,
    rules: TrainingRules,
    epoch: int,
) -> list[TrainingTuple]:
    """Make the tuples of a block of queries.

    Each 32 queries share a draw of random negatives: one product then gives all their distances, where
    draws of their own would take as many passes over the descriptors. For a single query nothing changes:
    its negatives are a uniform draw from all that it may have.

    Args:
        queries: int64 [B], indices of the block's queries, each with at least one positive.
        database_descriptors: [N, dim], of length 1, float16 or float32, on any device.
        query_descriptors: [B, dim], likewise, in the order of `queries`.
        positives, not_negatives: for every query of the set, database indices.
        rules: a negative is hard if d^2 < d^2(positive) + margin; `seed` is of the draws.
        hard_negative_cache: int64 [M, rules.negatives], each query's hardest negatives so far, NO_IMAGE where
            there are none; the rows of this block's queries are overwritten.

    Returns:
        a tuple for each query that has a hard negative, in the order of `queries`.
    """
    tuples = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        group = queries[start : start + QUERIES_AT_ONCE].tolist()
        generator = np.random.default_rng([rules.seed, epoch, group[0]])
        forbidden = [not_negatives[query] for query in group]
        drawn = draw_negatives(len(database_descriptors), forbidden, rules.negative_sample, generator)
        candidates = [
            np.concatenate([positives[query], join_cached(negatives, hard_negative_cache[query], not_negatives[query])])
            for query, negatives in zip(group, drawn, strict=True)
        ]
        rows = query_descriptors[start : start + QUERIES_AT_ONCE]
        distances = candidate_distances(rows, database_descriptors, candidates)
        for query, indices, distance in zip(group, candidates, distances, strict=True):
            found = choose(query, indices, distance, len(positives[query]), hard_negative_cache, rules)
            if found is not None:
                tuples.append(found)
    return tuples


def choose(
    query: int,
    indices: np.ndarray,
    distance: np.ndarray,
    positives: int,
    hard_negative_cache: np.ndarray,
    rules: TrainingRules,
) -> TrainingTuple | None:
    """The tuple of a query from its candidates, of which the first `positives` are positives; None if none is hard.

    Its row of the hard-negative cache is overwritten.
    """
    nearest = positives + np.argsort(distance[positives:], kind="stable")[: max(NEAREST_KEPT, rules.negatives)]
    hard_negative_cache[query] = NO_IMAGE
    hard_negative_cache[query, : min(len(nearest), rules.negatives)] = indices[nearest[: rules.negatives]]
    positive = distance[:positives].argmin()
    hard = nearest[distance[nearest] < distance[positive] + rules.margin][: rules.negatives]
    return TrainingTuple(query, int(indices[positive]), indices[hard]) if len(hard) else None


def candidate_distances(
    queries: torch.Tensor, database: torch.Tensor, candidates: list[np.ndarray], tile_bytes: int | None = None
) -> list[np.ndarray]:
    """Squared distances |q - x|^2 = 2 - 2 q.x of descriptors of length 1, from each query to its candidates.

    Args:
        queries: [b, dim]; database: [N, dim]; both float16 or float32, on one device.
        candidates: for each of the b queries, database indices.
        tile_bytes: of descriptors that are in float32 at a time; None: as suits the device.

    Returns:
        for each query float32 [number of its candidates].
    """
    wanted = np.unique(np.concatenate(candidates))
    rows = torch.from_numpy(wanted).to(database.device)
    queries = queries.float()
    tile_bytes = tile_bytes or (CPU_TILE_BYTES if database.device.type == "cpu" else TILE_BYTES)
    tile = min(max(1, tile_bytes // (4 * database.shape[1])), len(wanted))
    products = queries.new_empty(len(queries), len(wanted))  # [b, n]
    # Fresh memory for each tile would cost page faults.
    stored, wide = (each.new_empty(tile, database.shape[1]) for each in (database, queries))
    for start in range(0, len(wanted), tile):
        part = rows[start : start + tile]
        values = torch.index_select(database, 0, part, out=stored[: len(part)])
        products[:, start : start + tile] = queries @ wide[: len(part)].copy_(values).T
    return [
        2 - 2 * row[np.searchsorted(wanted, indices)]
        for row, indices in zip(products.cpu().numpy(), candidates, strict=True)
    ]


def draw_negatives(
    database_size: int, forbidden: list[np.ndarray], sample: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Up to `sample` distinct random negatives for each of a group of queries, from one draw; `forbidden` are, for each
    query, the database indices that may not be its negatives."""
    # Enough that `sample` are left to each query even if all that it may not have are among them.
    draws = min(database_size, sample + max(map(len, forbidden)))
    drawn = generator.choice(database_size, draws, replace=False)
    return [drawn[~np.isin(drawn, indices)][:sample] for indices in forbidden]


def join_cached(drawn: np.ndarray, cached: np.ndarray, forbidden: np.ndarray) -> np.ndarray:
    """Drawn and cached negatives without those that are `forbidden`: sorted distinct indices."""
    return np.setdiff1d(np.union1d(drawn, cached[cached != NO_IMAGE]), forbidden)


def all_alike(descriptors: torch.Tensor) -> bool:
    """Whether all descriptors [N, dim] are one, but for rounding: of equal images, or of a model that sees nothing."""
    first, bound = descriptors[0], 1e-2 * descriptors[0].abs() + 1e-6
    return all(bool(((each - first).abs() <= bound).all()) for each in descriptors)


def batches_of_queries(queries: np.ndarray, tuples: list[TrainingTuple], batch_size: int) -> list[list[TrainingTuple]]:
    """The tuples of each `batch_size` consecutive queries of a block: what an optimiser step is made of.

    As in the original release a query without a hard negative is skipped and not replaced by the next one, so
    a batch has `batch_size` tuples at most. Batches without any tuple are left out.

    Args:
        queries: int64 [B], the block's queries; the last batch has the rest of them.
        tuples: in the order of `queries`.
    """
    batch_of = {query: number // batch_size for number, query in enumerate(queries.tolist())}
    batches: dict[int, list[TrainingTuple]] = defaultdict(list)
    for item in tuples:
        batches[batch_of[item.query]].append(item)
    return list(batches.values())
