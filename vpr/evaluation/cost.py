"""What a model costs: parameters, bytes, arithmetic and time for one photo."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import nn

from vpr.artifacts.model import LoadedModel
from vpr.models.backbones.cnn import build_encoder

WARM_UP = 3


def trunk_gflop(arch: str, channels: Sequence[int] | None, height: int, width: int) -> tuple[float, int]:
    """GFLOP of a trunk's convolutions on one photo (2 for a multiplication and an addition), and places it leaves.

    Args:
        channels: filters of each convolution; None is the backbone's own.
    """
    features, total = torch.empty(1, 3, height, width, device="meta"), 0
    for layer in build_encoder(arch, channels).to("meta"):
        features = layer(features)
        if isinstance(layer, nn.Conv2d):
            total += 2 * layer.weight.numel() * features.shape[2] * features.shape[3]
    return total / 1e9, features.shape[2] * features.shape[3]


def pooling_gflop(places: int, dim: int, clusters: int, pooled_dim: int, whitened_dim: int | None) -> float:
    """GFLOP of NetVLAD's two products (none without clusters) and of whitening, on one photo."""
    whitening = 2 * pooled_dim * whitened_dim if whitened_dim else 0
    return (2 * 2 * places * dim * clusters + whitening) / 1e9


def parameter_count(model: nn.Module) -> int:
    """Numbers that a model stores, whitening included."""
    return sum(value.numel() for value in model.state_dict().values())


def milliseconds_per_photo(describe: Callable[[torch.Tensor], object], photos: list[torch.Tensor]) -> float:
    """Median time of describing one photo at a time, each uint8 [1, 3, H, W], after a few that do not count."""
    times = []
    for photo in photos[:WARM_UP] + photos:
        started = perf_counter()
        describe(photo)
        times.append(perf_counter() - started)
    return 1000 * statistics.median(times[min(WARM_UP, len(photos)) :])


def model_gflop(options: argparse.Namespace, finished: LoadedModel, height: int, width: int) -> float:
    """GFLOP for one photo, of the arithmetic as designed, whatever the number format."""
    model = finished.model
    gflop, places = trunk_gflop(options.arch, options.channels, height, width)
    clusters = options.num_clusters if options.pooling == "netvlad" else 0
    whitened = model.dim if model.dim != model.pooled_dim else None
    return gflop + pooling_gflop(places, model.pooled_dim // max(clusters, 1), clusters, model.pooled_dim, whitened)
