"""Where a NetVLAD model looks: which cluster owns each region, and what each region adds to a similarity.

The pooled descriptor is a sum over the regions, the positions p of the map of local descriptors:

    v = 1/Z concat_k( 1/n_k sum_p a_kp (y_p - c_k) )

with a_kp the shares of the assignment, n_k the norms of the rows (intra-normalisation) and Z that of the
whole. With these norms as they are, the cosine with another descriptor splits into one number per region. A linear
map of the rows (--clusterDim) does not change that: its bias, like the mean of a whitening, leaves a constant.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from netvlad import SMALLEST_NORM
from vpr.common.errors import UserError
from vpr.data.images import decode
from vpr.models.describer import Describer
from vpr.models.place_model import PlaceModel
from vpr.models.poolings.base import ClusterPooling


@dataclass(frozen=True)
class Explanation:
    """What is drawn of one image."""

    clusters: torch.Tensor  # int64 [h, w], the cluster that owns each region
    shares: torch.Tensor  # float32 [h, w], with what share, between 1 / K and 1
    contributions: torch.Tensor  # [h, w], with the constant of `region_contributions`
    constant: float


def opened_at_pooling(model: Describer) -> tuple[PlaceModel, ClusterPooling]:
    """The model as one that shows what it pools, and its pooling; UserError of an exported one, or without clusters."""
    if not isinstance(model, PlaceModel):
        raise UserError("--explain needs a run with NetVLAD, this is an exported .onnx model: give its run to --resume")
    if not isinstance(model.pool, ClusterPooling):
        raise UserError(
            f"--explain needs a run with NetVLAD, this model has --pooling={model.pool.label}: give another to --resume"
        )
    return model, model.pool


@torch.no_grad()
def explain(
    model: Describer, query_file: Path, match_file: Path, size: tuple[int, ...] | None, longest_side: int | None = None
) -> list[Explanation]:
    """The query's, then the match's part in the similarity of the two; each goes through the backbone once.

    Args and errors are those of `explain_pair`.
    """
    opened, pool = opened_at_pooling(model)
    model.eval()
    images = decode(query_file, size, longest_side), decode(match_file, size)
    features = [opened.local_descriptors(opened.tensor_of(image[None])) for image in images]  # each [1, D, h, w]
    descriptors = [opened.pooled(each)[0] for each in features]
    return [
        Explanation(*owners(pool, own), *region_contributions(opened, pool, own, other))
        for own, other in zip(features, reversed(descriptors), strict=True)
    ]


def owners(layer: ClusterPooling, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a map [1, D, h, w]: which cluster owns each region, int64 [h, w], and with what share, float32 [h, w]."""
    largest, cluster = layer.assign(features.flatten(2))[1][0].max(dim=0)  # [P], of [K, P]
    return cluster.view(features.shape[2:]), largest.view(features.shape[2:])


def region_contributions(
    model: PlaceModel, layer: ClusterPooling, features: torch.Tensor, other_descriptor: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """What each region of an image adds to the cosine similarity with another image.

    All contributions and the constant add up to the similarity. A region's is what would be lost without it if
    the norms stayed as they are. Contributions may be negative.

    Args:
        layer: the model's pooling; features: [1, D, h, w], the image's local descriptors.
        other_descriptor: [dim] of length 1, the model's of the other image.

    Returns:
        contributions float32 [h, w], and the constant that the mean of the whitening and the bias of --clusterDim leave
        (0 without them).
    """
    summed, shares = (each[0] for each in layer.assign(features.flatten(2)))  # [D, P], [K, P]
    residuals = shares @ summed.T - shares.sum(dim=1, keepdim=True) * layer.centroids  # [K, D]
    row_norms = torch.linalg.vector_norm(residuals, dim=1, keepdim=True).clamp_min(SMALLEST_NORM)  # [K, 1]
    rows = residuals / row_norms
    joined = rows if layer.projection is None else layer.projection(rows)  # [K, N], N = D without a projection
    norm = torch.linalg.vector_norm(joined).clamp_min(SMALLEST_NORM)
    towards, constant = _before_whitening(model, (joined / norm).flatten(), other_descriptor.to(features))
    towards = towards.view_as(joined)
    if layer.projection is not None:  # W rows + b: its part b is no region's
        constant += (towards @ layer.projection.bias).sum().item() / norm.item()
        towards = towards @ layer.projection.weight  # [K, D]
    slopes = towards / (row_norms * norm)  # [K, D], of the similarity by each row of residual sums
    along = slopes @ summed - (slopes * layer.centroids).sum(dim=1, keepdim=True)  # [K, P], slope . (y - c)
    return (shares * along).sum(dim=0).view(features.shape[2:]), constant


def _before_whitening(
    model: PlaceModel, pooled: torch.Tensor, other_descriptor: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """g [K * D] and a constant, with pooled . g + constant the similarity to the other descriptor.

    Whitening takes the pooled descriptor v to W (v - mean) / |W (v - mean)|, so g = W^T other / |W (v - mean)|
    and the constant is -g . mean.
    """
    if model.whitening is None:
        return other_descriptor, 0.0
    whitening = model.whitening
    norm = torch.linalg.vector_norm(whitening.linear(pooled - whitening.mean)).clamp_min(SMALLEST_NORM)
    towards = whitening.transposed(other_descriptor) / norm
    return towards, -(towards @ whitening.mean).item()
