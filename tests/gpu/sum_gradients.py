"""A program for torchrun with one process: gradients by `with_summed_gradients` are those of a plain backward pass.

    torchrun --nproc_per_node=1 sum_gradients.py cuda

On a GPU they go through nccl. Prints OK.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vpr.common.device import choose_device
from vpr.common.processes import with_summed_gradients


class Partly(nn.Module):
    """Two convolutions, one of which takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.used(images).flatten(1)


def gradients(module: nn.Module, images: torch.Tensor, network: nn.Module) -> list[torch.Tensor | None]:
    network.zero_grad()
    module(images).square().sum().backward()
    return [None if value.grad is None else value.grad.clone() for value in network.parameters()]


def main(name: str) -> None:
    device = choose_device(name)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)
    network, images = Partly().to(device), torch.rand(2, 3, 16, 16, device=device)
    parallel = with_summed_gradients(network, unused_parameters=True)
    for _ in range(3):
        wanted = gradients(network, images, network)
        found = gradients(parallel, images, network)
        assert [value is None for value in found] == [False, False, True, True]
        for one, other in zip(found[:2], wanted[:2], strict=True):
            torch.testing.assert_close(one, other)
    dist.destroy_process_group()
    print("OK")


if __name__ == "__main__":
    main(*sys.argv[1:])
