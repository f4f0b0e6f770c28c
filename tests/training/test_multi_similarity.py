"""The multi-similarity loss and its mining: against loops, finite differences and pytorch-metric-learning."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vpr.training.places.multi_similarity import multi_similarity

EPSILON, ALPHA, BETA = 0.1, 1.0, 50.0


def unit(count, dim, seed, spread=1.0):
    """Descriptors of length 1 around a common direction, as those of a network are before it is trained."""
    values = np.random.default_rng(seed).normal(size=(count, dim)) * spread
    values[:, 0] += 1
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def by_loops(descriptors, places):
    """The loss of each anchor and its mined pairs, one after the other."""
    losses, pairs = [], []
    for anchor, own in enumerate(places):
        products = [float(descriptors[anchor] @ other) for other in descriptors]
        same = [n for n, place in enumerate(places) if place == own and n != anchor]
        others = [n for n, place in enumerate(places) if place != own]
        positives = [n for n in same if any(products[n] - EPSILON < products[m] for m in others)]
        negatives = [m for m in others if any(products[m] + EPSILON > products[n] for n in same)]
        pulled = math.log(1 + sum(math.exp(-ALPHA * products[n]) for n in positives)) / ALPHA
        pushed = math.log(1 + sum(math.exp(BETA * products[m]) for m in negatives)) / BETA
        losses.append(pulled + pushed)
        pairs.append({*positives, *negatives})
    return losses, pairs


CASES = [([0, 0, 0, 1, 1, 1, 2, 2, 2], 1), ([3, 1, 3, 1, 7, 7, 1, 3, 0, 0], 2), ([0, 0, 1, 2, 2, 2, 2], 3)]


@pytest.mark.parametrize(("places", "seed"), CASES)
@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_losses_and_pairs_are_those_of_loops(places, seed, spread):
    descriptors = unit(len(places), 6, seed, spread)
    losses, mined = multi_similarity(torch.from_numpy(descriptors), torch.tensor(places))
    wanted, pairs = by_loops(descriptors, places)
    np.testing.assert_allclose(losses.numpy(), wanted, rtol=1e-12)
    assert [set(row.nonzero().flatten().tolist()) for row in mined] == pairs


def test_some_pairs_are_mined_and_some_are_not_in_these_cases():
    counts = [
        (len(pairs), len(places) - 1)
        for places, seed in CASES
        for pairs in by_loops(unit(len(places), 6, seed, 2.0), places)[1]
    ]
    assert any(0 < found < most for found, most in counts) and any(found == 0 for found, _ in counts)


@pytest.mark.parametrize(("places", "seed"), CASES)
def test_the_gradient_agrees_with_finite_differences(places, seed):
    """Only where no pair is about to be mined or left: the loss jumps there."""
    values = unit(len(places), 6, seed, 0.5)
    tensor = torch.tensor(values, requires_grad=True)
    multi_similarity(tensor, torch.tensor(places))[0].sum().backward()
    assert tensor.grad.abs().max() > 0.1
    step = 1e-6
    for at in np.ndindex(values.shape):
        sides = []
        for shift in (step, -step):
            shifted = values.copy()
            shifted[at] += shift
            sides.append(sum(by_loops(shifted, places)[0]))
        assert tensor.grad[at].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-6)


@pytest.mark.parametrize(("places", "seed"), CASES)
@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_values_and_gradients_are_those_of_pytorch_metric_learning(places, seed, spread):
    metric_learning = pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is not installed")
    from pytorch_metric_learning.losses import MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    assert metric_learning.__version__ >= "2"
    labels, found = torch.tensor(places), []
    for ours in (True, False):
        values = torch.tensor(unit(len(places), 64, seed, spread), dtype=torch.float32, requires_grad=True)
        descriptors = F.normalize(values, dim=1)
        if ours:
            loss = multi_similarity(descriptors, labels)[0].mean()
        else:
            pairs = MultiSimilarityMiner(epsilon=EPSILON)(descriptors, labels)
            loss = MultiSimilarityLoss(alpha=ALPHA, beta=BETA, base=0.0)(descriptors, labels, pairs)
        loss.backward()
        found.append((loss.item(), values.grad))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-6)


def test_by_hand_an_image_between_two_places():
    """Images of place 0 at angles 0 and 60 degrees, one of place 1 at 60: of all pairs only that of 0 and 60 is left
    out, being 0.5 + 0.1 below the 1 of the other place's."""
    turn = math.sqrt(3) / 2
    descriptors = torch.tensor([[1.0, 0.0], [0.5, turn], [0.5, turn]], dtype=torch.float64)
    losses, mined = multi_similarity(descriptors, torch.tensor([0, 0, 1]))
    assert mined.tolist() == [[False, True, True], [True, False, True], [False, False, False]]
    pulled = math.log(1 + math.exp(-0.5))
    wanted = [pulled + math.log(1 + math.exp(25)) / 50, pulled + math.log(1 + math.exp(50)) / 50, 0]
    np.testing.assert_allclose(losses.numpy(), wanted, rtol=1e-12)


def test_places_that_lie_apart_mine_nothing_and_cost_nothing():
    """Cosine 1 within a place, 0.9 - 1e-6 between the two: out of reach of epsilon; a trifle nearer all is mined."""
    for cosine, mines in ((0.9 - 1e-6, False), (0.9 + 1e-6, True)):
        rows = [[1.0, 0.0], [1.0, 0.0], *[[cosine, math.sqrt(1 - cosine**2)]] * 2]
        descriptors = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
        losses, mined = multi_similarity(descriptors, torch.tensor([0, 0, 1, 1]))
        losses.mean().backward()
        assert (mined.sum().item(), bool((losses > 0).all()), bool(descriptors.grad.any())) == (
            12 * mines,
            mines,
            mines,
        )


@pytest.mark.parametrize("places", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_one_place_or_no_place_twice_mines_nothing(places):
    descriptors = torch.tensor(unit(4, 5, 0), requires_grad=True)
    losses, mined = multi_similarity(descriptors, torch.tensor(places))
    losses.sum().backward()
    assert not losses.any() and not mined.any() and descriptors.grad.isfinite().all() and not descriptors.grad.any()
