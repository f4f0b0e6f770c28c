"""The rules of a training: how long, how fast, on which tuples."""

from dataclasses import dataclass

import numpy as np

from vpr.training.optimizers import SCHEDULES


@dataclass(frozen=True)
class TrainingRules:
    """What a training follows; defaults are the paper's.

    Attributes:
        epochs: the last epoch, from 1.
        batch_size: queries in a step.
        refresh_every: queries after which all descriptors are computed anew; 0: once an epoch.
        optimizer: a key of `vpr.training.optimizers.OPTIMIZERS`.
        lr, lr_step, lr_gamma: learning rate, epochs between its drops, factor of each drop.
        weight_decay, momentum: of the optimiser.
        schedule: of the learning rate, a key of `vpr.training.optimizers.SCHEDULES`.
        loss: a key of `vpr.training.objective.OBJECTIVES`.
        margin: of the loss, in squared descriptor distance.
        negatives: hard negatives in a tuple, at most.
        negative_sample: random negatives among which the hard ones are sought.
        eval_every: epochs between validations.
        patience: epochs without a better validation after which training stops; 0: never.
        recall_values: the N of Recall@N that are reported.
        seed: of all random choices.
    """

    epochs: int = 30
    batch_size: int = 4
    refresh_every: int = 1000
    optimizer: str = "SGD"
    lr: float = 1e-3
    lr_step: int = 5
    lr_gamma: float = 0.5
    weight_decay: float = 1e-3
    momentum: float = 0.9
    schedule: str = "step"
    loss: str = "triplet"
    margin: float = 0.1
    negatives: int = 10
    negative_sample: int = 1000
    eval_every: int = 1
    patience: int = 10
    recall_values: tuple[int, ...] = (1, 5, 10, 20)
    seed: int = 123

    def learning_rate(self, epoch: int) -> float:
        """The rate of an epoch (from 1)."""
        return SCHEDULES[self.schedule](epoch, self.lr, self.lr_step, self.lr_gamma)

    def query_blocks(self, usable: np.ndarray, epoch: int) -> list[np.ndarray]:
        """A fresh permutation of the queries, cut where descriptors are refreshed.

        The interval doubles with each drop of the learning rate: the slower the model changes, the longer
        its descriptors stay true (the original release does so).
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(usable)
        if self.refresh_every == 0:
            return [order]
        interval = self.refresh_every * 2 ** ((epoch - 1) // self.lr_step)
        return [order[start : start + interval] for start in range(0, len(order), interval)]
