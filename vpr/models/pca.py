"""Principal components, of which whitening, local descriptors and the projection of clusters take the first."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vpr.common.errors import UserError
from vpr.models.local_projection import LOCAL_DIM, LocalProjection

WHITENING = 0.5  # 0 keeps the components' variances, 1 makes them equal; half-way told places apart best
SMALLEST_VARIANCE = 1e-12  # of directions that no descriptor has


def principal_components(moment: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest eigenvalues of a symmetric matrix [D, D], largest first, and their vectors [D, count].

    Of a covariance they are the variances and the orthonormal directions in which data differ most.
    """
    values, vectors = torch.linalg.eigh(moment)  # ascending
    return values.flip(0)[:count], vectors.flip(1)[:, :count]


def learn_projection(local: np.ndarray, dim: int = LOCAL_DIM, learnt_on: str = "") -> LocalProjection:
    """The `dim` first principal components of local descriptors [N, D] of length 1.

    Each is divided by its standard deviation to the power WHITENING.
    Raises a UserError: there are no more descriptors than components.
    """
    if len(local) <= dim:
        raise UserError(
            f"--localDim={dim}: found {len(local)} local descriptors to learn it on, wanted more than that: "
            "add images or lower --localDim"
        )
    descriptors = torch.from_numpy(local)
    mean = descriptors.mean(dim=0)
    centred = (descriptors - mean).double()
    variances, vectors = principal_components(centred.T @ centred / len(centred), dim)
    components = vectors * variances.clamp_min(SMALLEST_VARIANCE).pow(-WHITENING / 2)
    return LocalProjection(mean.numpy(), components.T.float().contiguous().numpy(), learnt_on)


class ProjectionLayer(nn.Module):
    """Projects local descriptors as a `LocalProjection` says: [B, D, h, w] -> [B, d, h, w]."""

    mean: torch.Tensor
    components: torch.Tensor

    def __init__(self, projection: LocalProjection) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(projection.mean))
        self.register_buffer("components", torch.tensor(projection.components))

    def forward(self, local_descriptors: torch.Tensor) -> torch.Tensor:
        """Local descriptors [B, D, h, w] -> [B, d, h, w], each of length 1."""
        directions = F.normalize(local_descriptors, dim=1)
        # A matrix product, since int8 export would compute a convolution of 1 x 1 in 8 bits.
        projected = self.components @ (directions.flatten(2) - self.mean[:, None])  # [B, d, h * w]
        return F.normalize(projected, dim=1).unflatten(2, local_descriptors.shape[2:])
