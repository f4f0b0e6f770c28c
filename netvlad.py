"""The NetVLAD layer (Arandjelovic et al., "NetVLAD", CVPR 2016, section 3.1).

Local descriptors x_p are assigned softly to K clusters and their residuals to the cluster centres are
summed (equation 4):

    V(k, :) = sum_p a_k(x_p) (x_p - c_k),    a_k(x) = softmax_k(w_k . x + b_k)

Each row is L2-normalised (intra-normalisation), then the whole.
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
        vladv2: version 2 assigns by squared distance, with a bias (the paper's equation 3); version 1,
            that of the original release, by cosine and without a bias.
        normalize_input: L2-normalise the local descriptors first.
    """

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
        """
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
        if self.vladv2:
            self.conv.bias.copy_(-alpha * centroids.pow(2).sum(dim=1))
        return alpha

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, H, W] -> [B, K * D]."""
        features = features.flatten(2)  # [B, D, P], P = H * W places
        # Dividing the two products by |x| equals normalising x, without a normalised copy of the map.
        scale = 1.0
        if self.normalize_input:
            scale = 1 / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(SMALLEST_NORM)  # [B, 1, P]
        logits = (self.conv.weight.flatten(1) @ features) * scale  # [B, K, P]
        if self.vladv2:
            logits = logits + self.conv.bias[:, None]
        assignment = logits.softmax(dim=1)  # [B, K, P]
        weighted_sum = (assignment * scale) @ features.transpose(1, 2)  # [B, K, D]
        residuals = weighted_sum - assignment.sum(dim=2)[:, :, None] * self.centroids
        rows = F.normalize(residuals, dim=2)  # intra-normalisation
        return F.normalize(rows.flatten(1), dim=1)  # [B, K * D]
