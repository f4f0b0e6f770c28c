"""Approximate search: a FAISS index named by its factory string (--index), and what it costs.

https://github.com/facebookresearch/faiss/wiki/The-index-factory lists the strings.
"""

import re
from typing import Any

import faiss
import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import Progress, say
from vpr.search.exact import measured
from vpr.search.floats import Descriptors, Float32Rows, tiles

NPROBE = 16  # lists that an inverted file looks through unless the user says otherwise
# Bit strings and projections to fewer dimensions are a first stage: so many times the hits that are wanted come from
# them, and of these the nearest by the descriptors themselves are taken.
FIRST_STAGE = 10
TRAINING_BYTES = 2 << 30  # of float32 descriptors, at most, that an index is trained on


def build_index(factory: str, database: Descriptors, seed: int, nprobe: int = 1) -> faiss.Index:
    """Train an index on the database [N, dim], or on as many random rows as TRAINING_BYTES hold, and fill it.

    An inverted file (IVF) looks through `nprobe` of its lists. Raises a UserError: FAISS does not know the string,
    cannot train it on so few images, or cannot search it; quotes FAISS.
    """
    (count, dim), floats = database.shape, Float32Rows()
    try:
        index = faiss.index_factory(dim, factory)
        if not index.is_trained:
            sample = np.random.default_rng(seed).permutation(count)[: TRAINING_BYTES // (4 * dim)]
            say(f"training the index {factory} on {len(sample)} descriptors")
            index.train(floats(database, np.sort(sample)))
        with Progress("index", count) as progress:
            for rows in tiles(count, dim):
                index.add(floats(database, rows))
                progress.advance(rows.stop - rows.start)
        if count:
            index.search(floats(database, slice(1)), 1)  # FAISS builds some that it has no way to search
    except RuntimeError as error:
        raise UserError(
            f"--index={factory} cannot be built and searched, of {count} descriptors, {dim}-D; FAISS says: "
            f"{faiss_reason(error)}"
        ) from error
    if (lists := faiss.try_extract_index_ivf(index)) is not None:
        lists.nprobe = nprobe
    return index


def check_factory(factory: str, dim: int) -> None:
    """Raise a UserError, before anything is described, where FAISS does not know an index."""
    try:
        faiss.index_factory(dim, factory)
    except RuntimeError as error:
        raise UserError(f"--index={factory} cannot be built, {dim}-D; FAISS says: {faiss_reason(error)}") from error


def index_name(factory: str, index: faiss.Index) -> str:
    """How results name an index."""
    lists, said = faiss.try_extract_index_ivf(index), []
    if lists is not None:
        said.append(f"{lists.nprobe} of {lists.nlist} lists looked through")
    if not measures_descriptors(index):
        said.append(f"{FIRST_STAGE} times as many hits, in the order of their descriptors")
    return f"{factory} ({', '.join(said)})" if said else factory


def faiss_name(factory: str, index: faiss.Index) -> str:
    """How a calibration names an index that FAISS searches."""
    return f"faiss {index_name(factory, index)}"


def faiss_reason(error: RuntimeError) -> str:
    """What FAISS says, without the C++ function and line it says it from."""
    return re.sub(r"^Error in .* at \S+:\d+: ", "", str(error), flags=re.DOTALL).removeprefix("Error: ")


def measures_descriptors(index: faiss.Index) -> bool:
    """Whether an index's distances are squared descriptor distances, exact or approximate.

    Not so those of bit strings (LSH, spectral hashing), and those after a projection to fewer dimensions.
    """
    steps, inner = _unwrapped(index)
    hashed = isinstance(inner, (faiss.IndexLSH, faiss.IndexIVFSpectralHash))
    return inner.metric_type == faiss.METRIC_L2 and not hashed and all(map(_keeps_distances, steps))


def first_hits(index: faiss.Index, count: int) -> int:
    """How many hits to ask an index for where `count` are wanted: see FIRST_STAGE."""
    return min(count if measures_descriptors(index) else FIRST_STAGE * count, index.ntotal)


def looks_at_all(index: faiss.Index) -> bool:
    """Whether an index compares all descriptors as they are: what it finds is what an exact search finds."""
    return measures_descriptors(index) and isinstance(_unwrapped(index)[1], faiss.IndexFlat)


def _unwrapped(index: faiss.Index) -> tuple[list[faiss.VectorTransform], faiss.Index]:
    """What an index does to descriptors first, and the index in which it then searches."""
    steps = []
    while isinstance(index := faiss.downcast_index(index), (faiss.IndexPreTransform, faiss.IndexIDMap)):
        chain: Any = getattr(index, "chain", None)  # a vector of C++, not the list that the stubs have
        steps += [faiss.downcast_VectorTransform(chain.at(step)) for step in range(chain.size())] if chain else []
        index = index.index
    return steps, index


def _keeps_distances(step: faiss.VectorTransform) -> bool:
    """Whether a transform leaves the distances of vectors of length 1 as they are."""
    if isinstance(step, faiss.NormalizationTransform):
        return True
    return isinstance(step, faiss.LinearTransform) and step.d_in == step.d_out and bool(step.is_orthonormal)


class IndexSearch:
    """The search of `vpr.search` by an index; of a database whose descriptors are given, in their exact order."""

    def __init__(self, index: faiss.Index, database: Descriptors | None = None) -> None:
        """An index, and the descriptors [N, dim] of which it was made, by which hits are ordered, if at all."""
        self.index, self._database = index, database
        self.deepest = 0  # the most hits that were asked for so far

    def __call__(self, queries: Descriptors, count: int) -> np.ndarray:
        """[m, dim] -> indices int64 [m, min(count, N)], nearest first; -1 where it finds fewer than asked for."""
        count, database, floats = min(count, self.index.ntotal), self._database, Float32Rows()
        self.deepest = max(self.deepest, count)
        depth = count if database is None else first_hits(self.index, count)
        found = np.concatenate([self.index.search(floats(queries, rows), depth)[1] for rows in tiles(*queries.shape)])
        return found if database is None else measured(lambda rows: database[rows], queries, found)[0][:, :count]


def stored_bytes(index: faiss.Index) -> int:
    """Bytes that the index would take on disk, counted without writing it."""
    written = 0

    def count(block: bytes) -> int:
        nonlocal written
        written += len(block)
        return len(block)

    writer: Any = faiss.PyCallbackIOWriter(count, 1 << 20)  # type: ignore[attr-defined]  # the stubs lack it
    faiss.write_index(index, writer)
    return written
