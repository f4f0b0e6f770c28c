"""Pictures of re-ranking: lines at the known points of hand-made matches, in the colours of their weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vpr.descriptors.local_maps import joined, quantized
from vpr.report import matches as drawing
from vpr.report.matches import picture_of_matches, weight_colours
from vpr.report.panels import FRAME
from vpr.retrieval.matching import Matches
from vpr.retrieval.rerank import Compared, comparer, rerank
from vpr.retrieval.rules import Reranking

WIDTH, HEIGHT = drawing.PAIR
LEFT = WIDTH + 2 * FRAME + drawing.GAP  # of the hit's frame
GREY = (128, 128, 128)
DARKEST, LIGHTEST = (13, 8, 135), (240, 249, 33)  # the ends of plasma, as published


@pytest.fixture
def files(tmp_path):
    """A query and a hit, both grey."""
    for name in ("query.png", "hit.png"):
        Image.new("RGB", (80, 60), GREY).save(tmp_path / name)
    return tmp_path / "query.png", tmp_path / "hit.png"


def picture(files, *matches):
    """The picture of matches ((x, y) in the query, (x, y) in the hit, weight)."""
    query, hit, weights = (np.array(part, np.float32) for part in zip(*matches, strict=True))
    return picture_of_matches(*files, Compared(Matches(query, hit, weights), 0.5))


def in_query(x, y):
    """A point (x, y) from 0 to 1 of the query in the picture's pixels."""
    return FRAME + x * WIDTH, FRAME + y * HEIGHT


def in_hit(x, y):
    return LEFT + FRAME + x * WIDTH, drawing.DROP + FRAME + y * HEIGHT


def nearest_colour(shown, point, colour):
    """How far, in the worst channel, the pixel next to a point that is most like a colour is from it."""
    x, y = (round(value) for value in point)
    around = [shown.getpixel((x + i, y + j)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return min(max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) for pixel in around)


def test_lines_join_the_points_in_the_colours_of_their_weights(files):
    shown = picture(files, ((0.25, 0.5), (0.75, 0.25), 1.0), ((0.5, 0.875), (0.125, 0.75), 0.0))
    for start, end, colour in (
        (in_query(0.25, 0.5), in_hit(0.75, 0.25), LIGHTEST),
        (in_query(0.5, 0.875), in_hit(0.125, 0.75), DARKEST),
    ):
        for share in (0, 0.2, 0.5, 0.8, 1):
            point = np.add(np.multiply(start, 1 - share), np.multiply(end, share))
            assert nearest_colour(shown, point, colour) <= 8, share
    for elsewhere in (in_query(0.1, 0.1), in_query(0.9, 0.1), in_hit(0.1, 0.1), in_hit(0.9, 0.9)):
        assert nearest_colour(shown, elsewhere, GREY) == 0


def test_the_heaviest_line_is_on_top(files):
    """Two lines that cross midway; the heavier is the first of the matches, as `matches_of` orders them."""
    shown = picture(files, ((0.5, 0.25), (0.5, 0.75), 1.0), ((0.5, 0.75), (0.5, 0.25), 0.0))
    middle = np.add(in_query(0.5, 0.5), in_hit(0.5, 0.5)) / 2
    assert nearest_colour(shown, middle, LIGHTEST) <= 8


def test_no_more_lines_than_the_eye_takes(files, monkeypatch):
    monkeypatch.setattr(drawing, "MOST_LINES", 2)
    three = [((0.5, y), (0.5, y), 1.0) for y in (0.25, 0.5, 0.75)]
    shown = picture(files, *three)
    drawn = [nearest_colour(shown, in_query(0.5, y), LIGHTEST) <= 8 for y in (0.25, 0.5, 0.75)]
    assert drawn == [True, True, False]
    assert nearest_colour(shown, in_hit(0.5, 0.75), GREY) == 0


def test_without_matches_both_images_stand_alone(files):
    empty = np.zeros((0, 2), np.float32)
    shown = picture_of_matches(*files, Compared(Matches(empty, empty, np.zeros(0, np.float32)), 0.0), "#ff0000")
    inside = np.asarray(shown.crop((FRAME, FRAME, FRAME + WIDTH, FRAME + HEIGHT)))
    assert (inside == 128).all()
    assert shown.getpixel((LEFT + 2, drawing.DROP + 100)) == (255, 0, 0)


def test_colours_get_lighter_with_the_weight():
    """Those who see no colours tell weights by lightness (luma of ITU-R BT.601)."""
    colours = np.array(weight_colours(np.linspace(0, 1, 20)))
    luma = colours @ (0.299, 0.587, 0.114)
    assert (np.diff(luma) > 0).all() and luma[-1] - luma[0] > 150
    np.testing.assert_allclose(colours[[0, -1]], [DARKEST, LIGHTEST], atol=1)


def maps_of(*seeds):
    maps = [torch.randn(1, 16, 4, 5, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return joined([part for each in maps for part in quantized(F.normalize(each, dim=1).numpy())])


@pytest.mark.parametrize("by", ["soft", "spatial"])
def test_an_image_is_compared_as_re_ranking_did(by):
    """The score is that of re-ranking; matches of equal images join each point with itself, at most so many."""
    queries, database, look = maps_of(7), maps_of(5, 6, 7), Reranking(3, by)
    again = rerank(np.array([[0, 1, 2]]), np.zeros((1, 3), np.float32), queries, database, look)
    compare = comparer(queries, database, look)
    scores = [compare(0, int(hit)).local_score for hit in again.found[0]]
    assert scores == pytest.approx(again.local[by][0].tolist(), abs=1e-6) and again.found[0, 0] == 2
    same = compare(0, 2).matches
    assert len(same.weights) == 20 and (same.weights > 0.9).all()
    np.testing.assert_allclose(same.query_points, same.hit_points)
    few = comparer(queries, maps_of(6, 7), look, np.array([11, 42]))  # of images 11 and 42 of a larger database
    assert few(0, 42).local_score == pytest.approx(scores[0], abs=1e-6)
    assert few(0, 11).local_score == pytest.approx(compare(0, 1).local_score, abs=1e-6) != scores[0]
