"""Precision and recall over a threshold: cases by hand, a literal loop, and scikit-learn's average precision."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vpr.evaluation.precision_recall import precision_recall


def by_loop(scores, right, answerable):
    """A point for each score that occurs: threshold, answered, precision, recall."""
    points = []
    for threshold in sorted({score for score in scores if score == score}, reverse=True):
        answered = [n for n, score in enumerate(scores) if score >= threshold]
        hits = sum(1 for n in answered if right[n])
        points.append((threshold, len(answered), hits / len(answered), hits / sum(answerable)))
    return points


def curve_of(scores, right, answerable=None):
    right = np.array(right, bool)
    answerable = np.ones(len(right), bool) if answerable is None else np.array(answerable, bool)
    return precision_recall(np.array(scores, float), right, answerable)


def test_a_hand_made_ranking():
    #             right  wrong  right  unmatched  right  wrong
    curve = curve_of([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 0, 1, 0, 1, 0], [1, 1, 1, 0, 1, 1])
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3, 2 / 4, 3 / 5, 3 / 6])
    np.testing.assert_allclose(curve.recall, [1 / 5, 1 / 5, 2 / 5, 2 / 5, 3 / 5, 3 / 5])
    assert curve.area == pytest.approx((1 + 2 / 3 + 3 / 5) / 5)
    assert curve.recall_at_precision(1) == (pytest.approx(1 / 5), 0.9)
    assert curve.recall_at_precision(0.6) == (pytest.approx(3 / 5), 0.5)


def test_unmatched_queries_cost_precision_and_no_recall():
    with_them = curve_of([3, 2, 1], [0, 1, 1], [0, 1, 1])
    np.testing.assert_allclose(with_them.precision, [0, 1 / 2, 2 / 3])
    np.testing.assert_allclose(with_them.recall, [0, 1 / 2, 1])
    assert with_them.recall_at_precision(1) == (0, float("inf"))


def test_equal_scores_are_answered_together():
    curve = curve_of([0.5, 0.5, 0.5, 0.1], [1, 0, 1, 1])
    assert curve.thresholds.tolist() == [0.5, 0.1] and curve.answered.tolist() == [3, 4]
    assert curve.recall_at_precision(1)[0] == 0, "no threshold lets the two right ones through alone"
    for order in ([1, 0, 2, 3], [2, 1, 0, 3]):
        again = curve_of([0.5, 0.5, 0.5, 0.1], np.array([1, 0, 1, 1])[order])
        assert again.area == curve.area


def test_the_threshold_of_equal_recalls_is_the_strictest():
    curve = curve_of([5, 4, 3, 2], [1, 1, 0, 0])
    assert curve.recall_at_precision(0.5) == (0.5, 4.0)


@pytest.mark.parametrize("seed", range(5))
def test_against_a_literal_loop_and_scikit_learn(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 12, 60) / 12
    answerable = random.random(60) < 0.8
    right = answerable & (random.random(60) < 0.3 + 0.6 * scores)
    scores[random.random(60) < 0.1] = np.nan
    curve = precision_recall(scores, right, answerable)
    found = np.stack([curve.thresholds, curve.answered, curve.precision, curve.recall], axis=1)
    np.testing.assert_allclose(found, by_loop(scores, right, answerable))
    known = ~np.isnan(scores)
    # scikit-learn's recall is among the right first hits; ours is among all answerable queries.
    wanted = average_precision_score(right[known], scores[known]) * right[known].sum() / answerable.sum()
    assert curve.area == pytest.approx(wanted)
    for precision in (1, 0.99, 0.7):
        best = max(
            [recall for _, _, found, recall in by_loop(scores, right, answerable) if found >= precision], default=0
        )
        assert curve.recall_at_precision(precision)[0] == pytest.approx(best)


def test_precision_of_exactly_99_percent_counts():
    curve = curve_of(np.arange(100, 0, -1), [1] * 98 + [0] + [1])
    assert curve.recall_at_precision(0.99) == (pytest.approx(0.99), 1.0), "99 of 100"


def test_queries_that_are_never_answered():
    curve = curve_of([np.nan, np.nan], [1, 0])
    assert len(curve.thresholds) == 0 and curve.area == 0 and curve.recall_at_precision(1)[0] == 0
    none = curve_of([0.3, 0.2], [0, 0], [0, 0])
    assert np.isnan(none.area) and none.recall_at_precision(1) == (0, float("inf"))
