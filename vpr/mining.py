"""Hard negative mining (the paper's appendix on training): which photos make a query's tuple."""

from dataclasses import dataclass

import numpy as np
import torch

NEAREST_KEPT = 100  # of the sampled negatives, before those that do not violate are left out
NO_PHOTO = -1
QUERIES_AT_ONCE = 1024
TILE_BYTES = 128 << 20  # of descriptors that are in float32 at a time
# One product with the whole database does this many distances in the time in which one is done on its own.
PRODUCT_GAIN = 50


@dataclass(frozen=True)
class TrainingTuple:
    """A query with its nearest potential positive and its hard negatives, nearest first.

    `query` indexes the queries, `positive` and `negatives` the database.
    """

    query: int
    positive: int
    negatives: np.ndarray


@dataclass(frozen=True)
class MiningRules:
    """How tuples are chosen.

    Attributes:
        negatives: hard negatives in a tuple, at most; as many are remembered for the next time.
        sample: random negatives drawn for a query.
        margin: a negative is hard if d^2 < d^2(positive) + margin.
        seed: of the draws; a query's draw depends on it, the round and the query alone.
    """

    negatives: int
    sample: int
    margin: float
    seed: int


def mine(
    queries: np.ndarray,
    database_descriptors: torch.Tensor,
    query_descriptors: torch.Tensor,
    positives: list[np.ndarray],
    not_negatives: list[np.ndarray],
    remembered: np.ndarray,
    rules: MiningRules,
    epoch: int,
) -> list[TrainingTuple]:
    """Make the tuples of a block of queries.

    Args:
        queries: int64 [B], indices of the block's queries, each with at least one positive.
        database_descriptors: [N, dim], of length 1, float16 or float32, on any device.
        query_descriptors: [B, dim], likewise, in the order of `queries`.
        positives, not_negatives: for every query of the set, database indices.
        remembered: int64 [M, rules.negatives], each query's hardest negatives so far, NO_PHOTO where
            there are none; the rows of this block's queries are overwritten.

    Returns:
        a tuple for each query that has a hard negative, in the order of `queries`.
    """
    tuples = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        block = queries[start : start + QUERIES_AT_ONCE].tolist()
        drawn = [
            sample_negatives(
                len(database_descriptors),
                not_negatives[query],
                remembered[query],
                rules.sample,
                [rules.seed, epoch, query],
            )
            for query in block
        ]
        candidates = [np.concatenate([positives[query], found]) for query, found in zip(block, drawn, strict=True)]
        rows = query_descriptors[start : start + QUERIES_AT_ONCE]
        distances = candidate_distances(rows, database_descriptors, candidates)
        for query, indices, distance in zip(block, candidates, distances, strict=True):
            split = len(positives[query])
            nearest = split + np.argsort(distance[split:], kind="stable")[: max(NEAREST_KEPT, rules.negatives)]
            remembered[query] = NO_PHOTO
            remembered[query, : min(len(nearest), rules.negatives)] = indices[nearest[: rules.negatives]]
            positive = distance[:split].argmin()
            hard = nearest[distance[nearest] < distance[positive] + rules.margin][: rules.negatives]
            if len(hard):
                tuples.append(TrainingTuple(query, int(indices[positive]), indices[hard]))
    return tuples


def candidate_distances(
    queries: torch.Tensor, database: torch.Tensor, candidates: list[np.ndarray]
) -> list[np.ndarray]:
    """Squared distances |q - x|^2 = 2 - 2 q.x of descriptors of length 1, from each query to its candidates.

    A product of all queries with all the database, tile by tile, is the faster way unless candidates are
    few in a large database: it reads the database once, not once for each query.

    Args:
        queries: [b, dim]; database: [N, dim]; both float16 or float32, on one device.
        candidates: for each of the b queries, database indices.

    Returns:
        for each query float32 [number of its candidates].
    """
    queries = queries.float()
    if len(database) > PRODUCT_GAIN * np.mean([len(indices) for indices in candidates]):
        products = [
            database[torch.from_numpy(indices).to(database.device)].float() @ query
            for query, indices in zip(queries, candidates, strict=True)
        ]
        return [2 - 2 * product.cpu().numpy() for product in products]
    tile = max(1, TILE_BYTES // (4 * database.shape[1]))
    products = queries.new_empty(len(queries), len(database))  # [b, N]
    buffer = queries.new_empty(min(tile, len(database)), database.shape[1])  # one: fresh memory costs page faults
    for start in range(0, len(database), tile):
        rows = database[start : start + tile]
        products[:, start : start + tile] = queries @ buffer[: len(rows)].copy_(rows).T
    return [2 - 2 * row[indices] for row, indices in zip(products.cpu().numpy(), candidates, strict=True)]


def sample_negatives(
    database_size: int, not_negatives: np.ndarray, remembered: np.ndarray, sample: int, seed: list[int]
) -> np.ndarray:
    """Up to `sample` distinct random negatives and the remembered ones: sorted distinct indices."""
    generator = np.random.default_rng(seed)
    # Enough draws that `sample` are left even if all that may not be negatives are among them.
    draws = min(database_size, sample + len(not_negatives))
    drawn = generator.choice(database_size, draws, replace=False)
    drawn = drawn[~np.isin(drawn, not_negatives)][:sample]
    return np.union1d(drawn, remembered[remembered != NO_PHOTO])
