"""Exact search among some rows of descriptors."""

from typing import Any

import numpy as np

from vpr.search.exact import descriptor_distances, in_order, nearest
from vpr.search.floats import Float32Rows

FAR = 1e4  # in each component of a descriptor that is not searched: over all distances between those that are


class SearchedRows:
    """Descriptors of which some are searched. The others are moved far away as they are read, a tile at a time: to copy
    those that are wanted out of a database costs several times what its search does."""

    def __init__(self, values: Any, wide: Any, allowed: np.ndarray) -> None:
        """Descriptors float16 [N, dim], the first of them in float32 too, and which are searched, bool [N]."""
        self._values, self._wide, self._allowed = values, wide, allowed[: len(values)]
        self._floats, self.shape = Float32Rows(), values.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        """float32 [n, dim], which holds until the next rows are asked for."""
        left_out = ~self._allowed[rows]
        stored = self._wide if rows.stop <= len(self._wide) else self._values
        values = self._floats(stored, rows, own=bool(left_out.any()))
        if left_out.any():
            values[left_out] = FAR
        return values

    def search(self, queries: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of those that are searched: rows int64 [M, c], and distances float32 [M, c]."""
        wanted = int(self._allowed.sum())
        if 2 * wanted < len(self._values):
            found = nearest(self._values, queries, count, np.flatnonzero(self._allowed))
        else:
            found = nearest(self, queries, min(count, wanted))
        return in_order(found, descriptor_distances(self._values, queries, found))
