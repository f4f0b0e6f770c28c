"""Textbook versions of verification and of centring give what the fast code gives."""

import numpy as np
import pytest

pytest.importorskip("cv2")

from benchmarks.verification import AGREE, SAME, centred_one_by_one, matches_by_sorting, two_images
from vpr.retrieval.conditions.centring import centred
from vpr.retrieval.verification.pairs import mutual_neighbours, verify


def test_matches_are_those_that_were_made():
    query, hit = two_images()
    wanted = [[row, row] for row in range(SAME)]
    fast = mutual_neighbours(query.descriptors, hit.descriptors).tolist()
    assert matches_by_sorting(query, hit).tolist() == fast and all(pair in fast for pair in wanted)
    found = verify(query, hit)
    assert found.matches == len(fast) and (found.rows[:, 0] < AGREE).sum() > 0.9 * AGREE
    assert (found.rows[:, 0] >= AGREE).sum() < 0.2 * (SAME - AGREE)


def test_descriptors_are_centred_alike():
    values = np.random.default_rng(1).normal(size=(5, 32)).astype(np.float16)
    mean = values.mean(axis=0)
    np.testing.assert_allclose(centred_one_by_one(values, mean), centred(values, mean), atol=1e-6)
