"""python -m benchmarks.opening: how long an index takes to open and answer, to be added to, and to be searched.

    python -m benchmarks.opening --count 1000000 --dim 512
    PYTHONPATH=ANOTHER_VERSION python benchmarks/opening.py --count 20000 --dim 32768

Descriptors are random. An index of them is made, in a process of its own; then others open it and answer one query,
add images in batches of 24, and search. It runs with versions whose index was an HDF5 file and a journal too.
"""

import argparse
import importlib.util
import multiprocessing
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

MADE_BY = {"weights": "synthetic"}
BLOCK, BATCH, BATCHES, QUERIES = 4096, 24, 40, 100


def opened(folder: Path, dim: int) -> Any:
    """The index in a folder, by this version or an earlier one."""
    try:
        from vpr.database.engine import Source, WantedIndex
        from vpr.database.faiss_engine import open_engine
    except ImportError:
        from vpr.artifacts.living_index import open_index  # type: ignore[import-not-found]  # of an earlier version

        return open_index(folder / "database_x.h5", MADE_BY, dim)
    return open_engine(Source("", folder / "database_x.sqlite", "", dim, MADE_BY, {}), WantedIndex())


def images(start: int, count: int, dim: int) -> tuple[Any, Any]:
    """Records and descriptors of some images."""
    import importlib

    import torch

    try:
        records = importlib.import_module("vpr.database.records")
    except ImportError:
        records = importlib.import_module("vpr.data.records")
    numbers = np.arange(start, start + count)
    values = torch.randn(count, dim, generator=torch.Generator().manual_seed(start))
    return records.Records(
        [f"city/{number:09}.jpg" for number in numbers],
        np.stack([400_000 + 10.0 * (numbers % 1000), 5_400_000 + 10.0 * (numbers // 1000)], axis=1),
        "31N", numbers + 1, numbers, np.repeat(numbers.astype("<i8").view(np.uint8).reshape(-1, 8), 4, axis=1),
        [""] * count,
    ), as_taken((values / values.norm(dim=1, keepdim=True)).half())  # fmt: skip


def as_taken(values: Any) -> Any:
    """A tensor as an index of this version takes it, an array, or as one of an earlier version does."""
    return values if importlib.util.find_spec("vpr.artifacts") else values.numpy()


def fill(folder: Path, count: int, dim: int) -> dict[str, float]:
    """Make the index."""
    index, seconds = opened(folder, dim), 0.0
    for start in range(0, count, BLOCK):
        some = images(start, min(BLOCK, count - start), dim)
        began = perf_counter()
        index.add(*some)
        seconds += perf_counter() - began
    began = perf_counter()
    index.finish()
    return {"added at once, s": seconds, "finished, s": perf_counter() - began}


def ask(folder: Path, count: int, dim: int) -> dict[str, float]:
    """Open it, answer one query with names and positions of what is found, then many, then add in small batches."""
    import faiss  # noqa: F401 - both take seconds to import, which is not measured
    import torch

    queries = torch.randn(QUERIES, dim, generator=torch.Generator().manual_seed(7))
    queries = as_taken(torch.nn.functional.normalize(queries))
    opened(folder.with_name(f"{folder.name}-none"), dim).close()  # all that is imported now is not measured
    before = images(0, 1, 8)
    began = perf_counter()
    index = opened(folder, dim)
    opening = perf_counter() - began
    rows, _, *records = index.search(queries[:1], 5)
    known = records[0] if records else index.records
    told = [(known.names[row], *known.positions[row]) for row in rows[0]]
    first = perf_counter() - began
    assert len(told) == 5 and before
    began = perf_counter()
    for query in queries[:5]:
        index.search(query[None], 5)
    alone = (perf_counter() - began) / 5
    began = perf_counter()
    index.search(queries, 5)
    together = perf_counter() - began
    some = [images(count + BATCH * number, BATCH, dim) for number in range(BATCHES)]
    began = perf_counter()
    for batch in some:
        index.add(*batch)
    added = perf_counter() - began
    index.close()
    return {
        "opening, s": opening, "opening and first answer, s": first, "a query alone, s": alone,
        f"{QUERIES} queries together, s": together, f"a batch of {BATCH} added, s": added / BATCHES,
    }  # fmt: skip


def main() -> int:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.opening", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="opening-"))
    try:
        for work in (fill, ask):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                for name, value in pool.submit(work, folder, options.count, options.dim).result().items():
                    print(f"{name:>32} {value:10.4f}", flush=True)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{'on disk, MB':>32} {size / 1e6:10.1f}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
