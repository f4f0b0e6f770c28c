"""Arithmetic and memory of a network on one image, worked out from shapes, without computing anything."""

import copy
from typing import Any

import torch
from torch import nn


def count_gflop(network: nn.Module, image: torch.Tensor) -> float:
    """Arithmetic in 10^9 operations, of which a multiplication with an addition is two, for an image on meta.

    Convolutions and matrix products are counted, as is usual; sums, norms and comparisons are not.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it brings Triton

    values = dict(network.named_parameters()) | dict(network.named_buffers())
    without_data = {name: torch.empty_like(value, device="meta") for name, value in values.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(network, without_data, (image,))
    return counter.get_total_flops() / 1e9


def largest_step(network: nn.Module, image: torch.Tensor) -> int:
    """Values in the input and output together of the layer where these are most, for an image on meta."""
    largest = 0

    def measure(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, sum(value.numel() for value in (*inputs, output) if isinstance(value, torch.Tensor)))

    twin = copy.deepcopy(network).to("meta")
    for layer in twin.modules():
        if not list(layer.children()):
            layer.register_forward_hook(measure)
    with torch.no_grad():
        twin(image)
    return largest
