"""The weakly supervised ranking loss (the paper's section 4, equation 7)."""

import torch


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
    to_negative = (queries[owners] - negatives).pow(2).sum(dim=1)  # [N]
    violation = (to_positive[owners] + margin - to_negative).clamp_min(0)  # [N]
    return violation.sum(), int((violation > 0).sum())
