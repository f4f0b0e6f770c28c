"""Hard negative mining (the paper's appendix on training): which photos make a query's tuple."""

from dataclasses import dataclass

import numpy as np

NEAREST_KEPT = 100  # of the sampled negatives, before those that do not violate are left out
NO_PHOTO = -1
QUERIES_AT_ONCE = 256


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
    database_descriptors: np.ndarray,
    query_descriptors: np.ndarray,
    positives: list[np.ndarray],
    not_negatives: list[np.ndarray],
    remembered: np.ndarray,
    rules: MiningRules,
    epoch: int,
) -> list[TrainingTuple]:
    """Make the tuples of a block of queries.

    Args:
        queries: int64 [B], indices of the block's queries, each with at least one positive.
        database_descriptors: float32 [N, dim], of length 1.
        query_descriptors: float32 [B, dim], of length 1, in the order of `queries`.
        positives, not_negatives: for every query of the set, database indices.
        remembered: int64 [M, rules.negatives], each query's hardest negatives so far, NO_PHOTO where
            there are none; the rows of this block's queries are overwritten.

    Returns:
        a tuple for each query that has a hard negative, in the order of `queries`.
    """
    tuples = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        block = slice(start, start + QUERIES_AT_ONCE)
        # |q - x|^2 = 2 - 2 q.x for descriptors of length 1; one product for all candidates.
        distances = 2 - 2 * (query_descriptors[block] @ database_descriptors.T)  # [b, N]
        for query, distance in zip(queries[block].tolist(), distances, strict=True):
            candidates = sample_negatives(
                len(distance), not_negatives[query], remembered[query], rules.sample, [rules.seed, epoch, query]
            )
            nearest = candidates[np.argsort(distance[candidates], kind="stable")[:NEAREST_KEPT]]
            remembered[query] = NO_PHOTO
            remembered[query, : min(len(nearest), rules.negatives)] = nearest[: rules.negatives]
            positive = positives[query][distance[positives[query]].argmin()]
            hard = nearest[distance[nearest] < distance[positive] + rules.margin][: rules.negatives]
            if len(hard):
                tuples.append(TrainingTuple(query, int(positive), hard))
    return tuples


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
