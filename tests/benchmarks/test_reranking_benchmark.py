"""Re-ranking's textbook version gives what the fast code gives."""

import numpy as np

from benchmarks.reranking import random_maps, textbook_scores
from vpr.retrieval.rerank import local_scores


def test_the_textbook_version_gives_the_same_scores():
    database, queries = random_maps(3, 0), random_maps(1, 1)
    every = np.arange(3)
    fast, _ = local_scores(0, every, queries, database)
    np.testing.assert_allclose(textbook_scores(queries, every, database), fast, rtol=1e-4)
    again, _ = local_scores(0, every, database, database)
    np.testing.assert_allclose(textbook_scores(database, every, database), again, rtol=1e-4)
    assert again.argmax() == 0 and database.grids.tolist() == [[15, 20]] * 3
