"""The class token of a vision transformer after its last norm, as DINOv2 (Oquab et al., TMLR 2024) describes images."""

import torch
import torch.nn.functional as F

from vpr.models.poolings.base import Pooling
from vpr.models.spec import ModelSpec


class ClassTokenPooling(Pooling):
    """The only position of a map, L2-normalised: the backbone gives its class token as such a map."""

    label = "class token"
    normalizes_input = True

    def __init__(self, dim: int):
        super().__init__()
        self.out_dim = dim

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, 1, 1] -> [B, D]."""
        return F.normalize(features[:, :, 0, 0], dim=1)


def build(name: str, dim: int, spec: ModelSpec) -> ClassTokenPooling:
    """`cls`."""
    return ClassTokenPooling(dim)
