"""Maximum and mean over all locations, the paper's baselines."""

import torch
import torch.nn.functional as F
from torch import nn


class GlobalPooling(nn.Module):
    """Maximum or mean over all places, L2-normalised: the paper's f_max baseline and its average kin."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, H, W] -> [B, D]."""
        pooled = features.amax(dim=(2, 3)) if self.kind == "max" else features.mean(dim=(2, 3))
        return F.normalize(pooled, dim=1)
