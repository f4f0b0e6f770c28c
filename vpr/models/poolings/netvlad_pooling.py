"""NetVLAD, the layer of netvlad.py, as a pooling of a model: in less time and memory, with derivatives of its own."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from netvlad import SMALLEST_NORM, NetVLAD
from vpr.models.poolings.base import ClusterPooling
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


class SoftResiduals(torch.autograd.Function):
    """`NetVLAD.sum_residuals` in one step: local descriptors [B, D, P] -> residual sums V [B, K, D].

    Forward, with s_p = 1 / |x_p| and y_p = s_p x_p: two matrix products, x read in place. Dividing the
    products by |x| equals normalising x, without a normalised copy of the map.

    With for_backward false the assignments overwrite the products, and nothing is kept.

    Backward, from G = dV: four products and one pass over x. Nothing of the size [K, D, P] is ever formed.

        dA_kp = G_k . y_p - G_k . c_k
        dL_kp = A_kp (dA_kp - sum_j A_jp dA_jp)                       through the softmax
        dy_p  = sum_k (A_kp G_k + dL_kp w_k)
        dx_p  = s_p (dy_p - y_p (y_p . dy_p))                         through the normalisation
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        centroids: torch.Tensor,
        normalize: bool,
        for_backward: bool,
    ) -> torch.Tensor:
        scale = features.new_ones(())
        if normalize:
            scale = 1 / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(SMALLEST_NORM)  # [B, 1, P]
        # bmm rather than @, which would copy the product into another order.
        logits = weight.expand(len(features), -1, -1).bmm(features).mul_(scale)  # [B, K, P], w . y
        if for_backward:
            assignment = (logits if bias is None else logits + bias[:, None]).softmax(dim=1)  # [B, K, P]
            ctx.save_for_backward(features, weight, centroids, scale, logits, assignment)
            ctx.has_bias, ctx.normalize = bias is not None, normalize
            counts, weights = assignment.sum(dim=2), assignment * scale  # [B, K], [B, K, P]
        else:  # the same within one piece of memory
            assignment = _softmax_in_place(logits if bias is None else logits.add_(bias[:, None]))
            counts, weights = assignment.sum(dim=2), assignment.mul_(scale)
        weighted_sum = weights @ features.transpose(1, 2)  # [B, K, D]
        return weighted_sum.addcmul_(counts[:, :, None], centroids, value=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        features, weight, centroids, scale, logits, assignment = ctx.saved_tensors
        along = (grad @ features).mul_(scale)  # [B, K, P], G . y
        to_assignment = along - (grad * centroids).sum(dim=2)[:, :, None]
        to_logits = assignment * (to_assignment - (assignment * to_assignment).sum(dim=1, keepdim=True))
        to_weight = ((to_logits * scale) @ features.transpose(1, 2)).sum(dim=0)  # [K, D]
        to_bias = to_logits.sum(dim=(0, 2)) if ctx.has_bias else None
        to_centroids = -(grad * assignment.sum(dim=2)[:, :, None]).sum(dim=0)
        to_features = None
        if ctx.needs_input_grad[0]:
            pulled = torch.cat([grad, weight.expand(len(grad), -1, -1)], dim=1)  # [B, 2K, D]
            pulls = torch.cat([assignment, to_logits], dim=1) * scale  # [B, 2K, P]
            if features.stride(1) == 1:  # channels last: the gradient lies as the map does, or it would be copied
                to_features = pulls.transpose(1, 2).bmm(pulled).transpose(1, 2)  # [B, D, P]
            else:
                to_features = pulled.transpose(1, 2).bmm(pulls)
            if ctx.normalize:
                radial = (assignment * along + to_logits * logits).sum(dim=1, keepdim=True)  # [B, 1, P], y . dy
                radial = radial * (scale * scale) * (scale < 1 / SMALLEST_NORM)  # a clamped norm is a constant
                to_features.addcmul_(features, radial, value=-1)
        return to_features, to_weight, to_bias, to_centroids, None, None


def _softmax_in_place(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the clusters of [B, K, P], overwriting it."""
    shares = logits.sub_(logits.amax(dim=1, keepdim=True)).exp_()
    return shares.div_(shares.sum(dim=1, keepdim=True))


def build(name: str, dim: int, spec: ModelSpec) -> NetVLADPooling:
    """NetVLAD with the clusters and the version of the spec."""
    return NetVLADPooling(spec.clusters, dim, spec.vladv2)
