"""1x1 convolutions with a stride from few channels, such as RepVGG's first, in training on a processor.

For the gradient of their weights oneDNN (in PyTorch 2.14) writes past the end of its memory where maps have channels
last and fewer channels than a vector has numbers: the program crashes, or goes on with broken memory. The same
convolution with stride 1 on the subsampled map is another routine.
"""

from typing import Any, cast

import torch
from torch import nn

LONGEST_VECTOR = 16  # float32 numbers, of AVX-512


class StridedPointwise(nn.Conv2d):
    """A 1x1 convolution with a stride, of a layer whose weights it takes; in training on the subsampled map."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(
            layer.in_channels, layer.out_channels, 1, cast(Any, layer.stride), bias=layer.bias is not None,
            device="meta",
        )  # fmt: skip
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        if input.device.type == "cpu" and torch.is_grad_enabled() and self.weight.requires_grad:
            down, right = self.stride
            return nn.functional.conv2d(input[:, :, ::down, ::right], self.weight, self.bias)
        return super().forward(input)


def protect_strided(network: nn.Module) -> None:
    """Put `StridedPointwise` in place of the layers that would crash in training."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Conv2d and _would_crash(layer):
                setattr(parent, name, StridedPointwise(layer))


def _would_crash(layer: nn.Conv2d) -> bool:
    few = layer.groups == 1 and layer.in_channels < LONGEST_VECTOR
    return few and layer.kernel_size == (1, 1) and layer.padding == (0, 0) and max(layer.stride) > 1
