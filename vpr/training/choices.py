"""Objectives, optimisers and schedules of the learning rate, by name (--loss, --optim, --schedule).

The command line reads the tables, and does not wait for torch.
"""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vpr.training.losses import LOSSES

if TYPE_CHECKING:
    import torch

    Parameters = Iterable[dict[str, Any]]  # groups, as optimisers take them


def sgd(parameters: "Parameters", lr: float, weight_decay: float, momentum: float) -> "torch.optim.Optimizer":
    """Stochastic gradient descent with momentum, the paper's."""
    import torch

    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def adam(parameters: "Parameters", lr: float, weight_decay: float, momentum: float) -> "torch.optim.Optimizer":
    """Adam, whose weight decay is part of the gradient; it has moments of its own in place of `momentum`."""
    import torch

    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)


def adamw(parameters: "Parameters", lr: float, weight_decay: float, momentum: float) -> "torch.optim.Optimizer":
    """Adam whose weight decay is apart from the gradient (Loshchilov and Hutter, 2019)."""
    import torch

    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


def step(epoch: float, lr: float, lr_step: int, lr_gamma: float, epochs: int) -> float:
    """The rate in an epoch (from 1): multiplied by lr_gamma every lr_step epochs, as in the paper."""
    return lr * lr_gamma ** ((int(epoch) - 1) // lr_step)


def linear(epoch: float, lr: float, lr_step: int, lr_gamma: float, epochs: int) -> float:
    """The rate at a step, of which epoch 1.5 is the middle one of the first epoch: falls to LEAST at the end."""
    return lr * (1 - (1 - LEAST) * (epoch - 1) / epochs)


def cosine(epoch: float, lr: float, lr_step: int, lr_gamma: float, epochs: int) -> float:
    """As `linear`, along half a cosine to 0 (Loshchilov and Hutter, 2017)."""
    return lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


LEAST = 0.2  # of the rate, at the end of `linear`
BY_PLACE = "multi-similarity"  # the loss whose objective takes places, and no queries
# Where places do not come from positions, and which flags are not read then.
UNREAD = {
    "placeFolders": ("placeDistance", "placeHeadings", "walk"),
    "walk": ("placeDistance", "placeRadius", "placeHeadings"),
}
BY_TEACHER = "distill"  # that whose objective takes another model, and neither
# Flags that only batches of places read, only triplets, and only what has a teacher.
OF_PLACES = (
    "imagesPerPlace", "placeDistance", "placeRadius", "placeHeadings", "hardEvery", "alike", "views", "cachedViews",
    *UNREAD,
)  # fmt: skip
OF_TRIPLETS = ("margin", "nNeg", "nNegSample", "cacheRefreshRate")
OF_TEACHERS = ("teacher",)
# See `vpr.training.objective`. Losses of tuples share one.
OBJECTIVES = {
    **dict.fromkeys(LOSSES, "vpr.training.triplets:Triplets"),
    BY_PLACE: "vpr.training.place_batches:PlaceBatches",
    BY_TEACHER: "vpr.training.distilling:Distilling",
}
OPTIMIZERS: "dict[str, Callable[[Parameters, float, float, float], torch.optim.Optimizer]]" = {
    "SGD": sgd, "ADAM": adam, "ADAMW": adamw
}  # fmt: skip
SCHEDULES: dict[str, Callable[[float, float, int, float, int], float]] = {
    "step": step, "linear": linear, "cosine": cosine
}  # fmt: skip
