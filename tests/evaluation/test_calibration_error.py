"""Expected calibration error: closed forms, the drawing that one replaces, and predictors of known truth."""

import math

import numpy as np
import pytest

from vpr.evaluation.calibration_error import (
    Reliability,
    bins_for,
    error_by_chance,
    mean_of_folded_normal,
    reliability,
)


def test_bins_have_equal_counts_and_their_means():
    probabilities = np.array([0.9, 0.1, 0.2, 0.8, 0.3, 0.7])
    right = np.array([1, 0, 0, 1, 1, 0], bool)
    table = reliability(probabilities, right, 3)
    assert table.counts.tolist() == [2, 2, 2]
    np.testing.assert_allclose(table.predicted, [0.15, 0.5, 0.85])
    np.testing.assert_allclose(table.happened, [0, 0.5, 1])
    assert table.plain_error == pytest.approx((0.15 + 0 + 0.15) / 3)


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
    assert len(table.counts) == 1 and table.plain_error == pytest.approx(0.6)
    assert table.error == pytest.approx(0.6, abs=1e-6), "chance has no part in so large a gap"


def test_certain_and_true_is_no_error():
    right = np.arange(100) < 40
    assert reliability(right.astype(float), right).error == 0
    assert reliability(1 - right.astype(float), right).error == pytest.approx(1)


def test_the_mean_of_the_folded_normal_is_that_of_drawn_ones():
    random = np.random.default_rng(0)
    for mean, deviation in ((0, 1), (0.3, 0.1), (-0.2, 0.4)):
        drawn = np.abs(random.normal(mean, deviation, 400_000)).mean()
        assert mean_of_folded_normal(mean, deviation) == pytest.approx(drawn, rel=5e-3)
    assert mean_of_folded_normal(0, 2) == pytest.approx(2 * math.sqrt(2 / math.pi))
    assert mean_of_folded_normal(-0.5, 0) == 0.5


def test_the_error_is_what_drawing_shares_gives():
    """As in the authors' text: twice the plain error less the mean plain error of drawn shares."""
    table = Reliability(np.array([20, 20, 20]), np.array([0.2, 0.5, 0.8]), np.array([0.35, 0.45, 0.95]))
    random = np.random.default_rng(1)
    deviations = np.sqrt(table.happened * (1 - table.happened) / 20)
    drawn = random.normal(table.happened, deviations, (200_000, 3))
    wanted = 2 * table.plain_error - np.abs(drawn - table.predicted).mean()
    assert table.error == pytest.approx(wanted, abs=1e-3)


def test_less_bias_than_the_plain_estimate():
    """Of a perfect predictor the error is 0; of one that is 0.2 too sure everywhere it is 0.2."""
    random = np.random.default_rng(2)
    truth = random.uniform(0.1, 0.7, 250)
    for shift in (0.0, 0.2):
        tables = [reliability(truth + shift, random.random(250) < truth) for _ in range(200)]
        plain, debiased = (np.mean([getattr(table, name) for table in tables]) for name in ("plain_error", "error"))
        assert abs(debiased - shift) < 0.05 and debiased < plain
        if not shift:
            assert plain > 0.05 and debiased < 0.75 * plain


def test_many_queries_show_that_a_perfect_predictor_is_perfect():
    random = np.random.default_rng(3)
    truth = random.random(100_000)
    assert reliability(truth, random.random(100_000) < truth).error < 0.005


def test_error_by_chance_is_that_of_perfect_predictors():
    random = np.random.default_rng(4)
    probabilities = random.random(130)
    mean, deviation = error_by_chance(probabilities, draws=400)
    apart = [reliability(probabilities, random.random(130) < probabilities).error for _ in range(400)]
    assert mean == pytest.approx(np.mean(apart), abs=0.006) and deviation == pytest.approx(np.std(apart), abs=0.006)
    assert error_by_chance(np.repeat([0.0, 1.0], 50)) == (0, 0), "certain predictors leave nothing to chance"


@pytest.mark.parametrize(("queries", "bins"), [(3, 1), (49, 1), (50, 2), (130, 5), (260, 10), (100_000, 15)])
def test_bins_by_the_number_of_queries(queries, bins):
    assert bins_for(queries) == bins


def test_no_queries_have_no_table():
    with pytest.raises(ValueError, match="no queries"):
        reliability(np.empty(0), np.empty(0, bool))
