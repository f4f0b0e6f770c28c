"""An engine as the search of a split whose images it has."""

from collections.abc import Sequence

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.database.engine import Engine


class EngineSearch:
    """The search of `vpr.search` by an engine that has the database's images.

    Attributes:
        name: of the engine, in words.
        approximate: see `vpr.database.engine.Searchable`.
    """

    def __init__(self, engine: Engine, names: Sequence[str]):
        """An engine, and the names of the database's images in their order.

        Raises:
            UserError: the engine has other images.
        """
        self.engine, self.name, self.approximate = engine, engine.name, engine.approximate
        self._image_of = {name: image for image, name in enumerate(names)}
        if engine.count() != len(names):
            raise UserError(
                f"{engine.name} has {engine.count()} images, wanted the {len(names)} that are tested: name another "
                "--collection"
            )

    def __call__(self, queries: torch.Tensor, count: int) -> np.ndarray:
        """[m, dim] -> indices int64 [m, min(count, N)], nearest first."""
        hits = self.engine.search(queries, min(count, self.engine.count()))
        images = [self._image_of.get(name, -1) for name in hits.records.names]
        return np.array([*images, -1], np.int64)[hits.rows]
