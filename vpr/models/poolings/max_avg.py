"""Maximum and mean over all locations: the paper's baseline f_max, and the mean beside it."""

import torch
import torch.nn.functional as F

from vpr.models.poolings.base import Pooling
from vpr.models.spec import ModelSpec


class GlobalPooling(Pooling):
    """Maximum or mean over all locations, L2-normalised."""

    def __init__(self, kind: str, dim: int):
        super().__init__()
        self.label = self.kind = kind
        self.out_dim = dim

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, H, W] -> [B, D]."""
        pooled = features.amax(dim=(2, 3)) if self.kind == "max" else features.mean(dim=(2, 3))
        return F.normalize(pooled, dim=1)


def build(name: str, dim: int, spec: ModelSpec) -> GlobalPooling:
    """`max` or `avg`."""
    return GlobalPooling(name, dim)
