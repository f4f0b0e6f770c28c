"""VLAD with hard assignment, as AnyLoc has it (Keetha et al., "AnyLoc: towards universal visual place recognition",
RA-L 2024), with the intra-normalisation of Arandjelovic and Zisserman ("All about VLAD", CVPR 2013)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from vpr.models.poolings.base import ClusterPooling
from vpr.models.spec import ModelSpec


class HardVLAD(ClusterPooling):
    """Each local descriptor belongs to one cluster, the one whose centre it has the largest cosine with.

        V(k, :) = sum_{p: a(p) = k} (y_p - c_k),    a(p) = argmax_k  y_p . c_k / |c_k|,    y_p = x_p / |x_p|

    The centres are means of vectors of length 1, as k-means leaves them, and not normalised again. It is what
    NetVLAD, version 1, becomes as alpha goes to infinity. The clusters' rows are joined as those of NetVLAD are.

    Gradients reach the local descriptors and the centres through the residuals; the assignment, which is constant
    between its jumps, passes none on. A training therefore moves the centres and the backbone only.
    """

    normalizes_input = True

    def __init__(self, num_clusters: int, dim: int):
        super().__init__()
        self.num_clusters, self.out_dim = num_clusters, num_clusters * dim
        self.label = f"VLAD (hard assignment) with {num_clusters} clusters"
        self.centroids = nn.Parameter(torch.rand(num_clusters, dim))

    @torch.no_grad()
    def init_clusters(self, centroids: torch.Tensor, descriptors: torch.Tensor) -> float:
        """Take the centres of k-means [K, D]."""
        self.centroids.copy_(centroids)
        return math.inf

    def assign(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, D, P] -> the normalised descriptors [B, D, P], and 1 for the cluster of each, else 0 [B, K, P]."""
        features = F.normalize(features, dim=1)
        directions = F.normalize(self.centroids.detach(), dim=1)
        nearest = (directions @ features.detach()).argmax(dim=1, keepdim=True)  # [B, 1, P]
        clusters = torch.arange(self.num_clusters, device=features.device)[:, None]
        return features, (nearest == clusters).to(features.dtype)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, H, W] -> [B, out_dim]."""
        summed, shares = self.assign(features.flatten(2))
        residuals = shares @ summed.transpose(1, 2) - shares.sum(dim=2)[:, :, None] * self.centroids  # [B, K, D]
        return self.join(residuals)


def build(name: str, dim: int, spec: ModelSpec) -> HardVLAD:
    """VLAD with the clusters of the spec."""
    return HardVLAD(spec.clusters, dim)
