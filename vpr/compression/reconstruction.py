"""After pruning: what is left learns to give what it gave before. That takes images, but no positions.

First layer by layer: from the images on, each convolution gets those kernels and biases that least squares finds
between what the pruned backbone feeds it now and what the original's same filters gave there (He et al., ICCV 2017,
section 3.1, without its choice of filters). Then all layers together, by gradients: the original's local
descriptors are distilled into them (Hinton et al., arXiv:1503.02531; of features, Romero et al., ICLR 2015).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vpr.common.progress import Progress
from vpr.descriptors.describe import Source
from vpr.descriptors.vocabulary import DESCRIPTORS_PER_IMAGE
from vpr.models.place_model import PlaceModel
from vpr.training.state import build_scaler

IMAGES = 256
IMAGES_PER_STEP = 4
LEARNING_RATE = 2e-4  # Adam's, falling to 0 by a cosine
RIDGE = 1e-3  # of the inputs' mean square: how strongly weights that the images say little about stay as they are


@torch.no_grad()
def reconstruct(pruned: PlaceModel, original: PlaceModel, kept: list[torch.Tensor], source: Source, seed: int) -> None:
    """Refit all convolutions of a pruned backbone on random images, in place. `pruned` and `original`: on the same
    device. `kept`: for each convolution the indices of the original's filters that are left."""
    images = np.random.default_rng(seed).permutation(len(source.files))[:IMAGES].tolist()
    convolutions = [(number, layer) for number, layer in enumerate(pruned.backbone) if isinstance(layer, nn.Conv2d)]
    with Progress("refitting filters", len(convolutions) * len(images)) as progress:
        for (number, layer), filters in zip(convolutions, kept, strict=True):
            chosen = torch.Generator().manual_seed(seed)
            inputs = outputs = torch.zeros((), dtype=torch.float64)
            for batch in source.batches([[image] for image in images]):
                values = pruned.tensor_of(batch[0].values)  # [1, 3, H, W]
                seen, wanted = _examples(pruned, original, values, number, layer, chosen)
                inputs = inputs + (seen.T @ seen).double()
                outputs = outputs + (seen.T @ wanted[:, filters.to(wanted.device)]).double()
                progress.advance(1)
            if images:
                refit(layer, inputs, outputs)


def distill(
    pruned: PlaceModel, original: PlaceModel, filters: torch.Tensor, source: Source, images: int, seed: int
) -> None:
    """Train all layers of a pruned backbone together, in place, to give the original's local descriptors.

    The loss is their squared distance: once both have length 1, which is how NetVLAD takes them; for other poolings in
    units of the original's mean square.

    Args:
        pruned, original: on the same device.
        filters: indices of the original's last filters that are left.
        images: how many are described, 1 or more; each several times where there are fewer.
    """
    random, count = np.random.default_rng(seed), len(source.files)
    order = np.concatenate([random.permutation(count) for _ in range(-(-images // count))])[:images].tolist()
    batches = [order[start : start + IMAGES_PER_STEP] for start in range(0, images, IMAGES_PER_STEP)]
    optimizer = torch.optim.Adam(pruned.backbone.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    scaler = build_scaler(pruned)
    with pruned.backbone.wholly_trained(), Progress("distilling", images) as progress:
        for batch, groups in zip(batches, source.batches(batches), strict=True):
            distances = [feature_distance(pruned, original, filters, group.values) for group in groups]
            optimizer.zero_grad()
            scaler.scale(sum(distances[1:], distances[0]) / len(batch)).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            progress.advance(len(batch))
    pruned.zero_grad()


def feature_distance(
    pruned: PlaceModel, original: PlaceModel, filters: torch.Tensor, pixels: np.ndarray
) -> torch.Tensor:
    """Squared distance of both models' local descriptors, the mean over positions, the sum over images."""
    images = pruned.tensor_of(pixels)
    with torch.no_grad():
        wanted = original.local_descriptors(images)[:, filters.to(images.device)]  # [B, D, h, w]
    found = pruned.local_descriptors(images)
    if pruned.pool.normalizes_input:
        found, wanted = F.normalize(found, dim=1), F.normalize(wanted, dim=1)
    else:
        size = wanted.square().sum(dim=1).mean().sqrt()
        found, wanted = found / size, wanted / size
    return (found - wanted).square().sum(dim=1).mean(dim=(1, 2)).sum()


def _examples(
    pruned: PlaceModel,
    original: PlaceModel,
    image: torch.Tensor,
    number: int,
    layer: nn.Conv2d,
    chosen: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a convolution, stage `number` of the pruned backbone, sees at some positions of an image, and what the
    original gives: inputs [P, C * k * k + 1], the last of them 1, and outputs [P, filters of the original]."""
    with pruned.autocast():
        features = pruned.backbone.run(pruned.normalized(image), stop=number)
        wanted = original.backbone.run(original.normalized(image), stop=number + 1)
    wanted = wanted[0].flatten(1).T  # [h * w, filters]
    positions = torch.randperm(len(wanted), generator=chosen)[:DESCRIPTORS_PER_IMAGE].to(wanted.device)
    assert not isinstance(layer.padding, str)
    rows, columns = layer.padding
    windows = F.pad(features[0], (columns, columns, rows, rows))
    for axis in (0, 1):
        windows = windows.unfold(axis + 1, layer.kernel_size[axis], layer.stride[axis])  # [C, h, w, k, k]
    width = windows.shape[2]
    seen = windows[:, positions // width, positions % width].transpose(0, 1).flatten(1)  # [P, C * k * k]
    return torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1).float(), wanted[positions].float()


def refit(layer: nn.Conv2d, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    """Give a convolution the weights of least squares, drawn a little towards those it has.
    `inputs`: [n, n], sums of products of inputs, n = C * k * k + 1; the last input is 1. `outputs`: [n, filters], sums
    of products of inputs with the outputs wanted."""
    assert layer.bias is not None
    present = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], dim=1).T.double()  # [n, filters]
    hold = RIDGE * inputs.diagonal().mean()
    inputs = inputs + hold * torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
    found = torch.linalg.solve(inputs, outputs + hold * present).T.to(layer.weight.dtype)  # [filters, n]
    layer.weight.copy_(found[:, :-1].reshape(layer.weight.shape))
    layer.bias.copy_(found[:, -1])
