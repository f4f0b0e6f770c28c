"""Where a NetVLAD model looks: which cluster owns each region, and what each region adds to a similarity.

The pooled descriptor is a sum over the regions, the places p of the map of local descriptors:

    v = 1/Z concat_k( 1/n_k sum_p a_kp (y_p - c_k) )

with a_kp the shares of the soft assignment, n_k the norms of the rows (intra-normalisation) and Z that of the
whole. With these norms as they are, the cosine with another descriptor splits into one number per region.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from netvlad import SMALLEST_NORM, NetVLAD
from vpr.common.errors import UserError
from vpr.data.photos import decode
from vpr.models.onnx_model import OnnxModel
from vpr.models.place_model import PlaceModel


@dataclass(frozen=True)
class Explanation:
    """What is drawn of one photo.

    Attributes:
        clusters, shares: of `soft_assignment`, [h, w].
        contributions, constant: of `region_contributions`, [h, w] and a number.
    """

    clusters: torch.Tensor
    shares: torch.Tensor
    contributions: torch.Tensor
    constant: float


def require_netvlad(model: PlaceModel | OnnxModel) -> None:
    """Raise a UserError if nothing can be explained of a model."""
    if isinstance(model, OnnxModel):
        raise UserError("--explain needs a run with NetVLAD, this is an exported .onnx model: give its run to --resume")
    if not isinstance(model.pool, NetVLAD):
        raise UserError(
            f"--explain needs a run with NetVLAD, this model has --pooling={model.pool.kind}: give another to --resume"
        )


@torch.no_grad()
def soft_assignment(model: PlaceModel, photo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which cluster owns each region of a photo, and with what share.

    Args:
        photo: uint8 [1, 3, H, W] on the model's device.

    Returns:
        clusters int64 [h, w] and shares float32 [h, w], between 1 / K and 1.

    Raises:
        UserError: the model has no clusters, or the photo is too small.
    """
    require_netvlad(model)
    return _owners(model.pool, model.local_descriptors(photo))


@torch.no_grad()
def region_contributions(
    model: PlaceModel, photo: torch.Tensor, other_descriptor: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """What each region of a photo adds to the cosine similarity with another photo.

    All contributions and the constant add up to the similarity. A region's is what would be lost without it if
    the norms stayed as they are. Contributions may be negative.

    Args:
        photo: uint8 [1, 3, H, W] on the model's device.
        other_descriptor: [descriptor_dim] of length 1, the model's of the other photo.

    Returns:
        contributions float32 [h, w], and the constant that the mean of the whitening leaves (0 without one).

    Raises:
        UserError: the model has no clusters, or the photo is too small.
    """
    require_netvlad(model)
    return _contributions(model, model.local_descriptors(photo), other_descriptor)


@torch.no_grad()
def explain(
    model: PlaceModel,
    query_file: Path,
    match_file: Path,
    size: tuple[int, int] | None,
    device: torch.device,
    query_longest_side: int | None = None,
) -> list[Explanation]:
    """The query's, then the match's part in the similarity of the two; each goes through the trunk once.

    Args and errors are those of `explain_pair`.
    """
    require_netvlad(model)
    model.eval()
    features = [
        model.local_descriptors(decode(file, size, longest_side)[None].to(device))
        for file, longest_side in ((query_file, query_longest_side), (match_file, None))
    ]  # each [1, D, h, w]
    descriptors = [_describe(model, each) for each in features]
    return [
        Explanation(*_owners(model.pool, own), *_contributions(model, own, other))
        for own, other in zip(features, reversed(descriptors), strict=True)
    ]


def _describe(model: PlaceModel, features: torch.Tensor) -> torch.Tensor:
    """Local descriptors [1, D, h, w] -> descriptor [descriptor_dim]."""
    pooled = model.pool(features)
    return (pooled if model.whitening is None else model.whitening(pooled))[0]


def _assign(layer: NetVLAD, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Local descriptors [1, D, h, w] -> those that the layer sums up [D, P], and their shares [K, P]."""
    (summed,) = features.flatten(2)  # [D, P]
    if layer.normalize_input:
        summed = F.normalize(summed, dim=0, eps=SMALLEST_NORM)
    logits = layer.conv.weight.flatten(1) @ summed  # [K, P]
    if layer.conv.bias is not None:
        logits = logits + layer.conv.bias[:, None]
    return summed, logits.softmax(dim=0)


def _owners(layer: NetVLAD, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    _, shares = _assign(layer, features)
    largest, cluster = shares.max(dim=0)  # [P]
    return cluster.view(features.shape[2:]), largest.view(features.shape[2:])


def _contributions(
    model: PlaceModel, features: torch.Tensor, other_descriptor: torch.Tensor
) -> tuple[torch.Tensor, float]:
    layer = model.pool
    summed, shares = _assign(layer, features)
    residuals = shares @ summed.T - shares.sum(dim=1, keepdim=True) * layer.centroids  # [K, D]
    row_norms = torch.linalg.vector_norm(residuals, dim=1, keepdim=True).clamp_min(SMALLEST_NORM)  # [K, 1]
    rows = residuals / row_norms
    norm = torch.linalg.vector_norm(rows).clamp_min(SMALLEST_NORM)
    towards, constant = _before_whitening(model, (rows / norm).flatten(), other_descriptor.to(features))
    slopes = towards.view_as(rows) / (row_norms * norm)  # [K, D], of the similarity by each row of residual sums
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
    projection, mean = model.whitening.projection, model.whitening.mean
    norm = torch.linalg.vector_norm(projection @ (pooled - mean)).clamp_min(SMALLEST_NORM)
    towards = other_descriptor @ projection / norm
    return towards, -(towards @ mean).item()
