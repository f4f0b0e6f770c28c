"""VGG16 and AlexNet, cut after the last convolution: the layers of torchvision's `features`, one a stage.

Weights of torchvision are found by the names it has for them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from vpr.common.errors import UserError
from vpr.models.backbones import BACKBONES
from vpr.models.backbones.base import Backbone, Published

SMALLEST_SIDE = {"vgg16": 16, "alexnet": 31}  # pixels in height and width that leave one local descriptor


class PlainCnn(Backbone):
    """Convolutions, ReLUs and poolings in a row; stages are numbered, as torchvision does."""

    prefixes = ("features.", "", "encoder.")

    def prunable(self) -> list[nn.Conv2d]:
        """All convolutions: each is read by the next alone."""
        return [layer for layer in self if isinstance(layer, nn.Conv2d)]


def build(arch: str, channels: Sequence[int] | None) -> Backbone:
    """VGG16 or AlexNet whose weights are yet to be filled in; see `build_backbone`."""
    import torchvision

    entry = BACKBONES[arch]
    with torch.device("meta"):  # the classifier, most of the network, never takes memory
        layers = getattr(torchvision.models, arch)(weights=None).features
        numbers = [number for number, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
        layers = layers[: numbers[-1] + 1]  # without the last ReLU and pooling
        if channels is not None and len(channels) != len(numbers):
            raise UserError(f"--channels: found {len(channels)} numbers, {arch} has {len(numbers)} convolutions")
        for number, before, count in zip(numbers, (3, *(channels or ())), channels or (), strict=False):
            layer = layers[number]
            layers[number] = nn.Conv2d(before, count, layer.kernel_size, layer.stride, layer.padding)
        stages, stage_of = OrderedDict(layers.named_children()), dict(zip(entry.layers, numbers, strict=True))
        backbone = PlainCnn(stages, channels[-1] if channels else entry.dim, 16, SMALLEST_SIDE[arch], stage_of)
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
