"""Generalised-mean pooling, GeM (Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation",
TPAMI 2018, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import nn

from vpr.models.poolings.base import Pooling
from vpr.models.spec import ModelSpec

P = 3.0  # where the exponent starts
EPS = 1e-6  # local descriptors are clamped to it from below, so that powers and their gradients are finite


class GeM(Pooling):
    """The generalised mean of each channel over all locations, L2-normalised; the exponent is learnt.

        f_d = ( 1/P sum_x max(x_d, eps)^p )^(1/p)

    p = 1 is the mean, p to infinity the maximum.
    """

    label = "gem"

    def __init__(self, dim: int, p: float = P, eps: float = EPS):
        super().__init__()
        self.out_dim, self.eps = dim, eps
        self.p = nn.Parameter(torch.tensor([p]))  # one exponent for all channels

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, H, W] -> [B, D]."""
        features = features.clamp_min(self.eps)
        # By the largest value of each channel, so that high powers neither vanish nor overflow.
        largest = features.amax(dim=(2, 3), keepdim=True).detach()  # [B, D, 1, 1]
        means = (features / largest).pow(self.p).mean(dim=(2, 3)).pow(1 / self.p)  # [B, D]
        return F.normalize(largest.flatten(1) * means, dim=1)


def build(name: str, dim: int, spec: ModelSpec) -> GeM:
    """GeM with the paper's start."""
    return GeM(dim)
