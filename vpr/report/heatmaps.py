"""Explanations as pictures: clusters and contributions drawn over the images."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from netvlad import SMALLEST_NORM
from vpr.data.images import read_image
from vpr.evaluation.explanation import Explanation, explain, opened_at_pooling
from vpr.models.describer import Describer
from vpr.report.panels import CELL, NEUTRAL, captioned, in_a_row

BRIGHTNESS = (1.0, 0.75, 0.5)  # in turn, since 64 hues alone are hard to tell apart
STRONGEST = 0.75  # share of a colour over the grey image, which stays visible
DIMMED = 0.7  # the grey image's brightness, so that colours stand out


def explain_pair(
    model: Describer, query_file: Path, match_file: Path, size: tuple[int, ...] | None, longest_side: int | None = None
) -> Image.Image:
    """Four pictures in a row: the query by cluster and by contribution, then the match likewise.
    `size`: (height, width) in pixels to resize to; None keeps each image's own. `longest_side`: pixels, to which a
    larger query is shrunk where there is no `size`.
    Raises a UserError: the model has no clusters, or an image cannot be decoded or is too small."""
    cells, files = [], (query_file, match_file)
    clusters = opened_at_pooling(model)[1].num_clusters
    explanations = explain(model, *files, size, longest_side)
    for name, file, explanation in zip(("query", "match"), files, explanations, strict=True):
        small = ImageOps.contain(read_image(file), CELL)
        grey = small.convert("L").point(lambda value: value * DIMMED)
        owned, captions = explanation.clusters, cluster_caption(name, explanation.clusters, clusters)
        cells.append(captioned(draw_clusters(grey, owned, explanation.shares, clusters), NEUTRAL, *captions))
        by_contribution = draw_contributions(grey, explanation.contributions)
        cells.append(captioned(by_contribution, NEUTRAL, *contribution_caption(explanation)))
    return in_a_row(cells, len(cells))


def cluster_colours(count: int) -> np.ndarray:
    """A colour for each cluster, float [count, 3] from 0 to 1; a cluster keeps its colour from image to image."""
    from matplotlib import colormaps

    clusters = np.arange(count)
    hues = colormaps["hsv"].resampled(4 * count)(clusters / count)[:, :3]
    return hues * np.array(BRIGHTNESS)[clusters % len(BRIGHTNESS), None]


def draw_clusters(grey: Image.Image, clusters: torch.Tensor, shares: torch.Tensor, count: int) -> Image.Image:
    """Over an image of mode L, each region in the colour of the one of `count` clusters that owns it, the stronger the
    larger its share; `clusters` and `shares` are [h, w]."""
    colours = cluster_colours(count)[clusters.cpu().numpy()]  # [h, w, 3]
    # Regions keep their edges: between two clusters there is no third.
    spread = [_resize(channel, grey.size, Image.Resampling.NEAREST) for channel in np.moveaxis(colours, 2, 0)]
    strength = _resize(shares.cpu().numpy(), grey.size, Image.Resampling.NEAREST)
    return _blend(grey, np.stack(spread, axis=2), strength)


def draw_contributions(grey: Image.Image, contributions: torch.Tensor) -> Image.Image:
    """Over an image of mode L, regions that add in red, regions that take away in blue, the stronger the more.

    Of contributions [h, w] the largest in absolute value gets the full colour.
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
    with_constant = f"similarity {total + constant:.2f}, regions {total:.2f}"
    first = with_constant if constant else f"adds to similarity {total:.2f} in all"
    return [first, f"red adds, blue takes, full at {scale:.2g}"]


def _resize(values: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    """[h, w] -> [height, width] of a picture of `size` (width, height)."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, how))


def _blend(grey: Image.Image, colours: np.ndarray, strength: np.ndarray) -> Image.Image:
    """Colours [H, W, 3] from 0 to 1 over a grey image, with strength [H, W] from 0 to 1."""
    below = np.asarray(grey, dtype=np.float32)[:, :, None]  # [H, W, 1]
    cover = STRONGEST * strength[:, :, None]
    return Image.fromarray(np.rint((1 - cover) * below + cover * 255 * colours).astype(np.uint8))
