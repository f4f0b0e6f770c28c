"""A whole training epoch, the textbook way and this project's way, and what the trunk cache is worth."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch

from benchmarks import textbook, textbook_training
from benchmarks.measure import Timing
from benchmarks.report import Row
from benchmarks.stages import Bench
from vpr.data.reader import ImageReader, Reading
from vpr.descriptors.describe import describe
from vpr.descriptors.trunk_cache import FrozenFeatures, cached_source
from vpr.descriptors.vocabulary import cluster, sample_local_descriptors
from vpr.models.place_model import PlaceModel
from vpr.training.rules import TrainingRules
from vpr.training.state import new_state, splits_of
from vpr.training.trainer import Sources, Trainer
from vpr.training.training_set import load_training_set

BATCH_SIZE = 24  # images described at once


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
        spec, rules, read = bench.spec(arch), TrainingRules(), bench.reading()
        training = load_training_set(bench.places, rules)
        if queries:
            training = replace(training, usable=rules.query_blocks(training.usable, 2)[0][:queries])
        model = bench.model(spec)
        _start_from_clusters(model, read.of(training.images.database_files))
        state = new_state(model, rules, splits_of(training.images))
        reader = read.of(training.images.files)
        started = perf_counter()
        source = cached_source(reader, "benchmark", model, "memory", Path(folder), BATCH_SIZE)
        filling = perf_counter() - started
        trainer = Trainer(
            state, training, training.images, Sources(source, source), rules, Path(folder), batch_size=BATCH_SIZE
        )
        trainer.epoch()
        state.position.start_next_epoch()
        times = _second_epoch(bench, trainer, read)
        images = f"{len(training.images.database_files)} + {len(training.usable)} images"
        rows = [_refresh_row(bench, model, reader, source, BATCH_SIZE, filling)]
    setting = f"{arch}, {images}, tuples {times.plain_tuples} / {times.fast_tuples}"
    return [*rows, Row("training epoch, the second", setting, _once(times.plain), _once(times.fast))]


def _start_from_clusters(model: PlaceModel, reader: ImageReader) -> None:
    """Start NetVLAD as --mode=cluster and --mode=train do."""
    spec = model.spec
    descriptors = sample_local_descriptors(model, reader, spec.seed, BATCH_SIZE, at_least=spec.clusters)
    centroids = cluster(descriptors, spec.clusters, spec.seed)
    model.pool.init_from(*(torch.from_numpy(rows).to(model.device) for rows in (centroids, descriptors)))


def _second_epoch(bench: Bench, trainer: Trainer, read: Reading) -> EpochTimes:
    """The epoch under way, by the textbook and by the trainer, from the same weights."""
    plain, rules, training = textbook.textbook_of(trainer.model), trainer.rules, trainer.training
    optimizer = textbook.optimizer_of(plain, rules)
    order = rules.query_blocks(training.usable, trainer.state.position.epoch)
    textbook_rules = textbook_training.EpochRules(
        size=read.size, block=rules.refresh_every, batch_size=rules.batch_size, cache_batch_size=trainer.batch_size,
        workers=read.workers, sample=rules.negative_sample, negatives=rules.negatives, margin=rules.margin,
    )  # fmt: skip
    bench.synchronize()
    started = perf_counter()
    _, plain_tuples = textbook_training.train_epoch(
        plain, optimizer, training.images.files, len(training.images.database_files),
        [query for block in order for query in block.tolist()], training.positives, training.not_negatives,
        trainer.folder / "features.h5", textbook_rules,
    )  # fmt: skip
    bench.synchronize()
    plain_seconds = perf_counter() - started
    started = perf_counter()
    trainer.epoch()
    bench.synchronize()
    return EpochTimes(plain_seconds, perf_counter() - started, plain_tuples, trainer.state.position.tuples)


@torch.no_grad()
def _refresh_row(
    bench: Bench, model: PlaceModel, reader: ImageReader, source: FrozenFeatures, batch_size: int, filling: float
) -> Row:
    """Descriptors of all database images: from files by the textbook, from the trunk cache here."""
    count = min(len(reader.files), 200)
    plain = textbook.textbook_of(model)
    slow, quick = bench.compare(
        lambda: textbook.describe(plain, reader.files[:count], reader.size, batch_size, reader.workers),
        lambda: describe(model, source, range(count), batch_size, "benchmark"),
        1,
    )
    limit = f"{count / quick.median:.3g} images/s; making the cache took {filling:.3g} s for {len(reader.files)} images"
    return Row(
        f"descriptor refresh from the trunk cache, {model.spec.arch}",
        f"{count} images",
        slow,
        quick,
        None,
        source.stored_bytes,
        limit,
    )


def _once(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, 1)
