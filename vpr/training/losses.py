"""Losses on a batch of tuples: descriptors of its images -> a sum, and over how many pairs it is to be averaged.

A loss is a function `loss(descriptors, tuples, margin) -> (sum, count)` in the table LOSSES; --loss takes its name.
What a step takes is the sum over the count, both of all processes together. The first is the paper's ranking loss
(section 4, equation 7).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table is read where the command line must not wait for torch
    import numpy as np
    import torch

    from vpr.training.tuples import TupleBatch

    Loss = Callable[[torch.Tensor, TupleBatch, float], tuple[torch.Tensor, int]]


def triplet(descriptors: "torch.Tensor", tuples: "TupleBatch", margin: float) -> tuple["torch.Tensor", int]:
    """The ranking loss of tuples whose images have the descriptors [B, dim]; see `triplet_violations`."""
    query, positive, negative = (
        select_rows(descriptors, rows) for rows in (tuples.query, tuples.positive, tuples.negative)
    )
    return triplet_violations(query, positive, negative, tuples.tuple_of_negative, margin)


LOSSES: "dict[str, Loss]" = {"triplet": triplet}


def select_rows(values: "torch.Tensor", rows: "torch.Tensor | np.ndarray") -> "torch.Tensor":
    """values[rows] with a gradient that is the same to the bit each time: [N, ...] and int64 [M] -> [M, ...].

    The gradient of values[rows] adds up several threads' shares in the order in which the threads come. Where three
    or more `rows` are the same, equal trainings on a processor would end with different weights.
    """
    import torch

    return values.index_select(0, torch.as_tensor(rows, device=values.device))


def triplet_violations(
    queries: "torch.Tensor",
    positives: "torch.Tensor",
    negatives: "torch.Tensor",
    tuple_of_negative: "torch.Tensor | np.ndarray",
    margin: float,
) -> tuple["torch.Tensor", int]:
    """Sum of max(0, d^2(q, p) + margin - d^2(q, n)) over all pairs of a query and one of its negatives.

    The loss is the mean over the violating pairs: sum / number, of all processes together.

    Args:
        queries, positives: descriptors [T, dim], one per tuple.
        negatives: descriptors [N, dim] of all tuples' negatives.
        tuple_of_negative: int64 [N], the tuple of each negative.
        margin: in squared descriptor distance.

    Returns:
        the sum, a scalar, and the number of pairs that violate.
    """
    to_positive = (queries - positives).pow(2).sum(dim=1)  # [T]
    to_negative = (select_rows(queries, tuple_of_negative) - negatives).pow(2).sum(dim=1)  # [N]
    violation = (select_rows(to_positive, tuple_of_negative) + margin - to_negative).clamp_min(0)  # [N]
    return violation.sum(), int((violation > 0).sum())
