"""The map's places: evenly thinned."""

import numpy as np

from vpr.serve.places import thinned


def test_few_places_are_all_shown():
    np.testing.assert_array_equal(thinned(np.zeros((7, 2)), 7), range(7))
    assert len(thinned(np.empty((0, 2)))) == 0


def test_many_places_are_thinned_evenly():
    random = np.random.default_rng(0)
    crowd = random.normal(0, 5, (5000, 2))  # nine of ten images in one square of 10 m
    spread = random.uniform(-1000, 1000, (500, 2))
    places = np.concatenate([crowd, spread])
    rows = thinned(places, 400)
    assert 300 <= len(rows) <= 400 and (np.diff(rows) > 0).all()
    assert (rows >= 5000).sum() > 300  # a random choice would keep 36 of the spread ones
    # None is far from one that is shown: farther than the diagonal of the squares, by which 400 cover the area.
    apart = np.linalg.norm(spread[:, None] - places[rows][None], axis=2).min(axis=1)
    assert apart.max() < 250


def test_places_on_a_line_and_on_one_spot_are_thinned():
    line = np.stack([np.arange(1000.0), np.zeros(1000)], axis=1) + [585000, 4477000]
    rows = thinned(line, 100)
    assert 80 <= len(rows) <= 101 and np.ptp(np.diff(rows)) <= 2
    assert len(thinned(np.ones((1000, 2)), 100)) == 1
