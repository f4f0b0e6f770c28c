"""What every backbone answers, and how one is found by its name."""

import contextlib
import copy
import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import nn

from vpr.common.device import Device
from vpr.common.errors import UserError
from vpr.models import nnpack
from vpr.models.backbones import BACKBONES, entry_of

TIMM = "timm_model"  # the file of all backbones that the table lacks
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of R, G, B from 0 to 1


class Backbone(nn.Sequential):
    """Normalised images [B, 3, H, W] -> maps of local descriptors [B, D, h, w], through stages in turn.

    The stages, its children in order, are what a training can be cut between: layers of VGG16, stages of a ResNet,
    blocks of a vision transformer. What passes between two stages has four dimensions, the first the images; the last
    stage gives the map. `forward`, inherited from nn.Sequential, is the readable form; `run` does the same faster.
    """

    # Usual before the names of its values in files of weights; of values under several the first of these are taken.
    prefixes: tuple[str, ...] = ("", "encoder.")
    multiple = 1  # pixels of which height and width have to be multiples; the first stage resizes other images
    convolutional = True  # whether convolutions do most of its arithmetic, so that 8 bits can be had for these
    train_batch_norm = False  # whether the statistics of BatchNorm layers of trained stages follow the training images
    unused_parameters = False  # whether trained stages have some that the map does not depend on, which get no gradient

    def __init__(
        self, stages: OrderedDict[str, nn.Module], dim: int, stride: int, smallest_side: int, stage_of: dict[str, int]
    ) -> None:
        super().__init__(stages)
        self.dim = dim  # D
        self.stride = stride  # pixels between two neighbouring local descriptors
        self.smallest_side = smallest_side  # pixels of height and width that leave one local descriptor
        self.stage_of = stage_of  # for each layer name of the table's entry, the number of the stage that it begins
        self.first_trained = 0  # the number of the first stage that is trained; those before it are frozen
        self.fast = False  # whether `vpr.models.nnpack` does convolutions in float32

    def prunable(self) -> list[nn.Conv2d]:
        """Convolutions whose filters --mode=prune may drop, in order; none where filters hang together otherwise."""
        return []

    def initialize(self, seed: int) -> None:
        """Random weights: He initialisation (He et al., ICCV 2015) of convolutions, which keeps the signal's size."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def train_from(self, layer: str) -> None:
        """Freeze all that lies before the layer of this name; pool: all."""
        self.first_trained = self.stage_of.get(layer, len(self))
        self.frozen.requires_grad_(False)
        self.train(self.training)

    @property
    def frozen(self) -> nn.Sequential:
        """The stages that training leaves as they are, under their numbers; perhaps none."""
        return self[: self.first_trained]

    @contextlib.contextmanager
    def wholly_trained(self) -> Iterator[None]:
        """All stages take part in gradients until the context ends."""
        first_trained, required = self.first_trained, [value.requires_grad for value in self.parameters()]
        self.first_trained = 0
        self.requires_grad_(True)
        try:
            yield
        finally:
            self.first_trained = first_trained
            for value, before in zip(self.parameters(), required, strict=True):
                value.requires_grad_(before)

    def run(self, features: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """What the stages from `start` to before `stop` make of features, in the fastest way on this processor."""
        return nnpack.run_layers(self[start:stop], features, self.fast)

    def set_up(self, device: Device, dtype: torch.dtype) -> None:
        """Lay the weights out in memory as a model that computes there in this format wants them."""
        self.fast = nnpack.has_fast_convolutions(device, dtype)
        for stage in self:
            stage.to(memory_format=nnpack.layout_for([stage], self.fast))

    @property
    def layout(self) -> torch.memory_format:
        """How images and features between stages lie in memory."""
        return nnpack.layout_for(self, self.fast)

    def shape_of(self, height: int, width: int, stop: int | None = None) -> torch.Size:
        """Shape of what the stages before `stop` make of one image, worked out without computing anything."""
        return self.without_data()[:stop](torch.empty(1, 3, height, width, device="meta")).shape[1:]

    def without_data(self) -> "Backbone":
        """A copy that has shapes but no values."""
        return copy.deepcopy(self).to("meta")

    def train(self, mode: bool = True) -> "Backbone":
        """Training mode, in which frozen stages stay as in a test: statistics of a batch would change them.

        So do BatchNorm layers of trained stages unless `train_batch_norm`: the few images of a step, most of them of
        the same few scenes, are no sample of the training set. Their scales and shifts are trained.
        """
        super().train(mode)
        for stage in self.frozen:
            stage.eval()
        if not self.train_batch_norm:
            for layer in self.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        return self

    def values_in(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The values of a file of weights, whose names stand there as `name_in_file` says, under the names here."""
        return state

    def name_in_file(self, name: str) -> str:
        """The name that files of weights have for a value, by the first of `prefixes`."""
        return self.prefixes[0] + name

    @overload
    def __getitem__(self, index: slice) -> nn.Sequential: ...

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...

    def __getitem__(self, index: slice | int) -> nn.Module:
        """A stage by number, or several by a slice: a plain nn.Sequential, with the names that they have here."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)


@dataclass(frozen=True)
class Published:
    """Weights of a backbone that somebody published."""

    name: str  # for file names and result lines
    mean: tuple[float, float, float]  # of pixels from 0 to 1 (R, G, B), with which the network was trained
    std: tuple[float, float, float]  # likewise
    fetch: Callable[[], dict[str, torch.Tensor]]  # gives the state dict; raises UserError where it cannot be had
    licence: str = ""  # under which they may be used, as far as it is known here


def build_backbone(
    arch: str,
    channels: Sequence[int] | None = None,
    cut: int | None = None,
    facet: str | None = None,
    class_token: bool = False,
) -> Backbone:
    """A backbone of the table or of timm whose weights are yet to be filled in.
    Raises a UserError: there are not as many numbers as convolutions, filters cannot be dropped, or the backbone has no
    such cut, facet or class token.

    Args:
        channels: filters of each convolution after pruning; None are the backbone's own.
        cut, facet: see `Entry`; None are the backbone's defaults.
        class_token: give the class token [B, D, 1, 1] instead of the map of local descriptors.
    """
    entry = entry_of(arch, cut, facet)
    if arch not in BACKBONES:
        return _module_of(arch).build(arch, channels, entry.cut, entry.facet, class_token)
    if class_token:
        raise no_class_token(arch)
    return _module_of(arch).build(arch, channels)


def no_class_token(arch: str) -> UserError:
    """What is said of a backbone that is no vision transformer and shall give a class token."""
    return UserError(f"--pooling=cls wants a vision transformer, {arch} has no class token: give another --pooling")


def published(arch: str, weights: str) -> Published:
    """Published weights by their name; UserError if the backbone has none of this name."""
    return _module_of(arch).published(arch, weights)


def own_pixels(arch: str) -> Published | None:
    """Mean and std for weights of this backbone that say nothing of their own; None where nothing is known."""
    return None if arch in BACKBONES else _module_of(arch).published(arch, None)


def _module_of(arch: str) -> Any:  # a module, of which only its two functions are asked
    return importlib.import_module(f"vpr.models.backbones.{BACKBONES[arch].module if arch in BACKBONES else TIMM}")
