"""What the program asks of a search engine, whichever keeps the descriptors."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.database.filters import SearchFilter
from vpr.database.records import Records
from vpr.models.local_maps import LocalMaps, QuantizedMap
from vpr.models.local_projection import LocalProjection


class Unreachable(UserError):
    """Nobody answers where the engine is; another question would have no answer either."""


class Hits(NamedTuple):
    """The nearest images of M queries.

    Attributes:
        rows: int64 [M, c] of `records`, nearest first, -1 where there are not so many.
        distances: float32 [M, c], Euclidean, of the queries to the stored descriptors (0 to 2); NaN where there is no
            hit, or the engine knows none.
        records: what was known of the images when they were found, whatever happens to the database meanwhile.
    """

    rows: np.ndarray
    distances: np.ndarray
    records: Records


class Searchable(Protocol):
    """A database ready to be searched.

    Attributes:
        measures: whether its distances are those of descriptors: exact ones wherever descriptors are kept.
        approximate: engine and index in words, where that may miss nearest images; empty where it finds what an exact
            search finds. How sure an answer is differs between such indexes.
        local: local descriptors of the images for a second look, by row, where they are kept.
        projection: what projected them; None where the model did.
    """

    @property
    def measures(self) -> bool: ...
    @property
    def approximate(self) -> str: ...
    @property
    def local(self) -> LocalMaps | None: ...
    @property
    def projection(self) -> LocalProjection | None: ...

    def search(self, queries: torch.Tensor, count: int, wanted: SearchFilter | None = None) -> Hits:
        """The nearest images.

        Args:
            queries: [M, dim].
            wanted: which images are searched; None: all.

        Raises:
            UserError: the engine cannot be reached, or the filter cannot be applied.
        """


class Engine(Searchable, Protocol):
    """A database that lives: images come and go.

    Attributes:
        name: engine, index and consistency in words, with which results are labelled.
        records: of its images. A row keeps its image as long as the engine is open; that of a removed image is never
            found again, and its name is empty.
        searches_sequences: whether it searches whole sequences in order, by `search_in_order`.
        is_shared: whether others fill it too, so that a command that only searches takes it as it is.
        provenance: what made the descriptors; empty before the first are added.
    """

    @property
    def name(self) -> str: ...
    @property
    def records(self) -> Records: ...
    @property
    def provenance(self) -> dict[str, str]: ...
    @property
    def searches_sequences(self) -> bool: ...
    @property
    def is_shared(self) -> bool: ...

    @property
    def row_of(self) -> Mapping[str, int]:
        """By name, the row of each image that it has."""

    @property
    def next_row(self) -> int:
        """The row that the next image to be added gets; others of the same call follow in order."""

    def rows(self) -> np.ndarray:
        """int64: the rows of the images that it has."""

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Those of some rows that it has, float16 [n, dim]."""

    def count(self) -> int:
        """How many images it has."""

    def add(self, records: Records, descriptors: torch.Tensor, local: Sequence[QuantizedMap] | None = None) -> None:
        """Add images, in place of those of the same names; when it returns they are kept, whatever happens.

        Args:
            descriptors: [n, dim], of length 1.
            local: local descriptors of each, where the engine keeps them.

        Raises:
            UserError: they cannot be written, or the engine is gone for good.
        """

    def remove(self, names: Sequence[str]) -> None:
        """Remove images; those that are not there are passed over."""

    def check(self) -> None:
        """Raise a UserError where the engine does not answer now."""

    def finish(self) -> bool | None:
        """All that was to come or go has: merge, and train what is trained."""

    def close(self) -> None:
        """Let go of files and connections."""
