"""Operations whose order of summation must not depend on which thread comes first."""

import numpy as np
import torch
import torch.nn.functional as F

from vpr.training.losses import select_rows, triplet_violations


def gradients_of_many(count, dim=4096):
    """The loss's gradient by descriptors that tuples share, computed `count` times by two threads."""
    threads, random = torch.get_num_threads(), np.random.default_rng(0)
    descriptors = F.normalize(torch.from_numpy(random.normal(size=(12, dim)).astype(np.float32)), dim=1)
    query, positive = np.array([0, 1, 2, 3]), np.array([4, 4, 4, 5])
    negative, tuple_of_negative = random.integers(4, 12, 40), torch.arange(4).repeat_interleave(10)
    torch.set_num_threads(2)
    try:
        for _ in range(count):
            values = descriptors.clone().requires_grad_()
            rows = (select_rows(values, places) for places in (query, positive, negative))
            triplet_violations(*rows, tuple_of_negative, 3.0)[0].backward()
            yield values.grad
    finally:
        torch.set_num_threads(threads)


def test_the_gradient_of_shared_images_is_the_same_to_the_bit_each_time():
    """With shares of three and more added up in the order in which threads come, tens of these would differ."""
    first, *others = gradients_of_many(60)
    assert first.abs().max() > 0
    assert all(torch.equal(first, other) for other in others)


def test_selected_rows_and_their_gradient_are_those_of_indexing():
    values, rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), np.array([4, 0, 4, 4, 1])
    selected = select_rows(values, rows)
    assert torch.equal(selected, values[rows])
    selected.sum().backward()
    assert values.grad[:, 0].tolist() == [1, 1, 0, 0, 3]
