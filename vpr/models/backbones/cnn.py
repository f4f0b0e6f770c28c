"""VGG16 and AlexNet, cut after the last convolution: the layers of torchvision's `features`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vpr.cli.flags import LAYERS
from vpr.common.errors import UserError


@dataclass(frozen=True)
class Trunk:
    """Where a torchvision network is cut.

    Attributes:
        layers: how many of `features` are kept: up to the last convolution, without its ReLU and pooling.
        dim: D, channels of a local descriptor.
        smallest_side: pixels a photo must have in height and width to leave one local descriptor.
    """

    layers: int
    dim: int
    smallest_side: int


TRUNKS = {
    "vgg16": Trunk(layers=29, dim=512, smallest_side=16),
    "alexnet": Trunk(layers=11, dim=256, smallest_side=31),
}


def build_encoder(arch: str, channels: Sequence[int] | None = None) -> nn.Sequential:
    """The trunk without weights worth having: layers are those of torchvision's `features`, same indices.

    Args:
        channels: filters of each convolution; None is the backbone's own.

    Raises:
        UserError: there are not as many numbers as convolutions.
    """
    import torchvision

    with torch.device("meta"):  # the classifier, most of the network, never takes memory
        encoder = getattr(torchvision.models, arch)(weights=None).features[: TRUNKS[arch].layers]
        places = [place for place, layer in enumerate(encoder) if isinstance(layer, nn.Conv2d)]
        if channels is not None and len(channels) != len(places):
            raise UserError(f"--channels: found {len(channels)} numbers, {arch} has {len(places)} convolutions")
        before = 3
        for place, count in zip(places, channels or (), strict=False):
            layer = encoder[place]
            encoder[place] = nn.Conv2d(before, count, layer.kernel_size, layer.stride, layer.padding)
            before = count
    return encoder.to_empty(device="cpu")


def layer_index(encoder: nn.Sequential, arch: str, layer: str) -> int:
    """Where in a trunk the convolution of that name is."""
    convolutions = [place for place, each in enumerate(encoder) if isinstance(each, nn.Conv2d)]
    return convolutions[LAYERS[arch].index(layer)]


def initialize_randomly(encoder: nn.Sequential, seed: int) -> None:
    """He initialisation (He et al., ICCV 2015), so that a trunk from scratch keeps its signal's size."""
    generator = torch.Generator().manual_seed(seed)
    for layer in encoder:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
