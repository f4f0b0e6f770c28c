"""Schedules: how queries become blocks, and how the learning rate falls."""

import numpy as np
import pytest

from vpr.training.rules import TrainingRules

USABLE = np.array([1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233])


def blocks_in(epoch, rate=2, seed=123):
    rules = TrainingRules(seed=seed, refresh_every=rate, lr_step=5)
    return [block.tolist() for block in rules.query_blocks(USABLE, epoch)]


def test_every_usable_query_is_in_an_epoch_exactly_once_in_a_new_order():
    orders = []
    for epoch in range(1, 13):
        order = [query for block in blocks_in(epoch) for query in block]
        assert sorted(order) == USABLE.tolist()
        orders.append(tuple(order))
    assert len(set(orders)) == 12
    assert blocks_in(3) == blocks_in(3) != blocks_in(3, seed=124)


@pytest.mark.parametrize(
    ("epoch", "sizes"), [(1, [2] * 6), (5, [2] * 6), (6, [4] * 3), (10, [4] * 3), (11, [8, 4]), (16, [12])]
)
def test_refresh_interval_doubles_after_every_lr_step(epoch, sizes):
    assert [len(block) for block in blocks_in(epoch)] == sizes


@pytest.mark.parametrize("epoch", [1, 6])
def test_refresh_rate_zero_makes_one_block(epoch):
    (block,) = blocks_in(epoch, rate=0)
    assert sorted(block) == USABLE.tolist()


def test_learning_rate_halves_first_at_epoch_6():
    rules = TrainingRules(lr=0.001, lr_gamma=0.5, lr_step=5)
    rates = [rules.learning_rate(epoch) for epoch in range(1, 17)]
    assert rates == pytest.approx([0.001] * 5 + [0.0005] * 5 + [0.00025] * 5 + [0.000125], rel=1e-12)
