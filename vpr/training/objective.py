"""What a training learns from: which images are a batch, and the loss of their descriptors.

An objective is a class in a file of its own and a line in `vpr.training.choices.OBJECTIVES`, by its name (--loss).
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vpr.training.choices import OBJECTIVES

if TYPE_CHECKING:
    import torch

    from vpr.descriptors.describe import Source
    from vpr.training.rules import TrainingRules
    from vpr.training.state import TrainingState
    from vpr.training.training_set import TrainingSet


@dataclass(frozen=True)
class Block:
    """Batches between two checkpoints."""

    label: str  # for progress
    # This process's share of each. Its `images` are described together: indices into the split's files, the database's
    # then the queries', each once.
    batches: Sequence[Any]
    # Of each whole batch, in `unit`; a process whose rank is not below it has no share and takes another's.
    sizes: list[int]
    described: int  # images that go through the model for it, each time they do
    unit: str = "tuples"
    share: tuple[float, float] = (0.0, 1.0)  # of the epoch done before it and after it, for rates that fall by step


class Loss(NamedTuple):
    """The loss of a batch, of one process."""

    sum: "torch.Tensor"
    terms: int  # of how many
    figures: Mapping[str, float] = MappingProxyType({})  # by column of metrics.csv, sums whose means are over the terms


class Objective(Protocol):
    """How descriptors are to become better."""

    def batches(self, state: "TrainingState", epoch: int) -> Iterator[Block]:
        """The blocks of an epoch (from 1) that the state's position leaves, each made when the one before is done."""

    def sample(self, state: "TrainingState", count: int, label: str) -> Block:
        """A block of at most `count` training examples; without batches where nothing is left to learn."""

    def loss(self, descriptors: "torch.Tensor", batch: Any) -> tuple[Any, ...]:
        """The loss of a batch whose images have the descriptors [B, dim], as `Loss` has it, or its first two fields."""


def objective_of(
    rules: "TrainingRules", training: "TrainingSet", source: "Source", batch_size: int | None = None
) -> Objective:
    """The objective of the rules' loss.

    Args:
        source: of the training images.
        batch_size: images described at once outside of steps; 0: as many as memory holds.
    """
    module, _, name = OBJECTIVES[rules.loss].partition(":")
    made: Objective = getattr(importlib.import_module(module), name)(rules, training, source, batch_size)
    return made
