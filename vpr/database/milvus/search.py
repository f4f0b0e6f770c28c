"""Searches of Milvus that end with the nearest images that are wanted, by their exact distances."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vpr.database.milvus.collection import INDEXES, QUICK, Collection
from vpr.database.milvus.rows import VECTOR

DEEPEST = 16_384  # hits of a query that Milvus finds
QUERY_BYTES, QUERIES, ANSWERS = 32 << 20, 256, 1 << 18  # of a call: bytes, queries, hits of all of them
SPARE = 8  # hits more than wanted, among which the nearest are chosen by their exact distances

Answer = tuple[np.ndarray, np.ndarray]  # of a query: rows int64 [c], -1 unknown, and inner products, greatest first
Hits = tuple[np.ndarray, np.ndarray]  # of a query: rows int64 [c] and squared distances float64 [c], nearest first
Ask = Callable[[np.ndarray, int], list[Answer]]  # (queries [m, dim], depth) -> the answers
Choose = Callable[[np.ndarray], np.ndarray]  # rows [c] -> bool [c], which are wanted


def asked(collection: Collection, values: np.ndarray, depth: int, wanted: str) -> list[tuple[list[int], list[float]]]:
    """Ids and inner products of the greatest `depth` for queries [M, dim], greatest first.

    Args:
        wanted: an expression that they fulfil, and then all that do are looked at, since few of them may lie where an
            index would look; empty: all.
    """
    # The greater of what is usual and what this depth needs.
    usual, thorough = INDEXES.get(collection.index, ({}, {}, {}))[1:]
    parameters = {name: max(value, depth) if name in ("ef", "search_list") else value
                  for name, value in (thorough if wanted else usual).items()}  # fmt: skip
    step = max(1, min(QUERIES, ANSWERS // depth, QUERY_BYTES // (values.itemsize * collection.dim)))
    found = []
    for start in range(0, len(values), step):
        some = list(values[start : start + step])

        def search(client: Any, some: list[np.ndarray] = some) -> Any:
            return client.search(
                collection.name, data=some, anns_field=VECTOR, limit=depth, filter=wanted, output_fields=["id"],
                search_params={"metric_type": "IP", "params": parameters},
                consistency_level=collection.consistency, **QUICK,
            )  # fmt: skip

        for hits in collection.connection.call(search):
            found.append(([hit["id"] for hit in hits], [hit["distance"] for hit in hits]))
    return found


def nearest_wanted(
    ask: Ask,
    values: np.ndarray,
    count: int,
    allowed: Callable[[np.ndarray], np.ndarray],
    lengths: Callable[[], np.ndarray],
) -> tuple[list[Hits], list[int]]:
    """Ask deeper and deeper until the nearest images that are wanted are certainly found.

    An image that was not found has a product of at most the last one that was, and so a squared distance of at least
    |q|^2 + min |x|^2 - 2 (q.x of the last): where the last hit is no farther, none is missing.

    Args:
        values: queries [M, dim].
        lengths: gives the squared lengths of all descriptors, by row, those included that were just found.

    Returns:
        hits of each query, and the queries for which they are not certain, since Milvus goes no deeper.
    """
    own = np.einsum("ij,ij->i", values, values, dtype=np.float64)
    hits: list[Hits] = [(np.empty(0, np.int64), np.empty(0))] * len(values)
    pending, depth = list(range(len(values))), min(count + SPARE, DEEPEST)
    while pending:
        left, answers = [], ask(values[pending], depth)
        squared = lengths()
        shortest = squared.min(initial=1.0)
        for query, (rows, products) in zip(pending, answers, strict=True):
            chosen = allowed(rows)
            distances = own[query] + squared[rows[chosen]] - 2 * products[chosen]
            order = np.argsort(distances, kind="stable")[:count]
            hits[query] = rows[chosen][order], distances[order]
            all_found = len(rows) < depth
            enough = len(order) == count
            if not (all_found or (enough and distances[order[-1]] <= own[query] + shortest - 2 * products[-1])):
                left.append(query)
        pending = left
        if depth == DEEPEST:
            break
        depth = min(2 * depth, DEEPEST)
    return hits, pending


def merged(parts: list[Hits], count: int) -> Hits:
    """The nearest of several lists of hits of one query."""
    rows, distances = (np.concatenate(values) for values in zip(*parts, strict=True))
    order = np.argsort(distances, kind="stable")[:count]
    return rows[order], distances[order]
