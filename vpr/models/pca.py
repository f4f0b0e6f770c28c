"""Principal components, of which whitening, local descriptors and the projection of clusters take the first."""

import torch


def principal_components(moment: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest eigenvalues of a symmetric matrix [D, D], largest first, and their vectors [D, count].

    Of a covariance they are the variances and the orthonormal directions in which data differ most.
    """
    values, vectors = torch.linalg.eigh(moment)  # ascending
    return values.flip(0)[:count], vectors.flip(1)[:, :count]
