"""The NetVLAD layer (Arandjelovic et al., "NetVLAD", CVPR 2016, section 3.1).

Local descriptors x_p are assigned softly to K clusters and their residuals to the cluster centres are
summed (equation 4):

    V(k, :) = sum_p a_k(x_p) (x_p - c_k),    a_k(x) = softmax_k(w_k . x + b_k)

Each row is L2-normalised (intra-normalisation), then the whole.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

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
        """The soft assignment.

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
        """Equation 4 as it is written: [B, D, P] -> V [B, K, D], without forming the residuals [B, K, D, P]."""
        summed, shares = self.assign(features)
        return shares @ summed.transpose(1, 2) - shares.sum(dim=2)[:, :, None] * self.centroids

    def forward_plain(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, H, W] -> [B, K * D], step by step; `forward` is the same, faster and in less memory."""
        return self.join(self.sum_residuals(features.flatten(2)))

    def join(self, residuals: torch.Tensor) -> torch.Tensor:
        """The residual sums V of the clusters as one descriptor of length 1: [B, K, D] -> [B, K * D]."""
        return normalized_twice(residuals)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, H, W] -> [B, K * D]."""
        residuals = SoftResiduals.apply(
            features.flatten(2),  # [B, D, P], P = H * W locations
            self.conv.weight.flatten(1),
            self.conv.bias,
            self.centroids,
            self.normalize_input,
            torch.is_grad_enabled(),
        )
        return self.join(residuals)


def normalized_twice(residuals: torch.Tensor) -> torch.Tensor:
    """Intra-normalisation of each row of V, then L2 of the whole: [B, K, D] -> [B, K * D]."""
    rows = F.normalize(residuals, dim=2)
    return F.normalize(rows.flatten(1), dim=1)


class SoftResiduals(torch.autograd.Function):
    """The fast form of `NetVLAD.sum_residuals`: local descriptors [B, D, P] -> residual sums V [B, K, D].

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
