"""Short descriptors learnt of few images: the principal directions of descriptors of an adapted model.

Fewer images than dimensions say nothing of directions outside their span, in which images of other places differ. But
a descriptor of NetVLAD is a matrix, of K clusters' rows of D_l numbers, and each image shows K times how the columns
vary, and D_l times how the rows do. With both moments, A [K, K] and B [D_l, D_l], the covariance A (x) B / tr A is that
of a matrix normal distribution (Dutilleul, 1999). Directions are those of its mean with the images' own covariance,
which is shrunk so to a target with structure (Ledoit and Wolf, 2003).
"""

import torch

from vpr.models.pca import SMALLEST_VARIANCE, WHITENING, principal_components

SHORT = 512  # dimensions at most
SHARE = 0.5  # of the covariance is that of rows and columns
SMALLEST_SHARE = 1e-6  # of the largest variance: below there is little but rounding
FURTHER, STEPS = 128, 6  # directions beside those wanted, and steps of subspace iteration (Halko et al., 2011)


def short_projection(centred: torch.Tensor, clusters: int, seed: int) -> torch.Tensor:
    """The rows [dim, D] of a projection, the largest variance first: directions over the fourth root of the variance.

    Args:
        centred: [N, D] descriptors less their mean.
        clusters: K, rows of each descriptor; with 1 the covariance is the images' own.
    """
    count, length = centred.shape
    matrices = centred.view(count, clusters, -1)  # [N, K, D_l]
    across = torch.einsum("nkd,nld->kl", matrices, matrices) / count
    along = torch.einsum("nkd,nke->de", matrices, matrices) / count

    def by_covariance(rows: torch.Tensor) -> torch.Tensor:  # [r, D] -> [r, D]
        own = (rows @ centred.T) @ centred / count
        separable = across @ rows.view(len(rows), clusters, -1) @ along / across.trace().clamp_min(SMALLEST_VARIANCE)
        return own.lerp(separable.flatten(1), SHARE)

    dim = min(SHORT, length - 1)
    basis = torch.randn(min(dim + FURTHER, length), length, generator=torch.Generator().manual_seed(seed))
    for _ in range(STEPS):
        basis = torch.linalg.qr(by_covariance(basis).T).Q.T
    variances, mixed = principal_components(basis @ by_covariance(basis).T, dim)
    usable = variances > SMALLEST_SHARE * variances[0].clamp_min(SMALLEST_VARIANCE)
    return (mixed.T @ basis)[usable] * variances[usable, None].pow(-WHITENING / 2)
