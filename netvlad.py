"""The NetVLAD layer (Arandjelovic et al., "NetVLAD", CVPR 2016, section 3.1).

VLAD describes an image by how its local descriptors x_p differ from the centres c_k of K clusters:

    (1)  V(k, :) = sum_p a_k(x_p) (x_p - c_k)                       a_k(x) = 1 for the cluster nearest to x, else 0

NetVLAD assigns softly, so that gradients reach the assignment: by squared distances, with a sharpness alpha,

    (2)  a_k(x) = exp(-alpha |x - c_k|^2) / sum_j exp(-alpha |x - c_j|^2)

in which |x|^2 cancels. With w_k = 2 alpha c_k and b_k = -alpha |c_k|^2 it is a linear map and a softmax,

    (3)  a_k(x) = exp(w_k . x + b_k) / sum_j exp(w_j . x + b_j)

and w_k, b_k and c_k are learnt as three parameters of their own:

    (4)  V(k, :) = sum_p a_k(x_p) (x_p - c_k)                       with a_k of (3)

Each row of V is L2-normalised (intra-normalisation), then the whole. This file needs PyTorch alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

SMALLEST_NORM = 1e-12  # what F.normalize uses


class NetVLAD(nn.Module):
    """Pools a map of local descriptors [B, D, H, W] into one descriptor [B, K * D] of length 1.

    Args:
        num_clusters: K.
        dim: D, the length of a local descriptor.
        vladv2: version 2 assigns by squared distance, with a bias (equation 3); version 1, that of the original
            release, by cosine and without a bias.
        normalize_input: L2-normalise the local descriptors first.
    """

    num_clusters: int
    centroids: torch.Tensor

    def __init__(self, num_clusters: int = 64, dim: int = 512, vladv2: bool = False, normalize_input: bool = True):
        super().__init__()
        self.num_clusters, self.dim = num_clusters, dim
        self.vladv2, self.normalize_input = vladv2, normalize_input
        self.conv = nn.Conv2d(dim, num_clusters, kernel_size=1, bias=vladv2)
        self.centroids = nn.Parameter(torch.rand(num_clusters, dim))

    @torch.no_grad()
    def init_params(self, centroids: torch.Tensor, descriptors: torch.Tensor) -> float:
        """Start from k-means: set centres and assignment so that the nearest cluster gets the most.

        Alpha is chosen so that, on average, the second nearest cluster gets 1/100 of the nearest one's
        share: alpha = -ln(0.01) / (mean gap between the two), where the gap is that of the cosines
        (version 1) or of the squared distances (version 2).

        Args:
            centroids: [K, D] from k-means of L2-normalised descriptors.
            descriptors: [N, D] L2-normalised sample on which the gap is measured.

        Returns:
            alpha.

        Raises:
            ValueError: there is one cluster alone, which has no second nearest.
        """
        if len(centroids) < 2:
            raise ValueError(f"NetVLAD starts from 2 clusters or more, found {len(centroids)}: give num_clusters=2")
        directions = F.normalize(centroids, dim=1)
        if self.vladv2:
            distances = torch.cdist(descriptors, centroids, compute_mode="donot_use_mm_for_euclid_dist") ** 2
            nearest = distances.topk(2, dim=1, largest=False).values  # [N, 2]
            gap = (nearest[:, 1] - nearest[:, 0]).mean().item()
        else:
            nearest = (descriptors @ directions.T).topk(2, dim=1).values  # [N, 2]
            gap = (nearest[:, 0] - nearest[:, 1]).mean().item()
        alpha = -math.log(0.01) / max(gap, SMALLEST_NORM)
        weights = 2 * alpha * centroids if self.vladv2 else alpha * directions
        self.centroids.copy_(centroids)
        self.conv.weight.copy_(weights[:, :, None, None])
        if self.conv.bias is not None:
            self.conv.bias.copy_(-alpha * centroids.pow(2).sum(dim=1))
        return alpha

    def assign(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The soft assignment, equation 3.

        Args:
            features: local descriptors [B, D, P] of P locations.

        Returns:
            the descriptors y that are summed, normalised unless `normalize_input` is False [B, D, P], and their
            shares a_k(y) in the clusters [B, K, P].
        """
        if self.normalize_input:
            features = F.normalize(features, dim=1, eps=SMALLEST_NORM)
        logits = self.conv.weight.flatten(1) @ features  # [B, K, P]
        if self.conv.bias is not None:
            logits = logits + self.conv.bias[:, None]
        return features, logits.softmax(dim=1)

    def sum_residuals(self, features: torch.Tensor) -> torch.Tensor:
        """Equation 4: [B, D, P] -> V [B, K, D], without forming the residuals [B, K, D, P]."""
        summed, shares = self.assign(features)
        return shares @ summed.transpose(1, 2) - shares.sum(dim=2)[:, :, None] * self.centroids

    def join(self, residuals: torch.Tensor) -> torch.Tensor:
        """Intra-normalisation of each row of V, then L2 of the whole: [B, K, D] -> [B, K * D] of length 1."""
        rows = F.normalize(residuals, dim=2)
        return F.normalize(rows.flatten(1), dim=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, H, W] -> [B, K * D]."""
        return self.join(self.sum_residuals(features.flatten(2)))
