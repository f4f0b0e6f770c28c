"""A whole training epoch, the textbook way and this project's way, and what the trunk cache is worth."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from benchmarks import textbook, textbook_training
from benchmarks.measure import Timing
from benchmarks.report import Row
from benchmarks.stages import Bench
from vpr.artifacts.centroids import init_pooling
from vpr.data.reader import PhotoReader
from vpr.descriptors.describe import describe
from vpr.descriptors.trunk_cache import cached_source
from vpr.models.place_model import PlaceModel
from vpr.training.state import TrainingState, build_optimizer, new_state, splits_of
from vpr.training.trainer import TrainingSet, load_training_set, query_blocks, train_epoch


@dataclass(frozen=True)
class EpochTimes:
    """Seconds and tuples of one epoch both ways."""

    plain: float
    fast: float
    plain_tuples: int
    fast_tuples: int


def epoch(bench: Bench, arch: str, queries: int | None) -> list[Row]:
    """Train two epochs; time the second both ways, from the same weights. Also time a refresh from the cache.

    Args:
        queries: train on the first so many of the epoch's queries; None on all.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = bench.options(
            arch, "--mode=train", f"--dataset={bench.dataset}", f"--root={bench.root}", f"--cachePath={folder}",
            f"--dataPath={folder}", f"--precision={bench.precision}", "--trunkCache=memory",
        )  # fmt: skip
        _cluster(options)
        training = load_training_set(options)
        if queries:
            first_epochs = query_blocks(training.usable, options, 2)[0][:queries]
            training = TrainingSet(training.photos, training.positives, training.not_negatives, first_epochs)
        model = bench.model(options)
        init_pooling(model, options)
        state = new_state(model, options, splits_of(training.photos), bench.device)
        reader = PhotoReader(training.photos.files, options.imageSize, options.threads)
        started = perf_counter()
        source = cached_source(reader, "benchmark", model, "memory", Path(folder))
        filling = perf_counter() - started
        train_epoch(state, training, source, options, bench.device, Path(folder))
        state.position.start_next_epoch()
        times = _second_epoch(bench, state, training, source, options, Path(folder))
        photos = f"{len(training.photos.database_files)} + {len(training.usable)} photos"
        rows = [_refresh_row(bench, arch, model, reader, source, options, filling)]
    setting = f"{arch}, {photos}, tuples {times.plain_tuples} / {times.fast_tuples}"
    return [*rows, Row("training epoch, the second", setting, _once(times.plain), _once(times.fast))]


def _second_epoch(bench: Bench, state: TrainingState, training, source, options, folder: Path) -> EpochTimes:
    plain = textbook.textbook_of(state.model)
    optimizer = build_optimizer(plain, options)
    order = query_blocks(training.usable, options, 2)
    rules = textbook_training.EpochRules(
        size=options.imageSize, block=options.cacheRefreshRate, batch_size=options.batchSize,
        cache_batch_size=options.cacheBatchSize, workers=options.threads, sample=options.nNegSample,
        negatives=options.nNeg, margin=options.margin,
    )  # fmt: skip
    bench.synchronize()
    started = perf_counter()
    _, plain_tuples = textbook_training.train_epoch(
        plain, optimizer, training.photos.files, len(training.photos.database_files),
        [query for block in order for query in block.tolist()], training.positives, training.not_negatives,
        folder / "features.h5", rules,
    )  # fmt: skip
    bench.synchronize()
    plain_seconds = perf_counter() - started
    started = perf_counter()
    train_epoch(state, training, source, options, bench.device, folder)
    bench.synchronize()
    return EpochTimes(plain_seconds, perf_counter() - started, plain_tuples, state.position.tuples)


@torch.no_grad()
def _refresh_row(bench: Bench, arch: str, model: PlaceModel, reader, source, options, filling: float) -> Row:
    """Descriptors of all database photos: from files by the textbook, from the trunk cache here."""
    count = min(len(reader.files), 200)
    plain = textbook.textbook_of(model)
    slow, quick = bench.compare(
        lambda: textbook.describe(
            plain, reader.files[:count], options.imageSize, options.cacheBatchSize, options.threads
        ),
        lambda: describe(model, source, range(count), options.cacheBatchSize, "benchmark"),
        1,
    )
    limit = f"{count / quick.median:.3g} images/s; making the cache took {filling:.3g} s for {len(reader.files)} photos"
    return Row(
        f"descriptor refresh from the trunk cache, {arch}",
        f"{count} photos",
        slow,
        quick,
        None,
        source.stored_bytes,
        limit,
    )


def _cluster(options) -> None:
    from vpr.modes import cluster

    cluster.run(options)


def _once(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, 1)
