"""The loss against hand-worked values, loops and finite differences."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_mining import squared_distance

from vpr.training.losses import LOSSES, triplet_violations
from vpr.training.tuples import TrainingTuple, TupleBatch

ROOT = Path(__file__).resolve().parents[2]


def doubles(rows):
    return torch.tensor(rows, dtype=torch.float64)


def triplet_loss(*arguments):
    """The loss that a step takes: the mean over the violating pairs."""
    violation, violating = triplet_violations(*arguments)
    return violation / max(violating, 1), violating


# d^2 to the positives: 1 and 0.25. Violations with margin 0.1: 0.1, none (4), 0.31 (0.04).
QUERIES, POSITIVES = doubles([[0, 0], [1, 1]]), doubles([[1, 0], [1, 1.5]])
NEGATIVES, TUPLE_OF_NEGATIVE = doubles([[0, 1], [2, 0], [1, 1.2]]), torch.tensor([0, 0, 1])


def test_loss_is_the_mean_over_violating_pairs_only():
    loss, violating = triplet_loss(QUERIES, POSITIVES, NEGATIVES, TUPLE_OF_NEGATIVE, 0.1)
    assert violating == 2
    assert loss.item() == pytest.approx((0.1 + 0.31) / 2, abs=1e-12)


def test_pairs_that_do_not_violate_leave_loss_and_gradient_alone():
    far = doubles([[100, 0], [0, 100], [-50, 0]])
    query = QUERIES.clone().requires_grad_()
    few, _ = triplet_loss(query, POSITIVES, NEGATIVES, TUPLE_OF_NEGATIVE, 0.1)
    (few_gradient,) = torch.autograd.grad(few, query)
    tuple_of_negative = torch.cat([TUPLE_OF_NEGATIVE, torch.tensor([0, 1, 1])])
    many, violating = triplet_loss(query, POSITIVES, torch.cat([NEGATIVES, far]), tuple_of_negative, 0.1)
    (many_gradient,) = torch.autograd.grad(many, query)
    assert violating == 2 and few.item() == many.item()
    torch.testing.assert_close(many_gradient, few_gradient, rtol=0, atol=0)


def test_loss_is_zero_where_no_pair_violates():
    query = QUERIES.clone().requires_grad_()
    loss, violating = triplet_loss(query, QUERIES, NEGATIVES + 10, TUPLE_OF_NEGATIVE, 0.1)
    assert loss.item() == 0 and violating == 0
    loss.backward()
    assert query.grad.abs().max() == 0


def test_pair_exactly_on_the_margin_does_not_violate():
    loss, violating = triplet_loss(doubles([[0]]), doubles([[1]]), doubles([[1.5]]), torch.tensor([0]), 1.25)
    assert loss.item() == 0 and violating == 0


def violations_by_loops(queries, positives, negatives, tuple_of_negative, margin):
    violations = (
        squared_distance(queries[item], positives[item]) + margin - squared_distance(queries[item], negative)
        for negative, item in zip(negatives, tuple_of_negative, strict=True)
    )
    return [violation for violation in violations if violation > 0]


def loss_by_loops(*arguments):
    violations = violations_by_loops(*arguments)
    return sum(violations) / len(violations)


def test_loss_gradient_agrees_with_finite_differences():
    random = np.random.default_rng(3)
    arrays = [random.normal(size=(rows, 3)) for rows in (3, 3, 8)]
    tuple_of_negative = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    loss, violating = triplet_loss(*tensors, torch.tensor(tuple_of_negative), 0.1)
    assert 0 < violating < 8
    assert loss.item() == pytest.approx(loss_by_loops(*arrays, tuple_of_negative, 0.1), abs=1e-12)
    loss.backward()
    step = 1e-6
    for array, tensor in zip(arrays, tensors, strict=True):
        for at in np.ndindex(array.shape):
            value, sides = array[at], []
            for shifted in (value + step, value - step):
                array[at] = shifted
                sides.append(loss_by_loops(*arrays, tuple_of_negative, 0.1))
            array[at] = value
            assert tensor.grad[at].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-7)


def test_tables_are_read_without_torch():
    program = (
        "import sys; from vpr.training.losses import LOSSES; from vpr.training.choices import OBJECTIVES; "
        "print('triplet' in LOSSES and 'triplet' in OBJECTIVES, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_the_loss_of_a_batch_is_that_of_its_tuples_pair_by_pair():
    """Tuples that share images, in other roles; against a loop over pairs."""
    random = np.random.default_rng(6)
    descriptors = random.normal(size=(14, 5))
    tuples = [
        TrainingTuple(query=2, positive=5, negatives=np.array([9, 1, 7])),
        TrainingTuple(query=0, positive=7, negatives=np.array([5])),
    ]
    batch = TupleBatch.of(tuples, 10)
    found, count = LOSSES["triplet"](torch.from_numpy(descriptors[batch.images]), batch, 2.0)
    queries, positives = [10 + item.query for item in tuples], [item.positive for item in tuples]
    negatives, tuple_of_negative = np.concatenate([item.negatives for item in tuples]), [0, 0, 0, 1]
    arrays = [descriptors[rows] for rows in (queries, positives, negatives)]
    violations = violations_by_loops(*arrays, tuple_of_negative, 2.0)
    assert 0 < len(violations) == count < 4
    assert found.item() == pytest.approx(sum(violations), rel=1e-12)
