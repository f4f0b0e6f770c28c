"""VGG16 and AlexNet, cut after the last convolution: the layers of torchvision's `features`, one a stage."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.models.backbones import BACKBONES
from vpr.models.backbones.base import IMAGENET, Backbone, Published

# Convolutions (filters, kernel's side, stride, padding), all but the last with a ReLU, and the sides of max poolings of
# stride 2: Simonyan and Zisserman, ICLR 2015, table 1, D; Krizhevsky, arXiv 1404.5997, as torchvision has it.
LAYERS: dict[str, list[tuple[int, int, int, int] | int]] = {
    "vgg16": [
        (64, 3, 1, 1), (64, 3, 1, 1), 2, (128, 3, 1, 1), (128, 3, 1, 1), 2,
        *[(256, 3, 1, 1)] * 3, 2, *[(512, 3, 1, 1)] * 3, 2, *[(512, 3, 1, 1)] * 3,
    ],
    "alexnet": [(64, 11, 4, 2), 3, (192, 5, 1, 2), 3, (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)],
}  # fmt: skip
# torchvision's weights by its names, which takes longer to import than all else: file (its name ends with the beginning
# of its SHA-256), mean and std of pixels 0 to 1.
WEIGHTS = {
    "vgg16": {
        "IMAGENET1K_V1": ("vgg16-397923af.pth", *IMAGENET),
        "IMAGENET1K_FEATURES": ("vgg16_features-amdegroot-88682ab5.pth", (0.48235, 0.45882, 0.40784), (1 / 255,) * 3),
    },
    "alexnet": {"IMAGENET1K_V1": ("alexnet-owt-7be5be79.pth", *IMAGENET)},
}  # fmt: skip
MEGABYTES = {"vgg16": 553, "alexnet": 244}  # of a file, of which the classifier's are most
LICENCES = {"IMAGENET1K_V1": "BSD-3-Clause, of torchvision", "IMAGENET1K_FEATURES": "CC BY 4.0, of Oxford's VGG"}
DEFAULT, ADDRESS = "IMAGENET1K_V1", "https://download.pytorch.org/models/"
SMALLEST_SIDE = {"vgg16": 16, "alexnet": 31}  # pixels in height and width that leave one local descriptor


class PlainCnn(Backbone):
    """Convolutions, ReLUs and poolings in a row; stages are numbered, as torchvision does."""

    prefixes = ("features.", "", "encoder.")

    def prunable(self) -> list[nn.Conv2d]:
        """All convolutions: each is read by the next alone."""
        return [layer for layer in self if isinstance(layer, nn.Conv2d)]


def build(arch: str, channels: Sequence[int] | None) -> Backbone:
    """VGG16 or AlexNet whose weights are yet to be filled in; see `build_backbone`."""
    entry, count = BACKBONES[arch], sum(isinstance(layer, tuple) for layer in LAYERS[arch])
    if channels is not None and len(channels) != count:
        raise UserError(f"--channels: found {len(channels)} numbers, {arch} has {count} convolutions")
    layers, numbers, filters = nn.Sequential(), list[int](), iter(channels or ())
    with torch.device("meta"):
        before = 3
        for layer in LAYERS[arch]:
            if isinstance(layer, int):
                layers.append(nn.MaxPool2d(layer, stride=2))
                continue
            numbers.append(len(layers))
            own, side, stride, padding = layer
            layers.append(nn.Conv2d(before, before := next(filters, own), side, stride, padding))
            layers.append(nn.ReLU(inplace=True))
        layers.pop(-1)
        stages, stage_of = OrderedDict(layers.named_children()), dict(zip(entry.layers, numbers, strict=True))
        backbone = PlainCnn(stages, channels[-1] if channels else entry.dim, 16, SMALLEST_SIDE[arch], stage_of)
    return backbone.to_empty(device="cpu")


def published(arch: str, weights: str) -> Published:
    """Weights of torchvision by their name there, such as DEFAULT; UserError where there are none of that name."""
    name = DEFAULT if weights.upper() == "DEFAULT" else weights.upper()
    if name not in WEIGHTS[arch]:
        known = ", ".join((*WEIGHTS[arch], "DEFAULT"))
        raise UserError(f"--weights={weights} is neither a file nor a name that {arch} has ({known}) nor none")
    file, mean, std = WEIGHTS[arch][name]
    return Published(name, mean, std, lambda: _download(arch, weights, f"{ADDRESS}{file}", LICENCES[name]))


def _download(arch: str, weights: str, url: str, licence: str) -> dict[str, torch.Tensor]:
    folder, file = Path(torch.hub.get_dir()) / "checkpoints", url.rpartition("/")[2]
    if not (folder / file).exists():
        checksum = file.rpartition("-")[2].partition(".")[0]
        say(f"downloading {file} into {folder}: {MEGABYTES[arch]} MB, {licence}, SHA-256 {checksum}...")
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # no network, a proxy's page, a broken file, no room
        raise UserError(
            f"cannot fetch {weights} of {arch} ({type(error).__name__}: {error}): download {url} into {folder}, "
            "or give a state dict with --weights FILE; --fromscratch starts from random weights"
        ) from error
