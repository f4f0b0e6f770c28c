"""Networks as Caffe computes them, of which the MATLAB release of NetVLAD was made: CaffeNet, and poolings that keep an
incomplete last window.

`alexnet_caffe` is CaffeNet, Caffe's form of AlexNet (Krizhevsky et al., NIPS 2012), up to conv5: convolutions 2, 4 and
5 in two groups, pooling before local response normalisation, no padding of conv1. It is another network than
torchvision's `alexnet`. Names that end in `_ceil` are of networks whose poolings keep a last row and column of windows
that are not full. That is MatConvNet's padding [0 1 0 1] (below and right), and differs on maps of even side in
CaffeNet and of odd side in VGG16.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from vpr.common.errors import UserError
from vpr.models.backbones import BACKBONES, cnn
from vpr.models.backbones.base import Backbone, Published

FILTERS = (96, 256, 384, 384, 256)
GROUPS = (1, 2, 1, 2, 2)
SMALLEST_SIDE = {"alexnet_caffe": 35, "alexnet_caffe_ceil": 23, "vgg16_ceil": 1}


class EdgeMaxPool(nn.Module):
    """Maximum pooling by windows of `size` with stride 2, the last of which may reach over the edge by one.

    What lies over the edge counts as zero: it is never the largest of values that come from a ReLU.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size, self.stride = size, 2

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, h, w], none negative -> [B, D, h', w']."""
        return F.max_pool2d(F.pad(features, (0, 1, 0, 1)), self.size, self.stride)


class ResponseNorm(nn.Module):
    """Local response normalisation over neighbouring channels, as MatConvNet and Caffe's authors write it:

        y_d = x_d / (kappa + alpha sum_e x_e^2)^beta,    e in a window of `size` channels around d

    PyTorch's `LocalResponseNorm` and Caffe divide their alpha by the window's size; this one does not.
    """

    def __init__(self, size: int = 5, kappa: float = 1.0, alpha: float = 2e-5, beta: float = 0.75):
        super().__init__()
        self.size, self.kappa, self.alpha, self.beta = size, kappa, alpha, beta

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, D, h, w] -> [B, D, h, w]."""
        squares = (features * math.sqrt(self.alpha)).square()  # scaled first: no overflow in float16
        before = (self.size - 1) // 2
        padded = F.pad(squares, (0, 0, 0, 0, before, self.size - 1 - before))
        channels = features.shape[1]
        total = padded[:, :channels]
        for first in range(1, self.size):
            total = total + padded[:, first : first + channels]
        return features / (self.kappa + total) ** self.beta


def build(arch: str, channels: Sequence[int] | None) -> Backbone:
    """A network whose weights are yet to be filled in; see `build_backbone`."""
    ceil = arch.endswith("_ceil")
    if arch == "vgg16_ceil":
        backbone: Backbone = cnn.build("vgg16", channels)
        for name, stage in list(backbone.named_children()):
            if isinstance(stage, nn.MaxPool2d):
                setattr(backbone, name, EdgeMaxPool(2))
        backbone.smallest_side = SMALLEST_SIDE[arch]
        return backbone
    filters = _filters(arch, channels)
    with torch.device("meta"):
        stages = caffenet(filters, ceil)
        numbers = {name: number for number, name in enumerate(stages) if name in BACKBONES[arch].layers}
        backbone = Backbone(stages, filters[-1], stride=16, smallest_side=SMALLEST_SIDE[arch], stage_of=numbers)
    return backbone.to_empty(device="cpu")


def caffenet(filters: Sequence[int], ceil: bool) -> OrderedDict[str, nn.Module]:
    """The layers of CaffeNet by their names, up to conv5 without its ReLU."""
    one, two, three, four, five = filters
    return OrderedDict(
        conv1=nn.Conv2d(3, one, 11, stride=4),
        relu1=nn.ReLU(),
        pool1=EdgeMaxPool(3) if ceil else nn.MaxPool2d(3, 2),
        norm1=ResponseNorm(),
        conv2=nn.Conv2d(one, two, 5, padding=2, groups=GROUPS[1]),
        relu2=nn.ReLU(),
        pool2=EdgeMaxPool(3) if ceil else nn.MaxPool2d(3, 2),
        norm2=ResponseNorm(),
        conv3=nn.Conv2d(two, three, 3, padding=1, groups=GROUPS[2]),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(three, four, 3, padding=1, groups=GROUPS[3]),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(four, five, 3, padding=1, groups=GROUPS[4]),
    )


def _filters(arch: str, channels: Sequence[int] | None) -> Sequence[int]:
    """Filters of the convolutions; the groups must divide what goes into and comes out of theirs."""
    filters = channels or FILTERS
    if len(filters) != len(FILTERS):
        raise UserError(f"--channels: found {len(filters)} numbers, {arch} has {len(FILTERS)} convolutions")
    for before, after, groups in zip((3, *filters), filters, GROUPS, strict=False):
        if before % groups or after % groups:
            raise UserError(
                f"{arch} with {' '.join(map(str, filters))} channels: found a convolution from {before} to {after} in "
                f"{groups} groups, wanted numbers that {groups} divides: give others"
            )
    return filters


def published(arch: str, weights: str) -> Published:
    """VGG16's weights are torchvision's; CaffeNet's come with --mode=import or as a state dict alone: a UserError."""
    if arch == "vgg16_ceil":
        return cnn.published("vgg16", weights)
    raise UserError(
        f"--weights={weights} of {arch}: none are published for download; give a state dict with --weights FILE, "
        "or import a MATLAB model with --mode=import"
    )
