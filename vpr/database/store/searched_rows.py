"""Exact search among some rows of descriptors."""

import numpy as np
import torch

from vpr.search.exact import descriptor_distances, in_order, nearest

FAR = 1e4  # in each component of a descriptor that is not searched: over all distances between those that are


class SearchedRows:
    """Descriptors of which some are searched. The others are moved far away as they are read, a tile at a time: to copy
    those that are wanted out of a database costs several times what its search does."""

    def __init__(self, values: torch.Tensor, wide: torch.Tensor, allowed: np.ndarray) -> None:
        """Descriptors float16 [N, dim], the first of them in float32 too, and which are searched, bool [N]."""
        self._values, self._wide, self._allowed = values, wide, allowed[: len(values)]
        self._tile = torch.empty(0, values.shape[1])
        self.shape = values.shape

    def __getitem__(self, rows: slice) -> torch.Tensor:
        """float32 [n, dim], which holds until the next rows are asked for."""
        left_out = ~self._allowed[rows]
        if rows.stop <= len(self._wide):
            values = self._wide[rows].clone() if left_out.any() else self._wide[rows]
        else:
            values = self._converted(self._values[rows])
        if left_out.any():
            values[torch.from_numpy(left_out)] = FAR
        return values

    def _converted(self, values: torch.Tensor) -> torch.Tensor:
        """In float32, in memory that the last tile left: pages that the kernel has to clear take longer."""
        if len(self._tile) < len(values):
            self._tile = torch.empty(values.shape)
        return self._tile[: len(values)].copy_(values)

    def search(self, queries: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of those that are searched: rows int64 [M, c], and distances float32 [M, c]."""
        wanted = int(self._allowed.sum())
        if 2 * wanted < len(self._values):
            found = nearest(self._values, queries, count, np.flatnonzero(self._allowed))
        else:
            found = nearest(self, queries, min(count, wanted))
        # Of hits that are nearly as far as each other FAISS's order is that of sums, which rounding may turn.
        return in_order(found, descriptor_distances(self._values, queries, found))
