"""VGG16 and AlexNet, cut after the last convolution: the layers of torchvision's `features`, one a stage.

Weights of torchvision are found by the names it has for them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vpr.common.errors import UserError
from vpr.models.backbones import BACKBONES
from vpr.models.backbones.base import Backbone, Published


@dataclass(frozen=True)
class Cut:
    """Where a torchvision network is cut.

    Attributes:
        layers: how many of `features` are kept: up to the last convolution, without its ReLU and pooling.
        stride: pixels between two neighbouring local descriptors.
        smallest_side: pixels an image must have in height and width to leave one local descriptor.
    """

    layers: int
    stride: int
    smallest_side: int


CUTS = {
    "vgg16": Cut(layers=29, stride=16, smallest_side=16),
    "alexnet": Cut(layers=11, stride=16, smallest_side=31),
}


class PlainCnn(Backbone):
    """Convolutions, ReLUs and poolings in a row; stages are numbered, as torchvision does."""

    prefixes = ("features.", "", "encoder.")

    def prunable(self) -> list[nn.Conv2d]:
        """All convolutions: each is read by the next alone."""
        return convolutions(self)


def convolutions(layers: nn.Sequential) -> list[nn.Conv2d]:
    """The convolutions among layers."""
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)]


def build(arch: str, channels: Sequence[int] | None) -> Backbone:
    """VGG16 or AlexNet whose weights are yet to be filled in; see `build_backbone`."""
    import torchvision

    cut, entry = CUTS[arch], BACKBONES[arch]
    with torch.device("meta"):  # the classifier, most of the network, never takes memory
        layers = getattr(torchvision.models, arch)(weights=None).features[: cut.layers]
        numbers = [number for number, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
        if channels is not None and len(channels) != len(numbers):
            raise UserError(f"--channels: found {len(channels)} numbers, {arch} has {len(numbers)} convolutions")
        before = 3
        for number, count in zip(numbers, channels or (), strict=False):
            layer = layers[number]
            layers[number] = nn.Conv2d(before, count, layer.kernel_size, layer.stride, layer.padding)
            before = count
        backbone = PlainCnn(
            OrderedDict(layers.named_children()),
            dim=channels[-1] if channels else entry.dim,
            stride=cut.stride,
            smallest_side=cut.smallest_side,
            stage_of=dict(zip(entry.layers, numbers, strict=True)),
        )
    return backbone.to_empty(device="cpu")


def published(arch: str, weights: str) -> Published:
    """Weights of torchvision by their name there, such as DEFAULT.

    Raises:
        UserError: this backbone has none of that name.
    """
    import torchvision

    entries = torchvision.models.get_model_weights(arch)
    name = weights.upper()
    if name not in entries.__members__:
        raise UserError(
            f"--weights={weights} is neither a file nor a name that {arch} has "
            f"({', '.join(entries.__members__)}) nor none"
        )
    entry = entries[name]
    pixels = entry.transforms()
    return Published(entry.name, tuple(pixels.mean), tuple(pixels.std), lambda: _download(arch, weights, entry.url))


def _download(arch: str, weights: str, url: str) -> dict[str, torch.Tensor]:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # no network, a proxy's page, a broken file, no room
        raise UserError(
            f"cannot fetch {weights} of {arch} ({type(error).__name__}: {error}): download {url} into {folder}, "
            "or give a state dict with --weights FILE, or start without with --fromscratch"
        ) from error
