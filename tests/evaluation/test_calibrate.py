"""Learning probabilities: synthetic answers of known truth, cross-validation that leaks nothing, and refusals."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from vpr.common.errors import UserError
from vpr.evaluation.calibrate import FEWEST_QUERIES, fit, learn_calibration, place_groups, slope_of
from vpr.evaluation.calibration_error import reliability
from vpr.evaluation.judging import judge_answers
from vpr.retrieval.answer_features import Answers
from vpr.retrieval.calibration import Calibration
from vpr.retrieval.ranking import Ranking

POSITIONS = np.array([[0.0, 0], [500, 0]])


def synthetic(count, seed=0):
    """Answers of two hits, 500 m apart; agreeing matches alone say how probable it is that the first is right."""
    random = np.random.default_rng(seed)
    agreeing = random.normal(0, 1, count)  # the logarithm of 1 + their number
    truth = 1 / (1 + np.exp(-(0.4 + 1.5 * agreeing)))
    found = np.tile([0, 1], (count, 1))
    distances = np.sort(random.uniform(0.5, 1.2, (count, 2)), axis=1)
    scores = np.tile([1.0, 0.5], (count, 1))
    answers = Answers(found, distances, POSITIONS, scores, np.expm1(np.stack([agreeing, agreeing], axis=1)))
    return answers, random.random(count) < truth, truth


def test_known_probabilities_are_learnt():
    answers, right, _ = synthetic(4000)
    fresh, happened, truth = synthetic(4000, seed=1)
    learnt = fit(answers, right).probability(fresh)
    assert np.abs(learnt - truth).mean() < 0.02
    assert reliability(learnt, happened).error < 0.03


def test_a_hundred_queries_are_about_right():
    errors, (fresh, _, truth) = [], synthetic(2000, 100)
    for seed in range(10):
        answers, right, _ = synthetic(100, seed)
        errors.append(np.abs(fit(answers, right).probability(fresh) - truth).mean())
    assert np.mean(errors) < 0.08


def test_features_that_are_missing_or_constant_are_left_out():
    answers, right, _ = synthetic(300)
    names = fit(answers, right).names
    assert "agreeing" in names and "lead" not in names, "it is always 0.5"
    unranked = dataclasses.replace(answers, scores=None, agreeing=None)
    assert fit(unranked, right).names == ("lead", "similarity", "spread")
    nowhere = dataclasses.replace(answers, positions=np.full((2, 2), np.nan))
    assert "spread" not in fit(nowhere, right).names


def test_an_answer_without_one_of_the_features_has_no_probability():
    answers, right, _ = synthetic(300)
    distances = answers.distances.copy()
    distances[5] = np.nan
    found = fit(answers, right).probability(dataclasses.replace(answers, distances=distances))
    assert np.flatnonzero(np.isnan(found)).tolist() == [5]
    assert np.isnan(fit(answers, right).probability(dataclasses.replace(answers, agreeing=None))).all()


def test_a_probability_is_the_logistic_function_of_standardised_features():
    answers, _, _ = synthetic(20)
    calibration = Calibration(("agreeing",), np.array([0.3]), np.array([2.0]), np.array([1.7]), -0.2, 1.0)
    wanted = 1 / (1 + np.exp(-(-0.2 + 1.7 * (np.log1p(answers.agreeing[:, 0]) - 0.3) / 2)))
    np.testing.assert_allclose(calibration.probability(answers), wanted)
    steep = dataclasses.replace(calibration, weights=np.array([1e6]))
    assert set(np.round(steep.probability(answers), 6)) <= {0.0, 1.0}, "nothing overflows"


def test_cross_validation_says_of_each_query_what_was_learnt_at_other_places(monkeypatch):
    answers, right, _ = synthetic(400)
    groups, taken = np.random.default_rng(5).integers(0, 90, 400), []

    only = Answers.only

    def recorded(all_answers, rows):
        taken.append(rows)
        return only(all_answers, rows)

    monkeypatch.setattr(Answers, "only", recorded)
    _, held_out, _ = learn_calibration(answers, right, groups)
    folds = list(zip(taken[:10:2], taken[1:10:2], strict=True))
    assert sorted(np.concatenate([out for _, out in folds])) == list(range(400))
    for fitted, left_out in folds:
        assert not set(groups[fitted]) & set(groups[left_out])
        alone = fit(only(answers, fitted), right[fitted])
        np.testing.assert_array_equal(held_out[left_out], alone.probability(only(answers, left_out)))
    assert reliability(held_out, right).error < 0.08


def test_noise_is_not_learnt():
    """With labels that nothing tells apart, what is held out says the base rate, not the labels."""
    answers, _, _ = synthetic(200)
    right = np.random.default_rng(9).random(200) < 0.6
    _, held_out, _ = learn_calibration(answers, right, np.arange(200))
    assert np.abs(held_out - 0.6).mean() < 0.12


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (np.arange(49) % 2 == 0, ["found 49 queries", f"at least {FEWEST_QUERIES}"]),
        (np.arange(60) >= 0, ["0 of 60 first hits are wrong"]),
        (np.arange(60) < 4, ["4 of 60 first hits are right"]),
    ],
)
def test_too_few_queries_are_refused_in_a_line(right, said):
    answers, _, _ = synthetic(len(right))
    with pytest.raises(UserError) as refused:
        learn_calibration(answers, right, np.arange(len(right)))
    assert all(part in str(refused.value) for part in said) and "\n" not in str(refused.value)


def test_answers_without_features_are_refused():
    answers, right, _ = synthetic(60)
    bare = Answers(answers.found, np.full((60, 2), np.nan), np.full((2, 2), np.nan))
    with pytest.raises(UserError, match="no feature"):
        learn_calibration(bare, right, np.arange(60))


def test_the_slope_follows_the_scale_of_the_distances():
    random = np.random.default_rng(0)
    distances = np.sort(random.uniform(0.5, 1.2, (50, 12)), axis=1)
    gaps = sorted(row[9] ** 2 - row[0] ** 2 for row in distances.tolist())
    assert slope_of(distances) == pytest.approx(7 / ((gaps[24] + gaps[25]) / 2))
    assert slope_of(0.1 * distances) == pytest.approx(100 * slope_of(distances))
    assert slope_of(np.full((5, 3), np.nan)) == slope_of(np.ones((5, 3))) == 350


def test_queries_of_one_square_are_one_group():
    places = [(1, 2), (24, 24), (26, 2), (1, -2), (900, 901), (60, 60), (np.nan, np.nan), (np.nan, 3)]
    groups = place_groups(np.array(places, float))
    assert groups[0] == groups[1] and len(set(groups.tolist())) == 7
    assert len(set(place_groups(np.array(places[:4], float)).tolist())) == 4, "too few squares to make folds of"


def test_rows_are_taken_of_all_that_an_answer_has():
    answers, _, _ = synthetic(10)
    answers = dataclasses.replace(answers, sequence=np.arange(10.0)[:, None], frames=np.arange(10))
    some = answers.only(np.array([7, 2]))
    assert some.sequence.tolist() == [[7], [2]] and some.positions is answers.positions
    assert some.frames.tolist() == [7, 2]
    for name in ("found", "distances", "scores", "agreeing"):
        np.testing.assert_array_equal(getattr(some, name), getattr(answers, name)[[7, 2]])


def test_what_is_left_without_its_places_is_judged_by_what_was_learnt_at_other_places():
    answers, right, _ = synthetic(400)
    groups = np.arange(400) // 4
    _, held_out, unknown = learn_calibration(answers, right, groups, answers)
    assert np.isfinite(held_out).all() and np.array_equal(held_out, unknown), "the same answers are judged alike"
    poorer = dataclasses.replace(answers, agreeing=np.zeros((400, 2)))
    _, again, lower = learn_calibration(answers, right, groups, poorer)
    assert np.array_equal(again, held_out)
    assert ((lower < held_out) == (answers.agreeing[:, 0] > 0)).all()
    assert np.isnan(learn_calibration(answers, right, groups)[2]).all()


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_wrong_answers_of_a_place_without_which_nothing_is_learnt_are_not_forgotten(monkeypatch, rate):
    """All wrong answers are of one place: without it there is nothing to learn, and none of them has a probability."""
    answers, _, _ = synthetic(300)
    groups = np.arange(300) // 60
    right = groups != 2  # a fifth is wrong
    judged = judged_by(monkeypatch, answers, right, groups, answers)
    guarantee, learnt = judged.learnt.guarantee, judged.learnt.calibration
    assert judged.failure is None and np.isnan(judged.certainty.scores.values[~right]).all()
    given = learnt.probability(answers) >= guarantee.threshold(rate)
    assert (given & ~right).mean() <= rate and (guarantee.threshold(rate) < np.inf) == (rate > 0.2)


def test_they_count_beside_those_of_other_places(monkeypatch):
    """All right answers are of one place, with some wrong ones: these may all be given, and leave room for fewer."""
    answers, _, _ = synthetic(300)
    groups = np.arange(300) // 60
    place = groups == 2
    right = place & (np.arange(300) % 2 == 0)
    nowhere = dataclasses.replace(answers, found=np.full((300, 2), -1))  # nothing is left to be answered
    guarantee = judged_by(monkeypatch, answers, right, groups, nowhere).learnt.guarantee
    threshold = guarantee.threshold(0.25)
    given = (guarantee.confidences >= threshold) | place
    assert threshold < np.inf and (given & ~right).mean() <= 0.25
    assert (given & ~right & ~place).sum() > 20, "and the bound is used"


def judged_by(monkeypatch, answers, right, groups, others):
    """A calibration learnt of answers, by the numbers of their places."""
    monkeypatch.setattr("vpr.evaluation.judging.place_groups", lambda _: groups)
    monkeypatch.setattr("vpr.evaluation.judging.learnt_on", lambda _: None)
    monkeypatch.setattr("vpr.retrieval.calibration_file.StoredCalibration.label", "probability")
    images = SimpleNamespace(places=SimpleNamespace(query_positions=None))
    outcomes = [SimpleNamespace(rank=1 if each else 2, answerable=True) for each in right]
    results = SimpleNamespace(outcomes=outcomes, ranking=Ranking(answers, None))
    return judge_answers(images, results, None, {}, learn=True, others=others)
