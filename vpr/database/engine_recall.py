"""How much of the exact search an engine finds, and how long a query takes."""

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from vpr.common.progress import say
from vpr.database.engine import Engine, Searchable
from vpr.database.synchronise import in_parts
from vpr.search.exact import descriptor_distances, nearest

COMPARED_BYTES = 256 << 20  # of descriptors that are fetched to compare an engine with exact search, at most
COMPARED_HITS, COMPARED_QUERIES = 20, 100
TIE = 1e-5  # descriptors whose distances differ by less are equally near


@dataclass(frozen=True)
class EngineRecall:
    """What share of the exact nearest `count` an engine finds, for how many `queries`; milliseconds of each."""

    found: float
    count: int
    queries: int
    milliseconds: float

    def line(self) -> str:
        return (
            f"{100 * self.found:.2f} % of the exact first {self.count} hits, {self.milliseconds:.2f} ms a query "
            f"({self.queries} of the stored descriptors as queries, all at once)"
        )


def recall_against_exact(
    engine: Searchable, descriptors: np.ndarray, count: int, sample: int, seed: int = 0
) -> EngineRecall:
    """Compare an engine with exact search for some of the stored descriptors.

    A hit counts if it is no farther than the exact last one, so that one of several equal images is as good as another.

    Args:
        descriptors: [N, dim], those that are stored, by the engine's rows; may lie in a file (numpy.memmap).
        count: how many hits of each are compared.
        sample: how many of them are looked for.
    """
    chosen = np.random.default_rng(seed).permutation(len(descriptors))[:sample]
    queries = descriptors[np.sort(chosen)].astype(np.float32)
    started = perf_counter()
    hits = engine.search(queries, count)
    seconds = perf_counter() - started
    exact = nearest(descriptors, queries, count)  # [sample, c]
    if not exact.size:
        return EngineRecall(1.0, count, len(queries), 0.0)
    last = descriptor_distances(descriptors, queries, exact[:, -1:])
    distances = hits.distances if engine.measures else descriptor_distances(descriptors, queries, hits.rows)
    right = (distances <= last + TIE).sum(axis=1)  # False where nothing was found, since NaN compares so
    found = float(np.minimum(right, exact.shape[1]).sum() / exact.size)
    return EngineRecall(found, count, len(queries), 1000 * seconds / len(queries))


def say_recall(engine: Engine) -> None:
    """Say how much of the exact search an engine finds, for a sample of what it has; not where that is too much."""
    rows = engine.rows()
    if not len(rows):
        return
    dim = engine.descriptors(rows[:1]).shape[1]
    if 4 * dim * engine.next_row > COMPARED_BYTES:
        say(f"not compared with exact search: {len(rows):,} descriptors of {dim} dimensions are too many to fetch")
        return
    stored = np.full((engine.next_row, dim), 10.0, np.float32)  # far from all where an image was removed
    for some in in_parts(rows.tolist(), 1024):
        stored[some] = engine.descriptors(some)
    say(f"compared with exact search: {recall_against_exact(engine, stored, COMPARED_HITS, COMPARED_QUERIES).line()}")
