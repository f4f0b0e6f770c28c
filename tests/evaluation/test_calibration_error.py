"""Expected calibration error: cases by hand, and predictors of known truth."""

import numpy as np
import pytest

from vpr.evaluation.calibration_error import reliability


def test_bins_have_equal_counts_and_their_means():
    probabilities = np.array([0.9, 0.1, 0.2, 0.8, 0.3, 0.7])
    table = reliability(probabilities, np.array([1, 0, 0, 1, 1, 0], bool), 3)
    assert table.counts.tolist() == [2, 2, 2]
    np.testing.assert_allclose(table.predicted, [0.15, 0.5, 0.85])
    np.testing.assert_allclose(table.happened, [0, 0.5, 1])
    assert table.error == pytest.approx((0.15 + 0 + 0.15) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_equal_probabilities_stay_in_one_bin_whatever_their_order(seed):
    random = np.random.default_rng(seed)
    probabilities, order = np.repeat([0.2, 0.6], [70, 30]), random.permutation(100)
    right = random.random(100) < probabilities
    table = reliability(probabilities[order], right[order], 10)
    assert table.counts.tolist() == [70, 30]
    np.testing.assert_allclose(table.happened, [right[:70].mean(), right[70:].mean()])


RARE, RANDOM = np.arange(200) < 60, np.random.default_rng(3)
TRUTH = RANDOM.random(100_000)


@pytest.mark.parametrize(
    ("probabilities", "right", "error", "bins"),
    [
        (np.full(200, 0.9), RARE, pytest.approx(0.6), 1),  # the distance to the share of right ones
        (RARE.astype(float), RARE, 0, 2),
        (1 - RARE.astype(float), RARE, pytest.approx(1), 2),
        (TRUTH, RANDOM.random(100_000) < TRUTH, pytest.approx(0, abs=0.01), 15),
    ],
    ids=["constant", "certain and true", "certain and false", "perfect"],
)
def test_predictors_of_known_truth(probabilities, right, error, bins):
    table = reliability(probabilities, right)
    assert table.error == error and len(table.counts) == bins and table.queries == len(right)


@pytest.mark.parametrize(("queries", "bins"), [(3, 1), (49, 1), (50, 2), (130, 5), (260, 10), (100_000, 15)])
def test_bins_by_the_number_of_queries(queries, bins):
    assert len(reliability(np.linspace(0, 1, queries), np.ones(queries, bool)).counts) == bins


def test_no_queries_have_no_table():
    with pytest.raises(ValueError, match="no queries"):
        reliability(np.empty(0), np.empty(0, bool))
