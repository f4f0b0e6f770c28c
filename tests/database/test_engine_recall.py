"""The share of the exact search that an engine finds."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from tests.engine_data import descriptors, images
from vpr.database.engine import Hits
from vpr.database.engine_recall import recall_against_exact

VALUES = descriptors(40, 8, 0)


class Given:
    """An engine that finds the nearest but some, or others in their place."""

    measures = False

    def __init__(self, miss=0, wrong=0):
        self.miss, self.wrong = miss, wrong

    def search(self, queries, count, wanted=None):
        order = cdist(queries, VALUES).argsort(axis=1)
        found = order[:, :count].copy()
        if self.miss:
            found[:, -self.miss :] = -1
        if self.wrong:
            found[:, : self.wrong] = order[:, -self.wrong :]
        return Hits(found, np.zeros(found.shape, np.float32), images(40))


@pytest.mark.parametrize(("engine", "share"), [(Given(), 1), (Given(miss=3), 0.7), (Given(wrong=1), 0.9),
                                               (Given(miss=2, wrong=5), 0.3)])  # fmt: skip
def test_the_share_is_that_of_the_hits_that_are_right(engine, share):
    found = recall_against_exact(engine, VALUES.astype(np.float16), 10, 15)
    assert (found.found, found.count, found.queries) == (pytest.approx(share), 10, 15)
    assert f"{100 * share:.2f} % of the exact first 10 hits" in found.line()


def test_one_of_two_equal_images_is_as_good_as_the_other():
    class First(Given):
        def search(self, queries, count, wanted=None):
            found = cdist(queries, doubled).argsort(axis=1, kind="stable")[:, :count]
            return Hits(
                np.where(found % 2, found - 1, found + 1), np.zeros(found.shape), images(80)
            )  # the twin of each

    doubled = VALUES.repeat(2, axis=0)
    assert recall_against_exact(First(), doubled, 7, 100).found == 1
