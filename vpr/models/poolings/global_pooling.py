"""Maximum and mean over all locations: the paper's baseline f_max, and the mean beside it; and the class token."""

import torch
import torch.nn.functional as F

from vpr.models.poolings.base import Pooling
from vpr.models.spec import ModelSpec


class GlobalPooling(Pooling):
    """`max` or `avg` over all locations, L2-normalised.

    `cls` takes the only location of a map that is the class token of a vision transformer after its last norm, as
    DINOv2 (Oquab et al., TMLR 2024) describes images.
    """

    def __init__(self, kind: str, dim: int):
        super().__init__()
        self.kind, self.out_dim = kind, dim
        self.label, self.normalizes_input = ("class token", True) if kind == "cls" else (kind, False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, H, W] -> [B, D]."""
        if self.kind == "cls":
            return F.normalize(features[:, :, 0, 0], dim=1)
        pooled = features.amax(dim=(2, 3)) if self.kind == "max" else features.mean(dim=(2, 3))
        return F.normalize(pooled, dim=1)


def build(name: str, dim: int, spec: ModelSpec) -> GlobalPooling:
    """`max`, `avg` or `cls`."""
    return GlobalPooling(name, dim)
