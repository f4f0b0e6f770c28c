"""Search engines with many descriptors: how fast they fill, what they take, what they find.

    python -m benchmarks.engines --count 1000000 --dim 512 --engine faiss --index IVF4096,PQ64
    python -m benchmarks.engines --count 1000000 --dim 512 --engine milvus

Descriptors of length 1 are made from a seed, block by block: streets in districts, whose images resemble each other the
less the farther apart they are. They go into an engine through the interface that --mode=index uses. Filling and
searching are processes of their own, whose memory is the greatest that was resident, pages of mapped files included.
"""

import argparse
import functools
import math
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from vpr.database.records import Records

BLOCK, DISTRICTS = 1000, 500  # images of a street, which are made at once; districts
LIKENESS = 0.9  # of what neighbouring images have in common
SHARES = (0.3, 0.5, 0.2)  # of the variance: the district's, the street's, the image's own
TOP, SAMPLE, ALONE, MANY = 20, 100, 10, 256  # hits; queries compared with exact search, asked one by one, and together


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        engine: faiss or milvus.
        index: FAISS's factory string, or Milvus's index; empty: exact.
        nprobe: lists of FAISS that are looked through.
        batch: images added at once.
        folder: of the engine's files.
    """

    count: int
    dim: int
    engine: str
    index: str
    nprobe: int
    batch: int
    folder: Path
    seed: int = 0


@dataclass(frozen=True)
class Synthetic:
    """Descriptors float16 [count, dim], made when they are asked for."""

    count: int
    dim: int
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.count, self.dim

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, wanted: "slice | np.ndarray") -> np.ndarray:
        rows = np.arange(self.count)[wanted]
        found = np.empty((len(rows), self.dim), np.float16)
        for number in np.unique(rows // BLOCK):
            own = rows // BLOCK == number
            found[own] = street(self.seed, self.dim, int(number))[rows[own] % BLOCK]
        return found


@functools.lru_cache(maxsize=64)
def street(seed: int, dim: int, number: int) -> np.ndarray:
    """The images BLOCK * number and on, float16 [BLOCK, dim]."""
    districts = np.random.default_rng(seed).standard_normal((DISTRICTS, dim), np.float32)
    random = np.random.default_rng([seed, number])
    district = districts[random.integers(DISTRICTS)]
    along, own = random.standard_normal((2, BLOCK, dim), np.float32)
    for row in range(1, BLOCK):  # an autoregressive process of variance 1
        along[row] = LIKENESS * along[row - 1] + math.sqrt(1 - LIKENESS**2) * along[row]
    parts = zip(SHARES, (district, along, own), strict=True)
    images = sum(math.sqrt(share) * part for share, part in parts)
    return (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float16)


def synthetic_records(start: int, count: int) -> Records:
    """Images 10 m apart in rows of 1,000."""
    numbers = np.arange(start, start + count)
    return Records(
        names=[f"city/{number:09}.jpg" for number in numbers],
        positions=np.stack([400_000 + 10.0 * (numbers % 1000), 5_400_000 + 10.0 * (numbers // 1000)], axis=1),
        zone="31N", sizes=numbers + 1, modified=numbers,
        hashes=np.repeat(numbers.astype("<i8").view(np.uint8).reshape(-1, 8), 4, axis=1), folders=[""] * count,
    )  # fmt: skip


def opened(task: Task) -> Any:
    """The engine of a task."""
    made_by = {"weights": "synthetic", "dim": str(task.dim)}
    if task.engine == "milvus":
        from vpr.database.engine import Source, WantedIndex
        from vpr.database.milvus.engine import open_engine

        source = Source(str(task.folder / "synthetic.db"), task.folder, "synthetic", task.dim, made_by, {})
        return open_engine(source, WantedIndex(task.index or None))
    from vpr.database.engine import Source, WantedIndex
    from vpr.database.faiss_engine import open_engine

    wanted = WantedIndex(task.index or None, nprobe=task.nprobe, on_disk="IVF" in task.index)
    path = task.folder / "database_synthetic.sqlite"
    return open_engine(Source("", path, "", task.dim, made_by, {}), wanted, anew=not path.exists())


def fill(task: Task) -> dict[str, float]:
    """Add all images, and finish: seconds of both, bytes on disk, greatest memory."""
    engine, values, seconds = opened(task), Synthetic(task.count, task.dim, task.seed), 0.0
    for start in range(0, task.count, task.batch):
        some = values[start : start + task.batch]
        records = synthetic_records(start, len(some))
        started = perf_counter()
        engine.add(records, some)
        seconds += perf_counter() - started
    while_adding, started = greatest_memory(), perf_counter()
    engine.finish()
    done = perf_counter()
    engine.close()
    return {
        "rows/s": task.count / seconds, "adding, s": seconds, "finishing, s": done - started,
        "on disk, MB": folder_bytes(task.folder) / 1e6, "memory while adding, MB": while_adding / 1e6,
        "memory until finished, MB": greatest_memory() / 1e6,
    }  # fmt: skip


def look(task: Task) -> dict[str, float]:
    """Open the engine and search: seconds, recall against exact search, greatest memory."""
    from vpr.database.engine_recall import recall_against_exact

    started = perf_counter()
    engine, values = opened(task), Synthetic(task.count, task.dim, task.seed)
    opening, after_opening = perf_counter() - started, greatest_memory()
    chosen = np.random.default_rng(1).permutation(task.count)[:MANY]
    queries = values[np.sort(chosen)].astype(np.float32)
    queries += 0.02 * np.random.default_rng(0).standard_normal(queries.shape, np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    engine.search(queries[:1], TOP)  # threads and caches
    alone = []
    for query in queries[:ALONE]:
        started = perf_counter()
        engine.search(query[None], TOP)
        alone.append(perf_counter() - started)
    started = perf_counter()
    engine.search(queries[:MANY], TOP)
    together = perf_counter() - started
    peak = greatest_memory()
    recall = recall_against_exact(engine, values, TOP, SAMPLE, task.seed)  # type: ignore[arg-type]  # as an array
    engine.close()
    return {
        "opening, s": opening, "memory when open, MB": after_opening / 1e6,
        "one query alone, ms": 1000 * float(np.median(alone)), "queries/s together": len(queries) / together,
        "memory while searching, MB": peak / 1e6, f"recall@{TOP} against exact, %": 100 * recall.found,
    }  # fmt: skip


def greatest_memory() -> int:
    """Bytes that were resident at once in this process, at most."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file)
    return 1024 * int(fields["VmHWM"].split()[0])


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def apart(work: Callable[[Task], dict[str, float]], task: Task) -> dict[str, float]:
    """Do it in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, task).result()


def main() -> int:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000, help="images (default: 100000)")
    parser.add_argument("--dim", type=int, default=512, help="dimensions of a descriptor (default: 512)")
    parser.add_argument("--engine", choices=("faiss", "milvus"), default="faiss")
    parser.add_argument("--index", default="", help="IVF4096,PQ64 of FAISS, HNSW of Milvus, ... (default: exact)")
    parser.add_argument("--nprobe", type=int, default=16, help="lists of FAISS's IVF looked through (default: 16)")
    parser.add_argument("--batch", type=int, default=10_000, help="images added at once (default: 10000)")
    parser.add_argument("--folder", type=Path, help="where files are made for the time (default: the system's)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="engines-", dir=options.folder))
    try:
        task = Task(options.count, options.dim, options.engine, options.index, options.nprobe, options.batch, folder)
        print(f"{task.engine} {task.index or 'exact'}: {task.count:,} x {task.dim}-D", flush=True)
        for work in (fill, look):
            for name, value in apart(work, task).items():
                print(f"{name:>36} {value:12,.2f}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
