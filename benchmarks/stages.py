"""Each stage of the pipeline, done the textbook way and this project's way, in one run."""

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks import textbook
from benchmarks.ceilings import Ceilings
from benchmarks.measure import Timing, compare, cuda_peak_memory, peak_memory_alone, time_of
from benchmarks.report import Row
from vpr.common.memory import available_cores
from vpr.data.images import decode
from vpr.data.places import PlacesSpec
from vpr.data.reader import Reading, SizeGroup, in_batches
from vpr.descriptors.describe import describe
from vpr.models.flops import count_gflop
from vpr.models.place_model import PlaceModel, build_model
from vpr.models.poolings.netvlad_pooling import NetVLADPooling
from vpr.models.spec import ModelSpec
from vpr.search.exact import nearest
from vpr.training.mining import NO_IMAGE, mine
from vpr.training.rules import TrainingRules

LAYER = (24, 512, 30, 40)  # conv5 of VGG16 on 24 images of 640x480 pixels
CLUSTERS = 64
FORWARD_FLOP = 2 * 2 * LAYER[0] * CLUSTERS * LAYER[1] * LAYER[2] * LAYER[3]
DIM = 32768
MINING_QUERIES, MINING_DATABASE, MINING_SAMPLE = 1000, 10_000, 1000


@dataclass(frozen=True)
class Bench:
    """Where and with what things are measured.

    Attributes:
        weights: a state-dict file for each backbone.
        images: real images to describe.
        dataset, root: places whose train split makes the training epoch, as main.py takes them.
        repeats: runs of each side.
    """

    device: torch.device
    ceilings: Ceilings
    weights: dict[str, str]
    images: list[Path]
    dataset: str
    root: str
    repeats: int
    precision: str = "auto"

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def places(self) -> PlacesSpec:
        """The places of the training epoch."""
        return PlacesSpec(self.dataset, Path(self.root))

    def spec(self, arch: str) -> ModelSpec:
        """NetVLAD on a backbone with its weights."""
        return ModelSpec(arch, self.weights[arch], clusters=CLUSTERS)

    def reading(self, size: tuple[int, int] | None = None) -> Reading:
        """Images at (height, width) in pixels, or their own size, read as main.py does."""
        return Reading(size, min(8, available_cores()), self.device)

    def model(self, spec: ModelSpec) -> PlaceModel:
        """A model whose centres are random and near 0, where local descriptors lie."""
        torch.manual_seed(0)
        model = build_model(spec)
        torch.nn.init.normal_(model.pool.centroids, std=0.02)
        torch.nn.init.normal_(model.pool.conv.weight, std=3.0)
        return model.to_device(self.device, self.precision).eval()

    def compare(self, plain: Callable, fast: Callable, repeats: int | None = None) -> tuple[Timing, Timing]:
        """Time both ways in turn."""
        return compare(plain, fast, repeats or self.repeats, 1, self.synchronize)


def layer(bench: Bench, backward: bool) -> Row:
    """The NetVLAD layer on a map in memory."""
    fast = NetVLADPooling(CLUSTERS, LAYER[1]).to(bench.device)
    plain = textbook.LoopNetVLAD(CLUSTERS, LAYER[1]).to(bench.device)
    plain.load_state_dict(fast.state_dict())
    features = torch.randn(LAYER, device=bench.device)
    features = features.to(memory_format=torch.channels_last).requires_grad_(backward)

    def work(module: torch.nn.Module) -> Callable:
        return lambda: _pool(module, features, backward)

    slow, quick = bench.compare(work(plain), work(fast), 3)
    products = time_of(lambda: _products(features.detach(), backward), bench.repeats, 1, bench.synchronize)
    if bench.device.type == "cuda":
        memory = [cuda_peak_memory(work(module), bench.device) for module in (plain, fast)]
    else:
        memory = [peak_memory_alone(_pool_alone, module, backward) for module in ("loop", "fast")]
    what = "forward + backward" if backward else "forward"
    count = "six products" if backward else "two products"
    limit = f"its {count} alone {products.median:.3g} s: {quick.median / products.median:.2f} of that"
    return Row(f"NetVLAD layer, {what}", f"{list(LAYER)}, K={CLUSTERS}", slow, quick, *memory, limit)


def _products(features: torch.Tensor, backward: bool) -> None:
    """The matrix products alone: w x and a x; backward also G x, dL x and the two that make dx."""
    features = features.flatten(2)
    weight, sums = features.new_ones(CLUSTERS, LAYER[1]), features.new_ones(LAYER[0], CLUSTERS, LAYER[1])
    for _ in range(2 if backward else 1):
        logits = weight @ features
        _ = logits @ features.transpose(1, 2)
    if backward:
        _ = torch.cat([sums, sums], dim=1).transpose(1, 2) @ torch.cat([logits, logits], dim=1)


def _pool(module: torch.nn.Module, features: torch.Tensor, backward: bool) -> None:
    if not backward:
        with torch.no_grad():
            module(features)
        return
    features.grad = None
    module.zero_grad()
    module(features).sum().backward()


def _pool_alone(which: str, backward: bool) -> Callable:
    """The work on a map that is there already, after one on a small map, which sets up threads and libraries."""
    module = NetVLADPooling(CLUSTERS, LAYER[1]) if which == "fast" else textbook.LoopNetVLAD(CLUSTERS, LAYER[1])
    small, whole = (
        torch.randn(count, LAYER[2], LAYER[3], LAYER[1]).permute(0, 3, 1, 2).requires_grad_(backward)  # channels last
        for count in (1, LAYER[0])
    )
    _pool(module, small, backward)
    return functools.partial(_pool, module, whole, backward)


def decoding(bench: Bench) -> Row:
    """Files to what a worker hands over: float32, normalised, against bytes."""
    images = bench.images[:100]
    mean, std = torch.full((1, 3, 1, 1), 120.0), torch.full((1, 3, 1, 1), 60.0)
    normalised = textbook.NormalizedImages(images, None, mean, std)
    slow, quick = bench.compare(
        lambda: [normalised[index] for index in range(len(images))], lambda: [decode(file) for file in images]
    )
    height, width = decode(images[0]).shape[1:]
    limit = f"{len(images) / quick.median:.0f} images/s in one process; 1 byte a value handed over, not 4"
    setting = f"{len(images)} images of {width}x{height}"
    size = 3 * height * width
    return Row("decoding in one worker", setting, slow, quick, 4 * size, size, limit)


@dataclass(frozen=True)
class HeldImages:
    """Images that are decoded already, as a source of `describe`: the batches that a reader gave for them."""

    files: list[Path]
    loaded: list[list[SizeGroup]]
    size: tuple[int, int] | None = None

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[SizeGroup]]:
        """The batches in memory; they must be those asked for."""
        if [len(batch) for batch in batches] != [sum(len(group.rows) for group in each) for each in self.loaded]:
            raise ValueError("other batches are held")
        return iter(self.loaded)


def extraction(bench: Bench, arch: str, size: tuple[int, int] | None, count: int, batch: int) -> Row:
    """Files to descriptors, the whole way; and the model alone: the same from images that are decoded already."""
    model, images = bench.model(bench.spec(arch)), bench.images[:count]
    plain = textbook.textbook_of(model)
    reader = bench.reading(size).of(images)
    slow, quick = bench.compare(
        lambda: textbook.describe(plain, images, size, batch, reader.workers),
        lambda: describe(model, reader, range(count), batch, "benchmark"),
    )
    held = HeldImages(images, list(reader.batches(in_batches(count, batch))))
    whole, alone = bench.compare(
        lambda: describe(model, reader, range(count), batch, "benchmark"),
        lambda: describe(model, held, range(count), batch, "model alone"),
    )
    rate, alone_rate = count / whole.median, count / alone.median
    height, width = held.loaded[0][0].image_size
    gflop = count_gflop(model.backbone, torch.empty(1, 3, height, width, device="meta"))
    limit = (
        f"{rate:.3g} images/s, the model alone {alone_rate:.3g}: {100 * rate / alone_rate:.0f} %; "
        f"{gflop:.3g} GFLOP an image: {alone_rate * gflop:.0f} GFLOP/s"
    )
    return Row(f"extraction, {arch}", f"{count} images at {width}x{height}", slow, quick, limit=limit)


def mining(bench: Bench, plain_queries: int) -> Row:
    """Tuples of 1000 queries, 1000 random negatives each, from descriptors that are there already.

    The textbook way reads each query's candidates from HDF5; it is timed on fewer queries and scaled up.
    """
    random = np.random.default_rng(0)
    positives = [np.sort(random.permutation(MINING_DATABASE)[:10]) for _ in range(MINING_QUERIES)]
    database, queries = unit_rows(MINING_DATABASE, 0), unit_rows(MINING_QUERIES, 1)
    database, queries = database.to(bench.device), queries.to(bench.device)
    rules = TrainingRules(negatives=10, negative_sample=MINING_SAMPLE, margin=0.1, seed=0)

    def fast() -> None:
        hard_negative_cache = np.full((MINING_QUERIES, 10), NO_IMAGE)
        mine(np.arange(MINING_QUERIES), database, queries, positives, positives, hard_negative_cache, rules, 1)

    quick = time_of(fast, bench.repeats, 1, bench.synchronize)
    with tempfile.TemporaryDirectory() as folder, h5py.File(Path(folder) / "features.h5", "w") as file:
        features = file.create_dataset("features", (MINING_DATABASE + MINING_QUERIES, DIM), np.float32)
        for start in range(0, MINING_DATABASE, 1000):
            features[start : start + 1000] = database[start : start + 1000].float().cpu().numpy()
        features[MINING_DATABASE:] = queries.float().cpu().numpy()
        slow = time_of(lambda: _mine_textbook(features, positives, plain_queries), 1, 0)
    slow = scaled(slow, MINING_QUERIES / plain_queries)
    product = 2 * MINING_QUERIES * MINING_DATABASE * DIM / 1e9 / bench.ceilings.product
    limit = f"the product of all queries and all database at the ceiling: {product:.3g} s; textbook on {plain_queries}"
    setting = f"{MINING_QUERIES} queries, {MINING_SAMPLE} of {MINING_DATABASE} x {DIM}"
    memory = (4 * DIM * (MINING_DATABASE + MINING_QUERIES), database.nbytes + queries.nbytes)
    return Row("mining", setting, slow, quick, *memory, limit)


def _mine_textbook(features: h5py.Dataset, positives: list[np.ndarray], count: int) -> None:
    generator = np.random.default_rng(0)
    for query in range(count):
        near = positives[query]
        textbook.mine_query(
            features, MINING_DATABASE + query, near, near, MINING_DATABASE, generator, MINING_SAMPLE, 10, 0.1
        )


def search(bench: Bench, database_size: int, query_count: int) -> Row:
    """Exact search; the textbook way keeps all in float32 in a FAISS index."""
    database, queries = unit_rows(database_size, 0), unit_rows(query_count, 1)
    slow, quick = bench.compare(
        lambda: _search_textbook(database.float().numpy(), queries.float().numpy()),
        lambda: nearest(database, queries, 20),
    )
    product = 2 * database_size * query_count * DIM / 1e9 / bench.ceilings.product
    limit = f"the product at the ceiling: {product:.3g} s; held: 2 bytes a value, not 4 twice"
    setting = f"{query_count} queries in {database_size} x {DIM}"
    return Row("exact search", setting, slow, quick, 8 * database.numel(), database.nbytes, limit)


def _search_textbook(database: np.ndarray, queries: np.ndarray) -> None:
    import faiss

    index = faiss.IndexFlatL2(DIM)
    index.add(database)
    index.search(queries, 20)


def unit_rows(count: int, seed: int) -> torch.Tensor:
    """Random descriptors of length 1, float16 [count, DIM]."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(count, DIM, dtype=torch.float16)
    for part in rows.split(1000):
        part.copy_(torch.nn.functional.normalize(torch.randn(part.shape, generator=generator), dim=1))
    return rows


def scaled(timing: Timing, factor: float) -> Timing:
    """What a part took, times how many such parts the whole has."""
    return replace(timing, median=factor * timing.median, low=factor * timing.low, high=factor * timing.high)
