"""Expected calibration error: cases by hand, and predictors of known truth."""

import numpy as np
import pytest

from vpr.evaluation.calibration_error import bins_for, reliability


def test_bins_have_equal_counts_and_their_means():
    probabilities = np.array([0.9, 0.1, 0.2, 0.8, 0.3, 0.7])
    right = np.array([1, 0, 0, 1, 1, 0], bool)
    table = reliability(probabilities, right, 3)
    assert table.counts.tolist() == [2, 2, 2]
    np.testing.assert_allclose(table.predicted, [0.15, 0.5, 0.85])
    np.testing.assert_allclose(table.happened, [0, 0.5, 1])
    assert table.error == pytest.approx((0.15 + 0 + 0.15) / 3)


def test_equal_probabilities_stay_in_one_bin_whatever_their_order():
    random = np.random.default_rng(0)
    probabilities = np.repeat([0.2, 0.6], [70, 30])
    right = random.random(100) < probabilities
    tables = []
    for _ in range(3):
        order = random.permutation(100)
        tables.append(reliability(probabilities[order], right[order], 10))
    for table in tables:
        assert table.counts.tolist() == [70, 30]
        np.testing.assert_allclose(table.happened, [right[:70].mean(), right[70:].mean()])


def test_a_constant_predictor_errs_by_the_distance_to_the_share_of_right_ones():
    right = np.arange(200) < 60
    table = reliability(np.full(200, 0.9), right)
    assert len(table.counts) == 1 and table.error == pytest.approx(0.6)


def test_certain_and_true_is_no_error():
    right = np.arange(100) < 40
    assert reliability(right.astype(float), right).error == 0
    assert reliability(1 - right.astype(float), right).error == pytest.approx(1)


def test_many_queries_show_that_a_perfect_predictor_is_perfect():
    random = np.random.default_rng(3)
    truth = random.random(100_000)
    assert reliability(truth, random.random(100_000) < truth).error < 0.01


@pytest.mark.parametrize(("queries", "bins"), [(3, 1), (49, 1), (50, 2), (130, 5), (260, 10), (100_000, 15)])
def test_bins_by_the_number_of_queries(queries, bins):
    assert bins_for(queries) == bins


def test_no_queries_have_no_table():
    with pytest.raises(ValueError, match="no queries"):
        reliability(np.empty(0), np.empty(0, bool))
