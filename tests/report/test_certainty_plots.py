"""The precision-recall picture and the reliability diagram: the very numbers that are drawn."""

import numpy as np
import pytest
from PIL import Image

from vpr.evaluation.calibration_error import reliability
from vpr.evaluation.certainty import Scores, judge
from vpr.report.plots import draw_precision_recall, draw_reliability


def drawn_lines(figures):
    (figure,) = figures
    return figure.axes[0].get_lines()


def test_the_precision_recall_picture_draws_the_curve(figures, tmp_path):
    right = np.array([1, 0, 1, 0], bool)
    certainty = judge(Scores(np.array([4.0, 3, 2, 1]), "made up"), right, np.array([1, 1, 1, 0], bool))
    draw_precision_recall(tmp_path / "pr.png", certainty, "somewhere")
    steps, last = drawn_lines(figures)[:2]
    np.testing.assert_allclose(steps.get_xdata(), [100 / 3, 100 / 3, 200 / 3, 200 / 3])
    np.testing.assert_allclose(steps.get_ydata(), [100, 50, 200 / 3, 50])
    assert last.get_label() == "all answered: 50.0% right"
    assert "somewhere" in figures[0].axes[0].get_title() and "made up" in figures[0].axes[0].get_title()
    with Image.open(tmp_path / "pr.png") as picture:
        assert picture.width > 300


def test_a_score_that_is_nowhere_known_gives_an_empty_picture(figures, tmp_path):
    nothing = judge(Scores(np.full(2, np.nan), "made up"), np.zeros(2, bool), np.ones(2, bool))
    draw_precision_recall(tmp_path / "pr.png", nothing, "somewhere")
    assert len(drawn_lines(figures)[0].get_xdata()) == 0 and (tmp_path / "pr.png").is_file()


def test_the_reliability_diagram_draws_a_point_for_each_bin(figures, tmp_path):
    probabilities = np.array([0.1, 0.2, 0.8, 0.9])
    draw_reliability(tmp_path / "r.png", reliability(probabilities, np.array([0, 1, 1, 1], bool), 2), "somewhere")
    diagonal, points = drawn_lines(figures)[:2]
    assert diagonal.get_xdata()[1] == diagonal.get_ydata()[1] == 100
    assert points.get_xdata() == pytest.approx([15, 85]) and points.get_ydata() == pytest.approx([50, 100])
