"""A network of timm of a family that has no plan of its own: taken as a whole, at the image sizes that it can take."""

import bisect
import copy
import math
from typing import Any

import torch
from torch import nn

from vpr.models.backbones.vit_stages import to_multiples

MULTIPLES = (1, 2, 4, 8, 14, 16, 28, 32, 64)  # pixels
# Pixels. With halving and rounding up, each scale from 1 to 1/16 has an odd side in one of the three, and of 32 pixels
# they leave little, most and all but one: networks that round otherwise in two layers are found out.
SIDES = (263, 217, 223)


class Whole(nn.Module):
    """A network up to one of its maps, as timm cuts it. Its attributes are as of `Backbone`.

    Args:
        index: of the map in the network's `feature_info`.
        stride: pixels between two neighbouring local descriptors.

    Raises an Exception of any kind, as timm's networks raise them, where it takes images of one size alone.
    """

    def __init__(self, network: Any, index: int, stride: int) -> None:
        super().__init__()
        (self.index,) = network.prune_intermediate_layers([index], prune_norm=True, prune_head=True)
        self.network, self.multiple = network, 1
        # In training mode BatchNorm would refuse the single value of a globally pooled image.
        twin = copy.deepcopy(self).to("meta").eval()
        self.multiple, features = _multiple_of(twin)
        self.smallest_side = _smallest_side(twin, self.multiple, stride)
        self.dim = features.shape[1]
        features.sum().backward()
        self.unused_parameters = any(value.grad is None for value in twin.parameters() if value.requires_grad)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [B, D, h, w]."""
        if self.multiple > 1:
            images = to_multiples(images, self.multiple)
        maps = self.network.forward_intermediates(
            images, indices=[self.index], stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps[0]


@torch.enable_grad()
def _map_of(twin: Whole, height: int, width: int) -> torch.Tensor:
    """The map of an image [1, D, h, w], without data."""
    return twin(torch.empty(1, 3, height, width, device="meta"))


def _multiple_of(twin: Whole) -> tuple[int, torch.Tensor]:
    """The least of `MULTIPLES` at odd multiples of which a network takes images, and the map of such an image."""
    for multiple in MULTIPLES:
        width, height, square = (multiple * (side // multiple | 1) for side in SIDES)
        try:
            other, features = _map_of(twin, square, square), _map_of(twin, height, width)
            # A transformer that miscounts its patches may mix them with channels.
            if other.shape[1] == features.shape[1]:
                return multiple, features
            raise ValueError(f"maps of {tuple(other.shape[1:])} and {tuple(features.shape[1:])}")
        except Exception:  # of any kind
            if multiple == MULTIPLES[-1]:
                raise
    raise AssertionError("the last multiple returns or raises")


def _smallest_side(twin: Whole, multiple: int, stride: int) -> int:
    """The smallest side of square images that leaves a local descriptor: a multiple of `multiple`, at least `stride`.

    By bisection: what a side is enough for, a larger one is. For most networks the stride is the answer.
    """

    def is_enough(count: int) -> bool:
        try:
            _map_of(twin, count * multiple, count * multiple)
        except Exception:  # of any kind
            return False
        return True

    least = math.ceil(stride / multiple)
    if is_enough(least):
        return least * multiple
    larger = range(least + 1, SIDES[0] // multiple | 1)
    return (larger.start + bisect.bisect_left(larger, True, key=is_enough)) * multiple
