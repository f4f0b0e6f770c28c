"""What every pooling answers, and how one is found by its name."""

import importlib

import torch
from torch import nn

from vpr.common.errors import UserError
from vpr.models.poolings import POOLINGS
from vpr.models.spec import ModelSpec


class Pooling(nn.Module):
    """Local descriptors [B, D, h, w] in float32 -> descriptors [B, out_dim] of length 1.

    Attributes:
        label: what it is, in words, for result lines.
        out_dim: length of a descriptor.
        normalizes_input: whether it takes only the directions of local descriptors, not their lengths.
    """

    label: str
    out_dim: int
    normalizes_input = False

    def plain(self) -> nn.Module:
        """The same function in plain operations, for exporters and for counting arithmetic."""
        return self


class ClusterPooling(Pooling):
    """A pooling that assigns local descriptors softly to clusters and sums their residuals to the centres.

    --mode=cluster makes what it starts from, and --explain shows its assignment.

    Attributes:
        num_clusters: K.
        centroids: [K, D].
    """

    num_clusters: int
    centroids: torch.Tensor

    def init_from(self, centroids: torch.Tensor, descriptors: torch.Tensor) -> float:
        """Start from k-means centres [K, D] of L2-normalised descriptors [N, D].

        Returns:
            alpha, the sharpness of the assignment.
        """
        raise NotImplementedError

    def assign(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Local descriptors [B, D, P] -> those that are summed [B, D, P], and their shares in clusters [B, K, P]."""
        raise NotImplementedError


def build_pooling(name: str, dim: int, spec: ModelSpec) -> Pooling:
    """A pooling of the table.

    Args:
        dim: D, the length of a local descriptor.
        spec: of the model, whose settings the pooling may read.

    Raises:
        UserError: the table has no such pooling.
    """
    if name not in POOLINGS:
        raise UserError(f"pooling {name!r} is unknown, wanted one of {', '.join(POOLINGS)}: name another")
    return importlib.import_module(f"vpr.models.poolings.{POOLINGS[name].module}").build(name, dim, spec)
