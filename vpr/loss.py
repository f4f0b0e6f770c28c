"""The weakly supervised ranking loss (the paper's section 4, equation 7)."""

import torch


def triplet_loss(
    queries: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    owners: torch.Tensor,
    margin: float,
) -> tuple[torch.Tensor, int]:
    """Mean over the violating pairs of max(0, d^2(q, p) + margin - d^2(q, n)).

    Args:
        queries, positives: descriptors [T, dim], one per tuple.
        negatives: descriptors [N, dim] of all tuples' negatives.
        owners: int64 [N], the tuple of each negative.
        margin: in squared descriptor distance.

    Returns:
        the loss, a scalar (0 where no pair violates), and the number of violating pairs.
    """
    to_positive = (queries - positives).pow(2).sum(dim=1)  # [T]
    to_negative = (queries[owners] - negatives).pow(2).sum(dim=1)  # [N]
    violation = (to_positive[owners] + margin - to_negative).clamp_min(0)  # [N]
    violating = int((violation > 0).sum())
    return violation.sum() / max(violating, 1), violating
