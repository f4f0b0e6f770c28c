"""Fewer dimensions for each cluster by one linear map that all clusters share: NVL of SuperPlace (arXiv:2506.13073)."""

from collections.abc import Iterable

import torch
from torch import nn

from vpr.models.pca import principal_components


class ClusterProjection(nn.Linear):
    """Maps the intra-normalised residual sum of each cluster from D to N dimensions: [B, K, D] -> [B, K, N].

    Its weight [N, D] and bias [N] are trained with the rest of the pooling.
    """

    @torch.no_grad()
    def init_from(self, residuals: Iterable[torch.Tensor]) -> None:
        """Start from the N orthonormal directions in which residuals to their centres are largest, without a bias.

        These are the principal components: k-means leaves residuals of mean zero in each cluster. What is mapped are
        sums of such residuals, so an untrained model keeps most of the similarity of descriptors, and with N = D,
        a rotation, all of it. SuperPlace starts from random weights.

        Args:
            residuals: of local descriptors to their cluster's centre, [n, D] at a time.
        """
        moment = torch.zeros(self.in_features, self.in_features, dtype=torch.float64)
        for rows in residuals:
            rows = rows.cpu().double()
            moment += rows.T @ rows
        directions = principal_components(moment, self.out_features)[1].T  # [N, D], largest first
        largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
        self.weight.copy_(directions * largest.sign())  # of either sign of an eigenvector the same one everywhere
        self.bias.zero_()
