"""Re-ranking: time of a query, and memory beside a database of local descriptors in a file."""

import math
import resource
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax

from benchmarks.measure import peak_memory_alone, time_of
from benchmarks.report import Row
from benchmarks.stages import Bench
from vpr.descriptors.local_file import stored_maps
from vpr.descriptors.local_maps import SCALE, LocalMaps, joined, quantized
from vpr.retrieval.matching import TEMPERATURE
from vpr.retrieval.rerank import local_scores, rerank
from vpr.retrieval.rules import Reranking

GRID, HITS, DIM = (30, 40), 50, 64  # a map of VGG16 on images of 640x480 pixels
SMALL_GRID = (20, 20)  # of EfficientNet-Lite0 at stride 16 on 320x320
MANY, DEEP, ASKED = 100_000, 100, 20  # database images, hits of each query, queries


def reranking(bench: Bench) -> list[Row]:
    """50 hits of a query, and the memory of 20 queries with 100 hits each in a database of 100,000."""
    seconds, memory = time_of(_many_alone(), 3), peak_memory_alone(_many_alone)
    places = int(random_maps(1, 0).grids[0].prod())
    memory_row = Row(
        "re-ranking, memory", f"{ASKED} queries, {DEEP} hits each in {MANY} images of {places} places, in a file",
        None, seconds, None, memory, f"the file has {MANY * places * DIM / 1e9:.2f} GB",
    )  # fmt: skip
    return [*(_one_query(bench, grid) for grid in (GRID, SMALL_GRID)), memory_row]


def _one_query(bench: Bench, grid: tuple[int, int]) -> Row:
    """50 hits of a query, whose maps have (height, width) places."""
    database, queries = random_maps(HITS, 0, grid), random_maps(1, 1, grid)
    every = np.arange(HITS)
    # Not in turn: NumPy's threads wait for work by turning, beside PyTorch's.
    quick = time_of(lambda: local_scores(0, every, queries, database), 4 * bench.repeats)
    faults = _page_faults(lambda: local_scores(0, every, queries, database))
    slow = time_of(lambda: textbook_scores(queries, every, database), bench.repeats)
    places, (height, width) = int(database.grids[0].prod()), grid
    product = 2 * HITS * places**2 * (DIM + 1) / 1e9 / bench.ceilings.product
    return Row(
        "re-ranking, one query",
        f"{HITS} hits of {height}x{width} places, kept as {'x'.join(map(str, database.grids[0]))}",
        slow, quick, 4 * DIM * height * width, int(database.bytes_per_image),
        f"{1000 * quick.median:.3g} ms a query; its products at the ceiling: {1000 * product:.3g} ms; "
        f"{faults:.3g} page faults a query; memory: bytes of an image, against float32 of all places",
    )  # fmt: skip


def _page_faults(work: Callable[[], object], times: int = 20) -> float:
    """Page faults of a piece of work."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / times


def random_maps(count: int, seed: int, grid: tuple[int, int] = GRID) -> LocalMaps:
    """Local descriptors of random images."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.nn.functional.normalize(torch.randn(count, DIM, *grid, generator=generator), dim=1)
    return joined(quantized(maps.numpy()))


def textbook_scores(queries: LocalMaps, hits: np.ndarray, database: LocalMaps) -> np.ndarray:
    """The local scores of the first query, one hit after the other, by NumPy in float32."""
    own, scores = queries.rows(0).astype(np.float32) / SCALE, []
    for hit in hits:
        other = database.rows(hit).astype(np.float32) / SCALE
        cosines = own @ other.T  # [Q, P]
        likely = softmax(cosines / TEMPERATURE, axis=0) * softmax(cosines / TEMPERATURE, axis=1)
        scores.append((likely * np.maximum(cosines, 0)).sum() / math.sqrt(len(own) * len(other)))
    return np.array(scores)


def _many_alone() -> Callable:
    """The work on a database in a file; the file goes with the process."""
    folder = tempfile.TemporaryDirectory()
    path, some = Path(folder.name) / "many.local", random_maps(100, 0)
    with open(path, "wb") as file:
        for _ in range(MANY // len(some.grids)):
            file.write(some.values.data)
    repeats = MANY // len(some.grids)
    checksums = np.array([zlib.crc32(some.rows(n).data) for n in range(len(some.grids))], np.uint32)
    database = stored_maps(path, np.tile(some.grids, (repeats, 1)), np.tile(checksums, repeats), DIM)
    queries = random_maps(ASKED, 1)
    found = np.random.default_rng(0).integers(0, MANY, (ASKED, DEEP))
    similarities = np.zeros(found.shape, np.float32)
    rerank(found[:1], similarities[:1], queries, database, Reranking(2))  # sets up threads and libraries

    def work(kept: object = folder) -> None:
        rerank(found, similarities, queries, database, Reranking(DEEP))

    return work
