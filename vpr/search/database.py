"""A database ready to be searched, exactly or by a FAISS index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.data.frames import Frames
from vpr.descriptors.local_maps import LocalMaps
from vpr.models.local_projection import LocalProjection
from vpr.search.exact import descriptor_distances, in_order, nearest, tiles
from vpr.search.limited import search_with_rows
from vpr.search.sequences import SequenceRule, search_sequences


@dataclass(frozen=True)
class DatabaseIndex:
    """A database ready to be searched.

    Attributes:
        descriptors: float16 [N, dim] for the exact search.
        approximate: a FAISS index in their place.
        local: local descriptors of the N images for a second look, where they were kept.
        projection: what projected them; None where the model did.
    """

    descriptors: torch.Tensor | None = None
    approximate: faiss.Index | None = None
    local: LocalMaps | None = None
    projection: LocalProjection | None = None

    @property
    def measures(self) -> bool:
        """Whether its distances are those of descriptors, exact or approximate."""
        return self.approximate is None or measures_descriptors(self.approximate)

    @property
    def finds_all(self) -> bool:
        """Whether no nearer image is missed."""
        return self.approximate is None or looks_at_all(self.approximate)

    def search(
        self, queries: torch.Tensor, count: int, rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of the database.

        Args:
            queries: [M, dim].
            rows: indices to search among; None is all.

        Returns:
            indices int64 [M, c], -1 where there are not so many, and descriptor distances float32 [M, c], NaN where
            the index knows none.
        """
        if self.descriptors is not None:
            found = nearest(self.descriptors, queries, count, rows)
            # Of hits that are nearly as far as each other FAISS's order is that of sums, which rounding may turn.
            return in_order(found, descriptor_distances(self.descriptors, queries, found))
        assert self.approximate is not None
        count = min(count, self.approximate.ntotal if rows is None else len(rows))
        parts = [
            search_with_rows(self.approximate, queries[tile].float().numpy(), count, rows)
            for tile in tiles(*queries.shape)
        ]
        squared, found = (np.concatenate(values) for values in zip(*parts, strict=True))
        if not self.measures:
            return found, np.full(found.shape, np.nan, np.float32)
        return found, np.sqrt(np.maximum(squared, 0))

    def search_in_order(
        self, queries: torch.Tensor, count: int, walks: tuple[Frames, Frames], rule: SequenceRule
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best of the database by sequences of frames.

        Args:
            queries: [M, dim].
            walks: those of the database and of the queries, in order (`require_order`).

        Returns:
            indices and descriptor distances as of `search`, and the similarities of sequences, float32 [M, c].

        Raises:
            UserError: the index is approximate.
        """
        if self.descriptors is None:
            raise UserError("--sequence searches exactly: drop --index, or name an exact index with --indexFile")
        found, similarities = search_sequences(self.descriptors, queries, count, walks, rule)
        return found, descriptor_distances(self.descriptors, queries, found), similarities


def measures_descriptors(index: faiss.Index) -> bool:
    """Whether an index's distances are squared descriptor distances, exact or approximate.

    Not so those of bit strings (LSH, spectral hashing), and those after a projection to fewer dimensions.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain  # a vector of C++, not the list that the stubs have
        steps = [faiss.downcast_VectorTransform(chain.at(step)) for step in range(chain.size())]
        return all(map(_keeps_distances, steps)) and measures_descriptors(index.index)
    if isinstance(index, faiss.IndexIDMap):
        return measures_descriptors(index.index)
    hashed = isinstance(index, (faiss.IndexLSH, faiss.IndexIVFSpectralHash))
    return index.metric_type == faiss.METRIC_L2 and not hashed


def looks_at_all(index: faiss.Index) -> bool:
    """Whether an index compares all descriptors as they are: what it finds is what an exact search finds."""
    index = faiss.downcast_index(index)
    if isinstance(index, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        return measures_descriptors(index) and looks_at_all(index.index)
    return isinstance(index, faiss.IndexFlat) and measures_descriptors(index)


def _keeps_distances(step: faiss.VectorTransform) -> bool:
    """Whether a transform leaves the distances of vectors of length 1 as they are."""
    if isinstance(step, faiss.NormalizationTransform):
        return True
    return isinstance(step, faiss.LinearTransform) and step.d_in == step.d_out and bool(step.is_orthonormal)


def merged(parts: Sequence[tuple[np.ndarray, np.ndarray]], queries: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of what several searches found, rows and distances [M, c] each; -1 and NaN last."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return np.empty((queries, 0), np.int64), np.empty((queries, 0), np.float32)
    found, distances = (np.concatenate(values, axis=1) for values in zip(*parts, strict=True))
    found, distances = in_order(found, distances)
    return found[:, :count], distances[:, :count]
