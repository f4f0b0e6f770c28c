"""What came of each query of a test: its first hits, which are right, and how far off; Recall@N of all queries."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pittsburgh import Places

SHOWN = 5  # hits kept for each query


@dataclass(frozen=True)
class Hit:
    """A database image that was found for a query."""

    image: int  # its index in the database
    metres: float | None  # from the query, on the ground; None where positions are not known
    distance: float  # from the query, of the descriptors; 0 to 2
    right: bool  # whether it counts


@dataclass(frozen=True)
class Outcome:
    """What was found for one query."""

    query: int  # its index
    hits: list[Hit]  # the first SHOWN
    rank: int | None  # of the first right hit, from 1; None if none is among all that were looked at
    answerable: bool  # whether any database image would have been right
    reranked: bool = False  # whether the hits were re-ranked
    rank_before: int | None = None  # as `rank`, before that

    @property
    def status(self) -> str:
        """What came of the query, in words."""
        if self.rank is not None:
            return "found at 1" if self.rank == 1 else f"found at rank {self.rank}"
        return "missed" if self.answerable else "nothing within reach"

    @property
    def change(self) -> str:
        """What re-ranking made of the first hit: `gained` where it is right now and was not, `lost`, or nothing."""
        before, after = self.rank_before == 1, self.rank == 1
        return "" if not self.reranked or before == after else "gained" if after else "lost"

    @property
    def sort_key(self) -> tuple:
        """Sorts the worst first: misses before late hits before first hits, each the farther off the worse.

        Queries that nothing could have answered come behind the misses that something could.
        """
        metres = self.hits[0].metres if self.hits and self.hits[0].metres is not None else 0.0
        if self.rank is None:
            return (0 if self.answerable else 1, -metres)
        return (2, -self.rank, -metres)


def outcomes_of(
    found: np.ndarray,
    distances: np.ndarray,
    positives: Sequence[np.ndarray],
    places: Places,
    before: Sequence[Outcome] | None = None,
) -> list[Outcome]:
    """The outcome of each query, in the queries' order.

    Args:
        found: [M, count] database indices, nearest first, -1 is no hit; distances: [M, at least SHOWN].
        positives: for each query the database indices that are right.
        before: the outcomes before re-ranking, if there was any.
    """
    outcomes = []
    for query, (hits, wanted) in enumerate(zip(found, positives, strict=True)):
        right = np.isin(hits, wanted)
        rank = int(right.argmax()) + 1 if right.any() else None
        metres = np.linalg.norm(places.database_positions[hits] - places.query_positions[query], axis=1)
        first = zip(hits[:SHOWN].tolist(), metres.tolist(), distances[query].tolist(), right.tolist(), strict=False)
        shown = [
            Hit(hit, None if math.isnan(far) else far, distance, is_right)
            for hit, far, distance, is_right in first
            if hit >= 0
        ]
        earlier = before[query].rank if before else None
        outcomes.append(Outcome(query, shown, rank, len(wanted) > 0, before is not None, earlier))
    return outcomes


def recall_at(found: np.ndarray, positives: Sequence[np.ndarray], values: Sequence[int]) -> dict[int, float]:
    """Recall@N (the paper's section 5.1), 0 to 1, by N: the share of queries with a positive among their first N hits.

    A query without any positive counts as missed.
    `found`: [M, at least max(values)] database indices, nearest first; -1 is no hit. `positives`: for each of the M
    queries the database indices that are right.
    """
    right = np.array([np.isin(hits, wanted) for hits, wanted in zip(found, positives, strict=True)])  # [M, count]
    first_right = np.where(right.any(axis=1), right.argmax(axis=1), found.shape[1])  # [M]
    return {n: float((first_right < n).mean()) for n in values}


def recalls_before(outcomes: Sequence[Outcome], values: Sequence[int]) -> dict[int, float]:
    """As `recall_at`, before the hits were re-ranked."""
    ranks = [outcome.rank_before for outcome in outcomes]
    return {n: sum(rank is not None and rank <= n for rank in ranks) / len(ranks) for n in values}


def recall_line(recalls: dict[int, float]) -> str:
    """`R@1: 85.2, R@5: 94.8`, in percent."""
    return ", ".join(f"R@{n}: {100 * recall:.1f}" for n, recall in recalls.items())
