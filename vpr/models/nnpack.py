"""A backbone in float32 on a processor: each convolution by NNPACK or by PyTorch, whichever is faster there.

NNPACK, which PyTorch's builds for x86 and ARM carry along, computes 3x3 and 5x5 kernels through Winograd's and
Fourier's transforms with 2 to 3 times fewer multiplications, in vectors of 8, from maps [B, C, H, W] that lie so. It
differs by 2e-5 of the largest value. PyTorch multiplies directly, fastest with channels last. Each layer takes the
maps as it wants them, and hands them on as it has them.

What pays depends on the processor: `RULES` says which layers NNPACK does on which, by the times of whole backbones in
benchmarks/RESULTS.md ("Convolutions").

Each has threads of its own, which wait for work by turning: with few cores short layers of one disturb the other's, and
on a busy machine AlexNet took up to 1.7 times as long by NNPACK.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vpr.common.device import Device, vector_widths

LARGE_MAP = 1000  # positions: NNPACK is faster on larger maps one by one, on smaller ones together
FEWEST_VALUES = 20480  # of a map: with fewer PyTorch computes a single one in another way than several


@dataclass(frozen=True)
class Rule:
    """From which layer on NNPACK is faster than PyTorch with channels last."""

    area: int  # height x width of its maps; below, transforming the kernels costs more than it saves
    kernels: int  # how many it has, input x output channels; with fewer, moving the maps costs more
    sides: tuple[int, ...]  # of these kernels


# By the float32 that an instruction names and those that a core multiplies at a time. The last row was reckoned from
# the whole backbones and Genoa's single layers, and leaves all but VGG16's conv3 at 640x480 to PyTorch; measured on Ice
# Lake it is 4 % behind the better of the two at most.
RULES = {
    (8, 8): Rule(area=400, kernels=0, sides=(3, 5)),  # AVX2 and others
    (16, 8): Rule(area=400, kernels=0, sides=(3, 5)),  # AVX-512 in two halves: AMD Zen 4 (Genoa)
    (16, 16): Rule(area=8192, kernels=128 * 256, sides=(3,)),  # AVX-512: Intel, AMD from Zen 5
}


@functools.cache
def rule() -> Rule:
    """The rule of this processor: always the same."""
    return RULES[vector_widths()]


def has_fast_convolutions(device: Device, dtype: torch.dtype) -> bool:
    """Whether there is anything to gain for a model that computes there in this format."""
    if device.type != "cpu" or dtype != torch.float32 or not hasattr(torch, "_nnpack_spatial_convolution"):
        return False
    return torch._nnpack_available()  # also sets it up


def layout_for(layers: Iterable[nn.Module], fast: bool) -> torch.memory_format:
    """How large maps that go into layers, and kernels, should lie in memory: as the first convolution wants them."""
    first = next((layer for layer in layers if isinstance(layer, nn.Conv2d)), None)
    wanted = fast and first is not None and _is_nnpacks(first) and _kernels(first) >= rule().kernels
    return torch.contiguous_format if wanted else torch.channels_last


def run_layers(layers: nn.Sequential, features: torch.Tensor, fast: bool) -> torch.Tensor:
    """Apply layers in turn to maps [B, C, H, W]; if `fast` by this file's ways where they pay.

    In which layout the maps come out depends on the layers, the size and the processor alone.
    """
    if not fast:
        return layers(features)
    done = 0
    if len(features) > 1 and _is_large(features) and layout_for(layers, fast) == torch.contiguous_format:
        parts = []
        for image in features.split(1):
            done = 0
            while done < len(layers) and _is_large(image):
                image, done = _run_layer(layers[done], image), done + 1
            parts.append(image)
        features = torch.cat(parts)
    for layer in layers[done:]:
        features = _run_layer(layer, features)
    return features


def _is_large(features: torch.Tensor) -> bool:
    area = features.shape[2] * features.shape[3]
    return area >= LARGE_MAP and features.shape[1] * area > FEWEST_VALUES


def _run_layer(layer: nn.Module, features: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.Conv2d):
        if pays(layer, features):
            return FastConvolution.apply(features.contiguous(), layer.weight, layer.bias, layer.padding)
        # With channels last the values depend neither on the batch nor on the number of threads.
        return layer(features.contiguous(memory_format=torch.channels_last))
    if isinstance(layer, nn.MaxPool2d) and not features.requires_grad and features.is_contiguous():
        assert isinstance(layer.kernel_size, int) and isinstance(layer.stride, int)  # as VGG16 and AlexNet have them
        return max_pool(features, layer.kernel_size, layer.stride)
    return layer(features)


def pays(layer: nn.Conv2d, features: torch.Tensor) -> bool:
    """Whether NNPACK can do a layer on maps [B, C, H, W], and faster.

    That must not depend on B: then an image's values are the same to the bit in any batch of several, and a training
    by two processes sees what one would. The two ways of computing differ by more than orders of summation do.
    """
    area = features.shape[2] * features.shape[3]
    return _is_nnpacks(layer) and area >= rule().area and _kernels(layer) >= rule().kernels


def _is_nnpacks(layer: nn.Conv2d) -> bool:
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1
    return plain and layer.kernel_size in [(side, side) for side in rule().sides]


def _kernels(layer: nn.Conv2d) -> int:
    return layer.in_channels * layer.out_channels


def max_pool(features: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """Max pooling without padding, [B, C, H, W] -> [B, C, h, w].

    Rows first, whole vectors at a time, then columns: an eighth of the time of PyTorch's own on maps that lie so.
    With channels last PyTorch's own is as fast.
    """
    height, width = ((length - size) // stride * stride + 1 for length in features.shape[2:])
    rows = [features[:, :, start : start + height : stride] for start in range(size)]
    highest = functools.reduce(torch.maximum, rows)  # [B, C, h, W]
    return functools.reduce(torch.maximum, [highest[..., start : start + width : stride] for start in range(size)])


class FastConvolution(torch.autograd.Function):
    """A convolution of stride 1; its gradient by the input is one too, that by the kernel is PyTorch's own."""

    @staticmethod
    def forward(
        ctx: Any, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int]
    ) -> torch.Tensor:
        ctx.save_for_backward(features, weight)
        ctx.padding = padding
        return _convolve(features, weight, bias, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        features, weight = ctx.saved_tensors
        # Images of no violating pair have no gradient: the more a training has learnt, the more of them there are.
        used = grad.flatten(1).any(dim=1)  # [B]
        features, grad = features[used], grad[used]
        to_features = None
        if ctx.needs_input_grad[0]:
            turned = weight.flip(2, 3).transpose(0, 1).contiguous()
            reach = tuple(size - 1 - padding for size, padding in zip(weight.shape[2:], ctx.padding, strict=True))
            to_features = features.new_zeros(len(used), *features.shape[1:])
            if len(grad):
                to_features[used] = _convolve(grad.contiguous(), turned, None, reach)
        _, to_weight, to_bias = torch.ops.aten.convolution_backward(
            grad, features, weight, [len(weight)], (1, 1), ctx.padding, (1, 1), False, (0, 0), 1,
            [False, ctx.needs_input_grad[1], ctx.needs_input_grad[2]],
        )  # fmt: skip
        return to_features, to_weight, to_bias, None


def _convolve(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int]
) -> torch.Tensor:
    parts = features.split(1) if _is_large(features) else [features]
    done = [torch._nnpack_spatial_convolution(part, weight, bias, padding, (1, 1)) for part in parts]
    return done[0] if len(done) == 1 else torch.cat(done)
