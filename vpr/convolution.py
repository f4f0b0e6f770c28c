"""A trunk in float32 on a processor, by algorithms that suit it better than PyTorch's own choice.

By itself PyTorch multiplies nine times there for each output of a 3x3 kernel and channel. NNPACK, which its
builds for x86 and ARM carry along, gets the same sums from Winograd's and Fourier's transforms: on two cores with
AVX2 a layer of VGG16 takes a third to four fifths of the time at 640x480 pixels, and differs by 2e-5 of the
largest value.
"""

import functools

import torch
from torch import nn

SMALLEST_MAP = 400  # places: below, transforming the kernel costs more than it saves
LARGE_MAP = 1000  # places: NNPACK is faster on larger maps one by one, on smaller ones together


def has_fast_convolutions(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is anything to gain for a model that computes there in this format."""
    if device.type != "cpu" or dtype != torch.float32 or not hasattr(torch, "_nnpack_spatial_convolution"):
        return False
    return torch._nnpack_available()  # also sets it up


def run_layers(layers: nn.Sequential, features: torch.Tensor, fast: bool) -> torch.Tensor:
    """Apply layers in turn; if `fast` by this file's ways where they pay, from maps [B, C, H, W] that lie so."""
    if not fast:
        return layers(features)
    done = 0
    if len(features) > 1 and _is_large(features):
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
    return features.shape[2] * features.shape[3] >= LARGE_MAP


def _run_layer(layer: nn.Module, features: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.Conv2d):
        if pays(layer, features):
            return FastConvolution.apply(features, layer.weight, layer.bias, layer.padding)
        # No slower with channels last, and then the values depend neither on the batch nor on the number of threads.
        return layer(features.contiguous(memory_format=torch.channels_last)).contiguous()
    if isinstance(layer, nn.MaxPool2d) and not features.requires_grad:
        return max_pool(features, layer.kernel_size, layer.stride)
    return layer(features)


def pays(layer: nn.Conv2d, features: torch.Tensor) -> bool:
    """Whether NNPACK can do a layer on maps [B, C, H, W], and faster.

    That must not depend on B: then a photo's values are the same to the bit in any batch of several, and a training
    by two processes sees what one would. The two ways of computing differ by more than orders of summation do.
    """
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.kernel_size in ((3, 3), (5, 5))
    return plain and features.shape[2] * features.shape[3] >= SMALLEST_MAP and features.is_contiguous()


def max_pool(features: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """Max pooling without padding, [B, C, H, W] -> [B, C, h, w].

    Rows first, whole vectors at a time, then columns: an eighth of the time of PyTorch's own.
    """
    height, width = ((length - size) // stride * stride + 1 for length in features.shape[2:])
    rows = [features[:, :, start : start + height : stride] for start in range(size)]
    highest = functools.reduce(torch.maximum, rows)  # [B, C, h, W]
    return functools.reduce(torch.maximum, [highest[..., start : start + width : stride] for start in range(size)])


class FastConvolution(torch.autograd.Function):
    """A convolution of stride 1; its gradient by the input is one too, that by the kernel is PyTorch's own."""

    @staticmethod
    def forward(ctx, features, weight, bias, padding: tuple[int, int]) -> torch.Tensor:
        ctx.save_for_backward(features, weight)
        ctx.padding = padding
        return _convolve(features, weight, bias, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple:
        features, weight = ctx.saved_tensors
        # Photos of no violating pair have no gradient: the more a training has learnt, the more of them there are.
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


def _convolve(features: torch.Tensor, weight: torch.Tensor, bias, padding: tuple[int, int]) -> torch.Tensor:
    parts = features.split(1) if _is_large(features) else [features]
    done = [torch._nnpack_spatial_convolution(part, weight, bias, padding, (1, 1)) for part in parts]
    return done[0] if len(done) == 1 else torch.cat(done)
