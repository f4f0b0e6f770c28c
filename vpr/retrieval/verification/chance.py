"""What a query has in common with database images that were drawn at random: what more tells something."""

import numpy as np

from vpr.common.errors import UserError
from vpr.database.engine import Engine
from vpr.retrieval.conditions.centring import centred
from vpr.search.exact import descriptor_distances

DRAWN = 8  # database images at random, whose matches with an image are those of chance
SAMPLE = 64  # database images at random, whose distances to an image are those of chance


class Chance:
    """Some images of a database, drawn once: what is said of them needs no sample of today's images."""

    def __init__(self, engine: Engine) -> None:
        """Nothing is drawn yet."""
        self._engine = engine
        self._sample = np.empty((0, 0), np.float32)

    def rows(self, count: int) -> tuple[int, ...]:
        """Some of the database's rows below `count`, the same at each call."""
        rows = self._engine.rows()
        known = rows[rows < count]
        return tuple(np.unique(np.random.default_rng(0).choice(known, DRAWN)).tolist()) if len(known) else ()

    def usual_distances(self, queries: np.ndarray, mean: np.ndarray | None) -> np.ndarray | None:
        """Medians of the distances of queries [M, dim] to a sample of the database, float [M]; None: not measured.

        Only that of a database with less than it has by now is redrawn. `mean` [dim] was subtracted from it.
        """
        if self._engine.measures and len(self._sample) < min(SAMPLE, self._engine.count()):
            rows = self._engine.rows()
            drawn = np.random.default_rng(0).choice(rows, min(SAMPLE, len(rows)), replace=False)
            try:
                self._sample = self._engine.descriptors(np.sort(drawn)).astype(np.float32)
            except UserError:
                return None
        if not len(self._sample):
            return None
        sample = self._sample if mean is None else centred(self._sample, mean)
        # Not by NumPy's product: its library's threads go on looking for work, which keeps the next question's waiting.
        return np.median(
            descriptor_distances(sample, queries, np.tile(np.arange(len(sample)), (len(queries), 1))), axis=1
        )
