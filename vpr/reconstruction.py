"""After pruning: what is left of each convolution learns to give what it gave before.

From the photos on, each convolution gets those kernels and biases that least squares finds between what the pruned
trunk feeds it now and what the original's same filters gave there (He et al., ICCV 2017, section 3.1, without
its choice of filters). That takes photos, but neither positions nor gradients.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from vpr.cluster import DESCRIPTORS_PER_PHOTO
from vpr.convolution import run_layers
from vpr.descriptors import Source
from vpr.model import PlaceModel
from vpr.progress import Progress

PHOTOS = 256
RIDGE = 1e-3  # of the inputs' mean square: how strongly weights that the photos say little about stay as they are


@torch.no_grad()
def reconstruct(pruned: PlaceModel, original: PlaceModel, kept: list[torch.Tensor], source: Source, seed: int) -> None:
    """Refit all convolutions of a pruned trunk on random photos, in place.

    Args:
        pruned, original: on the same device.
        kept: for each convolution the indices of the original's filters that are left.
    """
    photos = np.random.default_rng(seed).permutation(len(source.files))[:PHOTOS].tolist()
    convolutions = [number for number, layer in enumerate(pruned.encoder) if isinstance(layer, nn.Conv2d)]
    with Progress("refitting filters", len(convolutions) * len(photos)) as progress:
        for number, filters in zip(convolutions, kept, strict=True):
            sums, chosen = None, torch.Generator().manual_seed(seed)
            for values in _photos_one_by_one(source, photos):
                inputs, wanted = _examples(pruned, original, values.to(pruned.mean.device), number, chosen)
                sums = _add(sums, inputs, wanted[:, filters.to(wanted.device)])
                progress.advance(1)
            refit(pruned.encoder[number], *sums)


def _photos_one_by_one(source: Source, photos: list[int]) -> Iterator[torch.Tensor]:
    """uint8 [1, 3, H, W] each."""
    for batch in source.batches([[photo] for photo in photos]):
        for group in batch:
            yield from group.values.split(1)


def _examples(
    pruned: PlaceModel, original: PlaceModel, photo: torch.Tensor, number: int, chosen: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """What convolution `number` of the pruned trunk sees at some places of a photo, and what the original gives there.

    Returns:
        inputs [P, C * k * k + 1], the last of them 1, and outputs [P, filters of the original].
    """
    layer = pruned.encoder[number]
    with pruned.trunk():
        features = run_layers(pruned.encoder[:number], pruned.normalized(photo), pruned.fast)
        wanted = run_layers(original.encoder[: number + 1], original.normalized(photo), original.fast)
    wanted = wanted[0].flatten(1).T  # [h * w, filters]
    places = torch.randperm(len(wanted), generator=chosen)[:DESCRIPTORS_PER_PHOTO].to(wanted.device)
    rows, columns = layer.padding
    windows = nn.functional.pad(features[0], (columns, columns, rows, rows))
    for axis in (0, 1):
        windows = windows.unfold(axis + 1, layer.kernel_size[axis], layer.stride[axis])  # [C, h, w, k, k]
    width = windows.shape[2]
    seen = windows[:, places // width, places % width].transpose(0, 1).flatten(1)  # [P, C * k * k]
    return torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1).float(), wanted[places].float()


def _add(sums: tuple | None, inputs: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of products of inputs with inputs, and with outputs, in float64."""
    products = (inputs.T @ inputs).double(), (inputs.T @ wanted).double()
    return products if sums is None else tuple(total.add_(more) for total, more in zip(sums, products, strict=True))


def refit(layer: nn.Conv2d, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    """Give a convolution the weights of least squares, drawn a little towards those it has.

    Args:
        inputs: [n, n], sums of products of inputs, n = C * k * k + 1; the last input is 1.
        outputs: [n, filters], sums of products of inputs with the outputs wanted.
    """
    present = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], dim=1).T.double()  # [n, filters]
    hold = RIDGE * inputs.diagonal().mean()
    inputs = inputs + hold * torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
    found = torch.linalg.solve(inputs, outputs + hold * present).T.to(layer.weight.dtype)  # [filters, n]
    layer.weight.copy_(found[:, :-1].reshape(layer.weight.shape))
    layer.bias.copy_(found[:, -1])
