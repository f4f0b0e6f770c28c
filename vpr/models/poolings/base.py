"""What every pooling answers, and how one is found by its name."""

import importlib
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from vpr.common.errors import UserError
from vpr.models.pca import principal_components
from vpr.models.poolings import pooling_entry
from vpr.models.spec import MAP, ModelSpec

ROWS_AT_ONCE = 8192  # of local descriptors, of which the assignment [K, n] takes memory


class Pooling(nn.Module):
    """Local descriptors [B, D, h, w] in float32 -> descriptors [B, out_dim] of length 1."""

    label: str  # what it is, in words, for result lines
    out_dim: int  # length of a descriptor
    normalizes_input = False  # whether it takes only the directions of local descriptors, not their lengths

    def plain(self) -> nn.Module:
        """The same function in plain operations, for exporters and for counting arithmetic."""
        return self


class ClusterProjection(nn.Linear):
    """One linear map that all clusters share, NVL of SuperPlace (arXiv:2506.13073): [B, K, D] -> [B, K, N].

    It is applied to the intra-normalised residual sums; weight [N, D] and bias [N] are trained with the pooling.
    """

    @torch.no_grad()
    def init_from(self, residuals: Iterable[torch.Tensor]) -> None:
        """Start from the N orthonormal directions in which residuals to their centres are largest, without a bias.

        These are the principal components: k-means leaves residuals of mean zero in each cluster. What is mapped are
        sums of such residuals, so an untrained model keeps most of the similarity of descriptors, and with N = D,
        a rotation, all of it. SuperPlace starts from random weights.
        `residuals`: of local descriptors to their cluster's centre, [n, D] at a time.
        """
        moment = torch.zeros(self.in_features, self.in_features, dtype=torch.float64)
        for rows in residuals:
            rows = rows.cpu().double()
            moment += rows.T @ rows
        directions = principal_components(moment, self.out_features)[1].T  # [N, D], largest first
        largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
        self.weight.copy_(directions * largest.sign())  # of either sign of an eigenvector the same one everywhere
        self.bias.zero_()


class ClusterPooling(Pooling):
    """A pooling that assigns local descriptors to clusters and sums their residuals to the centres.

    --mode=cluster makes what it starts from, and --explain shows its assignment.
    """

    num_clusters: int  # K
    centroids: torch.Tensor  # [K, D]
    projection: ClusterProjection | None  # map of each cluster's row to fewer dimensions

    def __init__(self) -> None:
        super().__init__()
        self.projection = None

    def project_clusters(self, dim: int, cluster_dim: int) -> None:
        """Add the map of each cluster's row from D to `cluster_dim` dimensions; UserError if these are more."""
        if cluster_dim > dim:
            raise UserError(
                f"--clusterDim={cluster_dim}: local descriptors of this backbone have {dim} dimensions, wanted at "
                "most as many: lower or drop --clusterDim"
            )
        self.projection = ClusterProjection(dim, cluster_dim)
        self.out_dim = self.num_clusters * cluster_dim
        self.label += f" of {cluster_dim} dimensions"

    @torch.no_grad()
    def init_from(self, centroids: torch.Tensor, descriptors: torch.Tensor) -> float:
        """Start from k-means centres [K, D] of L2-normalised descriptors [N, D]; returns the assignment's sharpness."""
        alpha = self.init_clusters(centroids, descriptors)
        self.init_map(descriptors)
        return alpha

    def init_map(self, descriptors: torch.Tensor) -> None:
        """The part of `init_from` that sets the map of the rows, if there is one, by the centres there are."""
        if self.projection is not None:
            self.projection.init_from(self._residuals(descriptors))

    def init_clusters(self, centroids: torch.Tensor, descriptors: torch.Tensor) -> float:
        """The part of `init_from` that sets centres and assignment."""
        raise NotImplementedError

    def assign(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Local descriptors [B, D, P] -> those that are summed [B, D, P], and their shares in clusters [B, K, P]."""
        raise NotImplementedError

    def join(self, residuals: torch.Tensor) -> torch.Tensor:
        """The residual sums of the clusters as one descriptor of length 1: [B, K, D] -> [B, out_dim]."""
        rows = F.normalize(residuals, dim=2)  # intra-normalisation
        if self.projection is not None:
            rows = self.projection(rows)  # [B, K, N]
        return F.normalize(rows.flatten(1), dim=1)

    def _residuals(self, descriptors: torch.Tensor) -> Iterator[torch.Tensor]:
        """Residuals of descriptors [N, D] to the centre of the cluster in which they have the largest share."""
        for rows in descriptors.split(ROWS_AT_ONCE):
            _, shares = self.assign(rows.T[None])  # [1, K, n]
            yield rows - self.centroids[shares[0].argmax(dim=0)]


def build_pooling(name: str, dim: int, spec: ModelSpec) -> Pooling:
    """A pooling of the table for local descriptors of length `dim`, with the settings of a spec.
    Raises a UserError: the table has no such pooling, or it cannot have such settings."""
    entry = pooling_entry(name, spec.vlad_assign, spec.cluster_dim, spec.vladv2)
    pooling: Pooling = importlib.import_module(f"vpr.models.poolings.{entry.module}").build(name, dim, spec)
    if spec.cluster_dim is not None:
        assert isinstance(pooling, ClusterPooling)  # its entry says so
        pooling.requires_grad_(spec.train_from != MAP)
        pooling.project_clusters(dim, spec.cluster_dim)
    return pooling
