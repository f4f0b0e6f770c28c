"""What is said of a score: figures by hand, and those of queries that have no true match."""

import json

import numpy as np
import pytest

from vpr.evaluation.certainty import Scores, judge

#                   right wrong right unmatched right unmatched
VALUES = np.array([0.95, 0.90, 0.80, 0.70, 0.60, 0.10])
RIGHT = np.array([1, 0, 1, 0, 1, 0], bool)
ANSWERABLE = np.array([1, 1, 1, 0, 1, 0], bool)


def test_figures_of_a_hand_made_case():
    figures = judge(Scores(VALUES, "made up"), RIGHT, ANSWERABLE, least=0.65).figures()
    assert figures["queries"] == 6 and figures["answerable"] == 4
    assert figures["area"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 4) and figures["area_at_most"] == 3 / 4
    assert figures["recall_at_precision"] == {"100": 0.25, "99": 0.25}
    assert figures["threshold_at_precision"] == {"100": 0.95, "99": 0.95}
    assert figures["unmatched_answered_at_precision"] == {"100": 0, "99": 0}
    wanted = {"threshold": 0.65, "answered": 4, "right": 2, "unmatched_answered": 1, "unmatched": 2}
    assert figures["least_confidence"] == wanted
    assert not any(name.startswith("calibration") for name in figures), "it is no probability"


def test_lines_say_what_the_score_is_and_its_figures():
    lines = judge(Scores(VALUES, "made up"), RIGHT, ANSWERABLE, least=0.65).lines().splitlines()
    assert lines[0] == "how sure: made up; 4 of 6 queries have a true match"
    assert "area under precision-recall 56.7 of at most 75.0" in lines[1]
    assert "recall at 100% precision 25.0 (score from 0.950)" in lines[1]
    assert lines[2].startswith("not in the map: 0 of 2 queries")
    assert lines[3] == "from 0.65 on: 4 answered, of which 2 right; of 2 queries without a true match 1 answered"


def test_probabilities_are_compared_with_what_happened():
    random = np.random.default_rng(0)
    truth = random.random(300)
    truth[7] = np.nan
    right = random.random(300) < truth
    found = judge(Scores(truth, "probability of rain", probability=True, note="told beforehand"), right, right | True)
    figures = found.figures()
    assert found.table.queries == 299 and figures["calibration_bins"] == 11
    assert 0 < figures["calibration_error"] < 0.12 and figures["calibration_note"] == "told beforehand"
    said = f"expected calibration error {figures['calibration_error']:.3f} (11 bins, 299 queries); told beforehand"
    assert said in found.lines() and found.lines().splitlines()[-1].startswith("from 0.5 on: ")
    wrong = judge(Scores(1 - truth, "the opposite", probability=True), right, right | True)
    assert wrong.figures()["calibration_error"] > 0.3


@pytest.mark.parametrize(
    ("values", "right", "answerable"),
    [([np.nan, np.nan], [False, False], [True, True]), ([0.4, 0.6], [False, False], [False, False]), ([], [], [])],
)
def test_nothing_known_or_nothing_to_find_is_said_without_a_number_that_json_lacks(values, right, answerable):
    scores = Scores(np.array(values, float), "made up", probability=True)
    found = judge(scores, np.array(right, bool), np.array(answerable, bool))
    assert "NaN" not in json.dumps(found.figures()) and "Infinity" not in json.dumps(found.figures())
    assert "nan" not in found.lines()
