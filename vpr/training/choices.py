"""Objectives, optimisers and schedules of the learning rate, by name (--loss, --optim, --schedule).

The command line reads the tables, and does not wait for torch.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from vpr.training.losses import LOSSES

if TYPE_CHECKING:
    import torch

    Parameters = Iterable[torch.nn.Parameter]


def sgd(parameters: "Parameters", lr: float, weight_decay: float, momentum: float) -> "torch.optim.Optimizer":
    """Stochastic gradient descent with momentum, the paper's."""
    import torch

    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def adam(parameters: "Parameters", lr: float, weight_decay: float, momentum: float) -> "torch.optim.Optimizer":
    """Adam, whose weight decay is part of the gradient; it has moments of its own in place of `momentum`."""
    import torch

    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)


def step(epoch: int, lr: float, lr_step: int, lr_gamma: float) -> float:
    """The rate of an epoch (from 1): multiplied by lr_gamma every lr_step epochs, as in the paper."""
    return lr * lr_gamma ** ((epoch - 1) // lr_step)


# See `vpr.training.objective`. Losses of tuples share one.
OBJECTIVES = dict.fromkeys(LOSSES, "vpr.training.triplets:Triplets")
OPTIMIZERS: "dict[str, Callable[[Parameters, float, float, float], torch.optim.Optimizer]]" = {"SGD": sgd, "ADAM": adam}
SCHEDULES: dict[str, Callable[[int, float, int, float], float]] = {"step": step}
