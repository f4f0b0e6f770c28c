"""The weakly supervised ranking loss (the paper's section 4, equation 7)."""

import numpy as np
import torch


def select_rows(values: torch.Tensor, rows: torch.Tensor | np.ndarray) -> torch.Tensor:
    """values[rows] with a gradient that is the same to the bit each time: [N, ...] and int64 [M] -> [M, ...].

    The gradient of values[rows] adds up several threads' shares in the order in which the threads come. Where three
    or more `rows` are the same, equal trainings on a processor would end with different weights.
    """
    return values.index_select(0, torch.as_tensor(rows, device=values.device))


def triplet_violations(
    queries: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    owners: torch.Tensor,
    margin: float,
) -> tuple[torch.Tensor, int]:
    """Sum of max(0, d^2(q, p) + margin - d^2(q, n)) over all pairs of a query and one of its negatives.

    The loss is the mean over the violating pairs: sum / number, of all processes together.

    Args:
        queries, positives: descriptors [T, dim], one per tuple.
        negatives: descriptors [N, dim] of all tuples' negatives.
        owners: int64 [N], the tuple of each negative.
        margin: in squared descriptor distance.

    Returns:
        the sum, a scalar, and the number of pairs that violate.
    """
    to_positive = (queries - positives).pow(2).sum(dim=1)  # [T]
    to_negative = (select_rows(queries, owners) - negatives).pow(2).sum(dim=1)  # [N]
    violation = (select_rows(to_positive, owners) + margin - to_negative).clamp_min(0)  # [N]
    return violation.sum(), int((violation > 0).sum())
