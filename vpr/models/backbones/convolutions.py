"""Convolutions of timm's networks in other forms with the same values: what can be exported, what does not crash."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

LONGEST_VECTOR = 16  # float32 numbers, of AVX-512


class _Unpadded(nn.Conv2d):
    """A convolution without padding, of a layer whose weights it takes."""

    def __init__(self, layer: nn.Conv2d) -> None:
        kernel, stride = cast(Any, layer.kernel_size), cast(Any, layer.stride)
        super().__init__(
            layer.in_channels, layer.out_channels, kernel, stride,
            groups=layer.groups, bias=layer.bias is not None, device="meta",
        )  # fmt: skip
        self.weight, self.bias = layer.weight, layer.bias


class StridedPointwise(_Unpadded):
    """A 1x1 convolution with a stride, in training on the subsampled map with stride 1, which is another routine.

    From few channels, as in RepVGG's first layer, the routine of oneDNN (in PyTorch 2.14) for the gradient of the
    weights writes past the end of its memory where maps have channels last and fewer channels than a vector has
    numbers: the program crashes, or goes on with broken memory.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        if input.device.type == "cpu" and torch.is_grad_enabled() and self.weight.requires_grad:
            down, right = self.stride
            return F.conv2d(input[:, :, ::down, ::right], self.weight, self.bias)
        return super().forward(input)


class SamePadded(_Unpadded):
    """A convolution of TensorFlow's: as many outputs as inputs over the stride, zeros added half at each end.

    In whole numbers that exporters can follow for any size.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        ends: list[int] = []
        for side, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            added = kernel - stride + (stride - side % stride) % stride  # the width's first, as F.pad takes them
            ends += [added // 2, added - added // 2]
        return super().forward(F.pad(input, ends))


def protect_strided(network: nn.Module) -> None:
    """Put `StridedPointwise` in place of the layers that would crash in training."""
    _replace(network, StridedPointwise, _would_crash)


def pad_as_tensorflow(network: nn.Module) -> None:
    """Put `SamePadded` in place of timm's convolutions with TensorFlow's padding."""
    from timm.layers import Conv2dSame

    _replace(network, SamePadded, lambda layer: isinstance(layer, Conv2dSame) and _can_be_padded(layer))


def _replace(network: nn.Module, by: type[_Unpadded], wanted: Callable[[Any], bool]) -> None:
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if wanted(layer):
                setattr(parent, name, by(layer))  # type: ignore[arg-type]  # `wanted` takes convolutions alone


def _would_crash(layer: nn.Module) -> bool:
    if type(layer) is not nn.Conv2d or layer.groups > 1 or layer.in_channels >= LONGEST_VECTOR:
        return False
    return layer.kernel_size == (1, 1) and layer.padding == (0, 0) and max(layer.stride) > 1


def _can_be_padded(layer: nn.Conv2d) -> bool:
    wide = all(size >= step for size, step in zip(layer.kernel_size, layer.stride, strict=True))
    return wide and layer.dilation == (1, 1)
