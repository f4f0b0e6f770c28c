"""The multi-similarity loss (Wang et al., CVPR 2019) of images by place, with its mining of pairs."""

import torch

EPSILON = 0.1  # of cosine, by which a pair is mined that is not yet worse than the anchor's worst of the other kind
ALPHA, BETA = 1.0, 50.0  # weights of similarities in the softmax of positives, of negatives
INFINITE = float("inf")


def multi_similarity(descriptors: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each image with all others, and which pairs it is of.

    Of similarities S of an anchor, an image that shows its place is mined where S - epsilon is below the largest S of
    other places, and one of another place where S + epsilon is above the smallest S of its own. The loss is
    log(1 + sum exp(-alpha S)) / alpha over the former and log(1 + sum exp(beta S)) / beta over the latter: 0 where
    nothing is mined.

    Args:
        descriptors: [B, dim] of length 1, float32 or float64.
        places: int64 [B].

    Returns:
        losses [B], whose mean is the batch's, and bool [B, B], whether an anchor's pair with another image is mined.
    """
    similarity = descriptors @ descriptors.T
    other = places[:, None] != places
    same = ~other & ~torch.eye(len(places), dtype=torch.bool, device=places.device)
    positive = same & (similarity - EPSILON < similarity.masked_fill(~other, -INFINITE).amax(1, keepdim=True))
    negative = other & (similarity + EPSILON > similarity.masked_fill(~same, INFINITE).amin(1, keepdim=True))
    losses = _soft_sum(-ALPHA * similarity, positive) / ALPHA + _soft_sum(BETA * similarity, negative) / BETA
    return losses, positive | negative


def _soft_sum(values: torch.Tensor, mined: torch.Tensor) -> torch.Tensor:
    """log(1 + the sum of exp) of those values [B, B] that are mined, over each row: [B]."""
    one = values.new_zeros(len(values), 1)  # exp(0)
    return torch.cat([one, values.masked_fill(~mined, -INFINITE)], dim=1).logsumexp(dim=1)
