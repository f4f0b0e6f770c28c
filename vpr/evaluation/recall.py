"""Stage 5, recall: how many queries have a hit among the first N."""

from collections.abc import Sequence

import numpy as np


def recall_at(found: np.ndarray, positives: Sequence[np.ndarray], values: Sequence[int]) -> dict[int, float]:
    """Recall@N (the paper's section 5.1): the share of queries with a positive among their first N hits.

    A query without any positive counts as missed.

    Args:
        found: [M, at least max(values)] database indices, nearest first; -1 is no hit.
        positives: for each of the M queries the database indices that are right.
        values: the N.

    Returns:
        {N: recall between 0 and 1}.
    """
    right = np.array([np.isin(hits, wanted) for hits, wanted in zip(found, positives, strict=True)])  # [M, count]
    first_right = np.where(right.any(axis=1), right.argmax(axis=1), found.shape[1])  # [M]
    return {n: float((first_right < n).mean()) for n in values}


def recall_line(recalls: dict[int, float]) -> str:
    """`R@1: 85.2, R@5: 94.8`, in percent."""
    return ", ".join(f"R@{n}: {100 * recall:.1f}" for n, recall in recalls.items())
