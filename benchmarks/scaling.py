"""python -m benchmarks.scaling: time and memory of each stage at 1,000, 10,000 and 100,000 images.

Images and descriptors are random: time and memory do not depend on what they show. Each measurement runs
in a process of its own, so that one's memory is not another's.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from benchmarks.measure import peak_memory
from benchmarks.report import machine
from benchmarks.stages import DIM, unit_rows
from pittsburgh import Places
from vpr.common.files import atomic_write
from vpr.common.memory import keep_large_blocks
from vpr.data.places import PlaceImages
from vpr.data.reader import SizeGroup
from vpr.descriptors.describe import describe
from vpr.models.place_model import build_model
from vpr.models.spec import ModelSpec
from vpr.runs.descriptors_file import SplitDescriptors
from vpr.training.mining import NO_IMAGE, mine
from vpr.training.rules import TrainingRules

SIZES = (1_000, 10_000, 100_000)
QUERIES = 1000
SMALL = (64, 80)  # height, width of the random images: the stage's own cost, not the convolutions', is looked at
MODEL = ModelSpec("alexnet", "none", clusters=128)  # 32,768-D


@dataclass(frozen=True)
class Measured:
    """One stage at one size: seconds, and bytes at the peak beside what imports take."""

    stage: str
    images: int
    seconds: float
    bytes: int


class RandomImages:
    """A source of random images."""

    def __init__(self, count: int):
        self.size = None
        self.files = [Path(f"{index}.jpg") for index in range(count)]

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[SizeGroup]]:
        """As many random images as each batch has."""
        for batch in batches:
            values = np.random.default_rng(0).integers(0, 256, (len(batch), *SMALL, 3), np.uint8).transpose(0, 3, 1, 2)
            yield [SizeGroup(np.arange(len(batch)), values, SMALL)]


def describing(count: int) -> None:
    """AlexNet and NetVLAD with 128 clusters, 32,768-D, on images of 80x64 pixels."""
    model = build_model(MODEL).to_device(torch.device("cpu"), "auto")
    describe(model, RandomImages(count), range(count), 64, "describing")


def mining(count: int) -> None:
    """Tuples of 1000 queries, 1000 random negatives each."""
    database, queries = unit_rows(count, 0), unit_rows(QUERIES, 1)
    positives = [np.arange(query, query + 5) % count for query in range(QUERIES)]
    hard_negative_cache = np.full((QUERIES, 10), NO_IMAGE)
    started = perf_counter()
    mine(
        np.arange(QUERIES), database, queries, positives, positives, hard_negative_cache,
        TrainingRules(seed=0), 1,
    )  # fmt: skip
    _took(perf_counter() - started)


def testing(count: int, queries: int = QUERIES) -> None:
    """What --mode=test does once descriptors are there: exact search and Recall@N."""
    from vpr.evaluation.evaluate import measure_each

    places = Places(
        name="random", database_names=[f"{index}.jpg" for index in range(count)],
        query_names=[f"q{index}.jpg" for index in range(queries)],
        database_positions=np.stack([10.0 * np.arange(count), np.zeros(count)], axis=1),
        query_positions=np.stack([10.0 * np.arange(queries), np.ones(queries)], axis=1),
        positive_radius=25.0, training_positive_radius=10.0, database_times=None, query_times=None,
    )  # fmt: skip
    images = PlaceImages(places, "test", [Path(name) for name in places.database_names], [])
    descriptors = SplitDescriptors(unit_rows(count, 0), unit_rows(queries, 1), {SMALL})
    model = build_model(MODEL)
    started = perf_counter()
    next(measure_each(descriptors, model, images, [1, 5, 10, 20]))
    _took(perf_counter() - started)


STAGES = {"describing": describing, "mining": mining, "testing": testing}
_seconds: list[float] = []


def _took(seconds: float) -> None:
    _seconds.append(seconds)


def measured(stage: str, *arguments: int) -> Measured:
    """Run a stage in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        seconds, count = pool.apply(_run, (stage, *arguments))
    return Measured(stage, arguments[0], seconds, count)


def _run(stage: str, *arguments: int) -> tuple[float, int]:
    keep_large_blocks()
    started = perf_counter()
    count = peak_memory(lambda: STAGES[stage](*arguments))
    return (_seconds or [perf_counter() - started])[-1], count


def table(found: list[Measured]) -> str:
    """Seconds and gigabytes of each stage by number of images, as Markdown."""
    lines = [
        "| images | describing, s | mining 1000 queries, s | testing 1000 queries, s | peak of the three, GB | "
        "2 bytes x images x dimension, GB |",
        "|---|---|---|---|---|---|",
    ]
    for size in sorted({row.images for row in found}):
        rows = {row.stage: row for row in found if row.images == size}
        peaks = " / ".join(f"{rows[stage].bytes / 1e9:.2f}" if stage in rows else "-" for stage in STAGES)
        seconds = " | ".join(f"{rows[stage].seconds:.3g}" if stage in rows else "-" for stage in STAGES)
        lines.append(f"| {size:,} | {seconds} | {peaks} | {2 * size * DIM / 1e9:.2f} |")
    return "\n".join(lines) + "\n"


def draw(found: list[Measured], path: Path) -> None:
    """Time and memory against the number of images, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for stage in STAGES:
        rows = sorted((row for row in found if row.stage == stage), key=lambda row: row.images)
        left.loglog([row.images for row in rows], [row.seconds for row in rows], "o-", label=stage)
        right.loglog([row.images for row in rows], [row.bytes / 1e9 for row in rows], "o-", label=stage)
    right.loglog(SIZES, [2 * size * DIM / 1e9 for size in SIZES], "k--", label="2 bytes x images x dimension")
    for axes, name in ((left, "seconds"), (right, "GB at the peak")):
        axes.set(xlabel="images", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write scaling.md, scaling.json and scaling.png."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=SIZES, help="sizes (default: 1000 10000 100000)")
    parser.add_argument("--out", default="benchmarks/out", help="folder of the three files")
    options = parser.parse_args(arguments)
    folder, found = Path(options.out), []
    for size in options.images:
        for stage in STAGES:
            found.append(measured(stage, size))
            print(found[-1], flush=True)
    about = f"{machine(torch.device('cpu'))}; {DIM} dimensions, float16, {QUERIES} queries"
    with atomic_write(folder / "scaling.md") as path:
        path.write_text(f"{about}\n\n{table(found)}", encoding="utf-8")
    with atomic_write(folder / "scaling.json") as path:
        path.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in found]}, indent=2) + "\n")
    draw(found, folder / "scaling.png")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
