"""Local descriptors for re-ranking: a few dimensions that keep most of what tells them apart."""

import torch
import torch.nn.functional as F
from torch import nn

from vpr.common.errors import UserError
from vpr.models.pca import principal_components

LOCAL_DIM = 64
WHITENING = 0.5  # 0 keeps the components' variances, 1 makes them equal; half-way told places apart best
SMALLEST_VARIANCE = 1e-12  # of directions that no descriptor has


class LocalProjection(nn.Module):
    """Projects the directions of local descriptors onto their principal components: [B, D, h, w] -> [B, d, h, w].

    Attributes:
        mean: [D], of local descriptors of length 1.
        components: [d, D], principal components, those of the largest variance first, each divided by its standard
            deviation to the power WHITENING.
        learnt_on: in words.
    """

    mean: torch.Tensor
    components: torch.Tensor

    def __init__(self, mean: torch.Tensor, components: torch.Tensor, learnt_on: str = "") -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)
        self.learnt_on = learnt_on

    @property
    def dim(self) -> int:
        """d, the length of a projected local descriptor."""
        return len(self.components)

    def forward(self, local_descriptors: torch.Tensor) -> torch.Tensor:
        """Local descriptors [B, D, h, w] -> [B, d, h, w], each of length 1."""
        directions = F.normalize(local_descriptors, dim=1)
        # A matrix product, since int8 export would compute a convolution of 1 x 1 in 8 bits.
        projected = self.components @ (directions.flatten(2) - self.mean[:, None])  # [B, d, h * w]
        return F.normalize(projected, dim=1).unflatten(2, local_descriptors.shape[2:])


def learn_projection(descriptors: torch.Tensor, dim: int = LOCAL_DIM, learnt_on: str = "") -> LocalProjection:
    """The `dim` first principal components of local descriptors [N, D] of length 1.

    Raises:
        UserError: there are no more descriptors than components.
    """
    if len(descriptors) <= dim:
        raise UserError(
            f"--localDim={dim}: found {len(descriptors)} local descriptors to learn it on, wanted more than that: "
            "add images or lower --localDim"
        )
    mean = descriptors.mean(dim=0)
    centred = (descriptors - mean).double()
    variances, vectors = principal_components(centred.T @ centred / len(centred), dim)
    components = vectors * variances.clamp_min(SMALLEST_VARIANCE).pow(-WHITENING / 2)
    return LocalProjection(mean, components.T.float().contiguous(), learnt_on)
