"""NetVLAD, the layer of netvlad.py, as a pooling of a model."""

import torch
from torch import nn

from netvlad import NetVLAD
from vpr.models.poolings.base import ClusterPooling
from vpr.models.poolings.soft_residuals import SoftResiduals
from vpr.models.spec import ModelSpec


class NetVLADPooling(NetVLAD, ClusterPooling):
    """The layer with what a model asks of its pooling, and its residual sums in one step."""

    def __init__(self, num_clusters: int, dim: int, vladv2: bool = False, normalize_input: bool = True):
        super().__init__(num_clusters, dim, vladv2, normalize_input)
        self.label = f"NetVLAD{' v2' if vladv2 else ''} with {num_clusters} clusters"
        self.out_dim = num_clusters * dim
        self.normalizes_input = normalize_input

    def init_clusters(self, centroids: torch.Tensor, descriptors: torch.Tensor) -> float:
        """Start from k-means; see NetVLAD.init_params."""
        return self.init_params(centroids, descriptors)

    def sum_residuals(self, features: torch.Tensor) -> torch.Tensor:
        """Equation 4 in one step, faster and in less memory: [B, D, P] -> V [B, K, D]."""
        found: torch.Tensor = SoftResiduals.apply(
            features, self.conv.weight.flatten(1), self.conv.bias, self.centroids, self.normalize_input,
            torch.is_grad_enabled(),
        )  # fmt: skip
        return found

    def join(self, residuals: torch.Tensor) -> torch.Tensor:
        """Both normalisations, and between them the projection of the clusters, if there is one."""
        return ClusterPooling.join(self, residuals)

    def plain(self) -> nn.Module:
        """The layer without a backward pass of its own."""
        return PlainNetVLAD(self)


class PlainNetVLAD(nn.Module):
    """The layer by the steps of netvlad.py: [B, D, H, W] -> [B, out_dim]."""

    def __init__(self, layer: NetVLAD):
        super().__init__()
        self.layer = layer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Equation 4 and both normalisations."""
        return self.layer.join(NetVLAD.sum_residuals(self.layer, features.flatten(2)))


def build(name: str, dim: int, spec: ModelSpec) -> NetVLADPooling:
    """NetVLAD with the clusters and the version of the spec."""
    return NetVLADPooling(spec.clusters, dim, spec.vladv2)
