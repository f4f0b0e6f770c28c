"""Stage 3, descriptors: photo files -> one descriptor each."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vpr.errors import UserError
from vpr.images import SizeGroup, in_batches, photo_batches
from vpr.model import PlaceModel
from vpr.progress import Progress


def describe_batch(model: PlaceModel, batch: list[SizeGroup], device: torch.device) -> torch.Tensor:
    """Descriptors [B, descriptor_dim] of a batch, in the batch's order whatever sizes it mixes."""
    parts = [model(photos.to(device, non_blocking=True)) for _, photos in batch]
    order = torch.cat([places for places, _ in batch]).argsort().to(device)
    return torch.cat(parts)[order]


@torch.no_grad()
def describe_files(
    model: PlaceModel, files: Sequence[Path], options: argparse.Namespace, device: torch.device, description: str
) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """Describe photos in their order.

    Returns:
        float32 [N, descriptor_dim], and the (height, width) in pixels that photos had.

    Raises:
        UserError: a photo cannot be decoded, or the model's output is not finite.
    """
    model.eval()
    descriptors = np.empty((len(files), model.descriptor_dim), np.float32)
    sizes = set()
    batches = in_batches(len(files), options.cacheBatchSize)
    with Progress(description, len(files)) as progress:
        loaded = photo_batches(files, options.imageSize, batches, options.threads)
        for indices, batch in zip(batches, loaded, strict=True):
            descriptors[indices.start : indices.stop] = describe_batch(model, batch, device).float().cpu().numpy()
            sizes.update(tuple(photos.shape[2:]) for _, photos in batch)
            progress.advance(len(indices))
    if not np.isfinite(descriptors.sum(dtype=np.float64)):
        raise UserError("the model gives descriptors that are not finite: training diverged; lower --lr")
    return descriptors, sizes


def describe_sizes(sizes: set[tuple[int, int]], resized: bool) -> str:
    """Image sizes as width x height in pixels, for result lines."""
    shown = [f"{width}x{height}" for height, width in sorted(sizes)]
    text = shown[0] if len(shown) == 1 else f"{len(shown)} sizes from {shown[0]} to {shown[-1]}"
    return f"{text} pixels ({'resized' if resized else 'own size'})"
