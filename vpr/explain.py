"""Where a NetVLAD model looks: which cluster owns each region, and what each region adds to a similarity.

The pooled descriptor is a sum over the regions, the places p of the map of local descriptors:

    v = 1/Z concat_k( 1/n_k sum_p a_kp (y_p - c_k) )

with a_kp the shares of the soft assignment, n_k the norms of the rows (intra-normalisation) and Z that of the
whole. With these norms as they are, the cosine with another descriptor splits into one number per region.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from netvlad import SMALLEST_NORM, NetVLAD
from vpr.errors import UserError
from vpr.model import PlaceModel
from vpr.onnx_model import OnnxModel
from vpr.panels import CELL, NEUTRAL, captioned, in_a_row
from vpr.photos import decode, read_photo

BRIGHTNESS = (1.0, 0.75, 0.5)  # in turn, since 64 hues alone are hard to tell apart
STRONGEST = 0.75  # share of a colour over the grey photo, which stays visible
DIMMED = 0.7  # the grey photo's brightness, so that colours stand out


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


def explain_pair(
    model: PlaceModel,
    query_file: Path,
    match_file: Path,
    size: tuple[int, int] | None,
    device: torch.device,
    query_longest_side: int | None = None,
) -> Image.Image:
    """Four pictures in a row: the query by cluster and by contribution, then the match likewise.

    Args:
        size: (height, width) in pixels to resize to; None keeps each photo's own.
        query_longest_side: pixels, to which a larger query is shrunk where there is no `size`.

    Raises:
        UserError: the model has no clusters, or a photo cannot be decoded or is too small.
    """
    cells, files = [], (query_file, match_file)
    explanations = explain(model, *files, size, device, query_longest_side)
    for name, file, explanation in zip(("query", "match"), files, explanations, strict=True):
        grey = _grey(read_photo(file))
        by_cluster = draw_clusters(grey, explanation.clusters, explanation.shares, model.pool.num_clusters)
        captions = cluster_caption(name, explanation.clusters, model.pool.num_clusters)
        cells.append(captioned(by_cluster, NEUTRAL, *captions))
        by_contribution = draw_contributions(grey, explanation.contributions)
        cells.append(captioned(by_contribution, NEUTRAL, *contribution_caption(explanation)))
    return in_a_row(cells, len(cells))


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


def cluster_colours(count: int) -> np.ndarray:
    """A colour for each cluster, float [count, 3] from 0 to 1; a cluster keeps its colour from photo to photo."""
    from matplotlib import colormaps

    clusters = np.arange(count)
    hues = colormaps["hsv"].resampled(4 * count)(clusters / count)[:, :3]
    return hues * np.array(BRIGHTNESS)[clusters % len(BRIGHTNESS), None]


def draw_clusters(grey: Image.Image, clusters: torch.Tensor, shares: torch.Tensor, count: int) -> Image.Image:
    """Each region in the colour of the cluster that owns it, the stronger the larger its share.

    Args:
        grey: mode L, the photo.
        clusters, shares: [h, w].
        count: K.
    """
    colours = cluster_colours(count)[clusters.cpu().numpy()]  # [h, w, 3]
    # Regions keep their edges: between two clusters there is no third.
    spread = [_resize(channel, grey.size, Image.Resampling.NEAREST) for channel in np.moveaxis(colours, 2, 0)]
    strength = _resize(shares.cpu().numpy(), grey.size, Image.Resampling.NEAREST)
    return _blend(grey, np.stack(spread, axis=2), strength)


def draw_contributions(grey: Image.Image, contributions: torch.Tensor) -> Image.Image:
    """Regions that add in red, regions that take away in blue, the stronger the more.

    Args:
        grey: mode L, the photo.
        contributions: [h, w]; the largest in absolute value gets the full colour.
    """
    from matplotlib import colormaps

    values = contributions.cpu().numpy()
    spread = _resize(values / max(np.abs(values).max(), SMALLEST_NORM), grey.size, Image.Resampling.BILINEAR)
    colours = colormaps["bwr"](np.where(spread < 0, 0.0, 1.0))[:, :, :3]  # the map's ends: pure blue, pure red
    return _blend(grey, colours, np.abs(spread))


def cluster_caption(name: str, clusters: torch.Tensor, count: int) -> list[str]:
    """Two lines below a picture by cluster."""
    owners = len(clusters.unique())
    return [f"{name}: {owners} of {count} clusters", "the stronger, the larger its share"]


def contribution_caption(explanation: Explanation) -> list[str]:
    """Two lines below a picture by contribution: the sum, and what the full colours stand for."""
    total, constant = explanation.contributions.sum().item(), explanation.constant
    scale = explanation.contributions.abs().max().item()
    if constant:
        first = f"similarity {total + constant:.2f}, regions {total:.2f}"
    else:
        first = f"adds to similarity {total:.2f} in all"
    return [first, f"red adds, blue takes, full at {scale:.2g}"]


def _grey(photo: Image.Image) -> Image.Image:
    """The photo at the size of a cell, without colours, dimmed."""
    return ImageOps.contain(photo, CELL).convert("L").point(lambda value: value * DIMMED)


def _resize(values: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    """[h, w] -> [height, width] of a picture of `size` (width, height)."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, how))


def _blend(grey: Image.Image, colours: np.ndarray, strength: np.ndarray) -> Image.Image:
    """Colours [H, W, 3] from 0 to 1 over a grey photo, with strength [H, W] from 0 to 1."""
    below = np.asarray(grey, dtype=np.float32)[:, :, None]  # [H, W, 1]
    cover = STRONGEST * strength[:, :, None]
    return Image.fromarray(np.rint((1 - cover) * below + cover * 255 * colours).astype(np.uint8))
