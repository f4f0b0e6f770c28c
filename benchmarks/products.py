"""Search and mining beside their matrix products alone, and what they read: float16 descriptors in float32."""

import resource
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.report import Row
from benchmarks.stages import DIM, MINING_DATABASE, MINING_SAMPLE, Bench, unit_rows
from vpr.search.exact import nearest
from vpr.search.floats import FEW_TILE_BYTES, Float32Rows, tiles
from vpr.training.mining import candidate_distances


def search_beside_product(bench: Bench, database_size: int, query_count: int) -> Row:
    """Exact search of float16 descriptors, and its product alone, of descriptors that are in float32 already."""
    database, queries = unit_rows(database_size, 0).numpy(), unit_rows(query_count, 1).numpy()
    wide, asked = database.astype(np.float32), queries.astype(np.float32)
    product, quick = bench.compare(lambda: asked @ wide.T, lambda: nearest(database, queries, 20))
    limit = f"{quick.median / product.median:.2f} of its product; {faults(lambda: nearest(database, queries, 20))}"
    setting = f"{query_count} queries in {database_size} x {DIM}"
    return Row("exact search beside its product", setting, product, quick, wide.nbytes, database.nbytes, limit)


def mining_beside_product(bench: Bench) -> Row:
    """Distances to the candidates of queries that share a draw, and their product alone, of rows in float32 already."""
    database, queries = unit_rows(MINING_DATABASE, 0).to(bench.device), unit_rows(32, 1).to(bench.device)
    random = np.random.default_rng(0)
    draw = random.permutation(MINING_DATABASE)[:MINING_SAMPLE]
    candidates = [np.union1d(draw, random.permutation(MINING_DATABASE)[:20]) for _ in range(len(queries))]
    wanted = np.unique(np.concatenate(candidates))
    wide, asked = database[torch.from_numpy(wanted)].float(), queries.float()
    product, quick = bench.compare(lambda: asked @ wide.T, lambda: candidate_distances(queries, database, candidates))
    limit = (
        f"{quick.median / product.median:.2f} of its product; "
        f"{faults(lambda: candidate_distances(queries, database, candidates))}"
    )
    setting = f"{len(queries)} queries, {len(wanted)} candidates x {DIM}"
    return Row("mining beside its product", setting, product, quick, limit=limit)


def conversion(bench: Bench, count: int) -> Row:
    """Float16 descriptors to float32, all at once by NumPy, and a tile at a time as a search reads them."""
    database, floats = unit_rows(count, 0).numpy(), Float32Rows()

    def by_tiles() -> None:
        for tile in tiles(count, DIM, FEW_TILE_BYTES):
            floats(database, tile)

    slow, quick = bench.compare(lambda: database.astype(np.float32), by_tiles)
    limit = f"{database.size / quick.median / 1e9:.2g} billion values/s; {faults(by_tiles)}"
    return Row("float16 to float32", f"{count} x {DIM}", slow, quick, 2 * database.nbytes, FEW_TILE_BYTES, limit)


def faults(work: Callable[[], object]) -> str:
    """How many pages the kernel had to clear for a piece of work."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before} page faults"
