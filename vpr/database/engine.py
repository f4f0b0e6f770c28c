"""What the program asks of a search engine, whichever keeps the descriptors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from vpr.common.errors import UserError
from vpr.data.frames import Frames
from vpr.database.filters import SearchFilter
from vpr.database.records import Records
from vpr.descriptors.local_maps import LocalMaps, QuantizedMap
from vpr.models.local_projection import LocalProjection
from vpr.models.spec import DEFAULT_SEED
from vpr.search.sequences import SequenceRule


class Unreachable(UserError):
    """Nobody answers where the engine is; another question would have no answer either."""


class WrittenByAnother(UserError):
    """Another process writes the database, or has written it anew: this one cannot, however often it tries."""


@dataclass(frozen=True)
class WantedIndex:
    """How the descriptors of a database are searched, and what else is kept of its images."""

    # The engine's name of an index: FAISS's factory string, or one of Milvus; None: what is there, or the exact search.
    factory: str | None = None
    nprobe: int | None = None  # lists that an inverted-file index looks through; None takes the usual number
    seed: int = DEFAULT_SEED  # of what the index, and the projection of local descriptors, are trained on
    local_dim: int = 0  # dimensions of local descriptors that are kept for re-ranking; 0: none are asked for
    on_disk: bool = False  # whether the lists of an inverted file stay on the disk
    by_itself: bool = False  # whether nobody asked for local descriptors: an index that is there stays as it is


@dataclass(frozen=True)
class Source:
    """Which database an engine opens. `open_engine(source, wanted, anew)` of each module in ENGINES takes one."""

    target: str  # what stands behind the engine's name and a colon in --engine: a file or an address; may be empty
    path: Path  # of an index that lies in files beside the model; engines that lie elsewhere leave it alone
    collection: str  # the name of this database in an engine that keeps several
    dim: int  # of the descriptors
    provenance: Mapping[str, str]  # what makes the descriptors, by name
    note: Mapping[str, str]  # of which folder's images it is; see `vpr.database.open.folder_note`


class Hits(NamedTuple):
    """The nearest images of M queries."""

    rows: np.ndarray  # int64 [M, c] of `records`, nearest first, -1 where there are not so many
    # float32 [M, c], Euclidean, of the queries to the stored descriptors (0 to 2); NaN where there is no hit, or the
    # engine knows none.
    distances: np.ndarray
    records: Records  # what was known of the images when they were found, whatever happens to the database meanwhile


class Searchable(Protocol):
    """A database ready to be searched."""

    measures: bool  # whether its distances are those of descriptors: exact ones wherever descriptors are kept
    # Engine and index in words, where that may miss nearest images; empty where it finds what an exact search finds.
    # How sure an answer is differs between such indexes.
    approximate: str
    local: LocalMaps | None  # local descriptors of the images for re-ranking, by row, where they are kept
    projection: LocalProjection | None  # what projected them; None where the model did

    def search(self, queries: np.ndarray, count: int, wanted: SearchFilter | None = None) -> Hits:
        """The nearest images.
        `queries`: [M, dim]. `wanted`: which images are searched; None: all.
        Raises a UserError: the engine cannot be reached, or the filter cannot be applied."""


class Engine(Searchable, Protocol):
    """A database that images are added to and removed from.

    Rows number the images of `records`. They stay as they are until another process has changed the database and a
    search, which is when this one looks, finds that: what `search` returned belongs to the records it returned.
    """

    name: str  # engine, index and consistency in words, with which results are labelled
    records: Records  # of its images, by row; the name of a removed image is empty, and it is never found again
    provenance: dict[str, str]  # what made the descriptors; empty before the first are added
    searches_sequences: bool  # whether it searches whole sequences in order, by `search_in_order`
    keeps_local: bool  # whether images that are added bring their local descriptors
    # Whether others fill it too, so that a command that only searches takes it as it is. One that is not shared follows
    # its folder, unless it was edited.
    is_shared: bool
    edited: bool  # whether images were added or removed by hand, so that it does not follow its folder by itself
    by_hand: bool  # whether what is added and removed from now on counts as that
    # Images from elsewhere that it knows of and cannot find, since their descriptors are another model's or damaged. An
    # update describes them again where their files are still there.
    lacking: Records
    row_of: Mapping[str, int]  # by name, the row of each image that it has
    next_row: int  # that the next image to be added gets; others of the same call follow in order

    def rows(self) -> np.ndarray:
        """int64: the rows of the images that it has."""

    def descriptors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of some rows that it has, float16 [n, dim].
        Raises a UserError: one is damaged, or the engine does not answer."""

    def count(self) -> int:
        """How many images it has."""

    def search_in_order(
        self, queries: np.ndarray, count: int, sequences: tuple[Frames, Frames], rule: SequenceRule
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best of the database by sequences of frames; only where `searches_sequences`.
        Raises a UserError: a descriptor is damaged.

        Args:
            queries: [M, dim].
            sequences: those of `records`, by row, and of the queries (`require_order`). Those of removed images are
                not looked at.

        Returns:
            rows and descriptor distances as of `search`, and the similarities of sequences, float32 [M, c].
        """

    def begin(self, projection: LocalProjection | None) -> None:
        """Say what projects the local descriptors of all images to be added; called once, while it has none."""

    def keep_no_local(self) -> None:
        """Take images without local descriptors after all; called while it has none."""

    def add(self, records: Records, descriptors: np.ndarray, local: Sequence[QuantizedMap] | None = None) -> None:
        """Add images, in place of those of the same names; when it returns they are kept, whatever happens.
        `descriptors`: [n, dim], of length 1. `local`: local descriptors of each, where the engine keeps them.
        Raises a UserError: they cannot be written (WrittenByAnother: by this process), or the engine is gone for good;
        then nothing has changed."""

    def remove(self, names: Sequence[str]) -> None:
        """Remove images; those that are not there are passed over. Raises a UserError as `add` does."""

    def set_zone(self, zone: str) -> None:
        """Take the positions, whose UTM zone was unknown or is corrected, for metres of this one."""

    def prepare_to_serve(self, writable: bool) -> None:
        """Many questions will follow: each is answered as fast as can be, or refused without waiting for a server.

        If `writable`, images will be added and removed; then nobody else may, where the engine is not shared.
        Raises WrittenByAnother: another process writes it.
        """

    def check(self) -> None:
        """Raise a UserError where the engine does not answer now."""

    def finish(self, order: Sequence[str] | None = None) -> None:
        """All that was to be added or removed has been: make room, and train what is trained.

        Nothing depends on it: a server ends without. From now on it follows the order of the folder's images, by their
        names; None: no folder's.
        """

    def close(self) -> None:
        """Let go of files and connections."""
