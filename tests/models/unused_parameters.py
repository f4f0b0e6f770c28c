"""A program for torchrun: three steps of a module of which one layer gets no gradient."""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vpr.common import processes


class HalfUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2, bias=False), nn.Linear(3, 2)

    def forward(self, values):
        return self.used(values)


with processes.process_group():
    torch.manual_seed(0)
    module = HalfUsed()
    parallel = processes.in_parallel(module, unused_parameters=True)
    for step in range(3):
        module.zero_grad()
        parallel(torch.full((1, 3), 1.0 + step + processes.rank())).sum().backward()
        assert module.unused.weight.grad is None
        assert torch.equal(module.used.weight.grad, torch.full((2, 3), 3.0 + 2 * step)), "the sum of both processes"
