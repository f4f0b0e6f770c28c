"""--mode=train: weakly supervised training on tuples of query, positive and hard negatives.

Epoch: a fresh permutation of the queries, in blocks. Block: describe all training photos with the
model as it is, mine the block's tuples from these descriptors, take gradient steps on them. After the
epoch: validate, keep the best. A checkpoint follows each block and each epoch. With pretrained weights
all passes start from what the frozen layers made of each photo, computed once (`vpr/trunk_cache.py`).
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from vpr import processes
from vpr.board import Board, report_epoch
from vpr.centroids import start_pooling
from vpr.descriptors import Source, describe
from vpr.errors import UserError
from vpr.images import PhotoReader
from vpr.memory import where_it_fits
from vpr.metrics import Metrics, peak_memory_mb
from vpr.mining import MiningRules, TrainingTuple, batches_of_queries, mine
from vpr.model import PlaceModel, build_model, choose_device, describe_model, device_line
from vpr.places import PlacePhotos, load_places, require_queries
from vpr.precision import compute_dtype
from vpr.progress import say
from vpr.runs import create_run, read_flags, save_checkpoint
from vpr.steps import train_block
from vpr.training_state import TrainingState, load_state, new_state, run_flags, splits_of
from vpr.trunk_cache import cached_source
from vpr.validation import measure_best, open_test_split, validate

# A resumed run may get other values of these; it then no longer ends as one that was never stopped.
CHANGES_THE_END = ("root", "precision", "cacheBatchSize", "trunkCache", "evalEvery", "patience")


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """The training split with, for each query, its potential positives and what may not be a negative."""

    photos: PlacePhotos
    positives: list[np.ndarray]
    not_negatives: list[np.ndarray]
    usable: np.ndarray  # queries that have a positive


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the photos of the two splits come from, each the database's, then the queries'."""

    training: Source
    validation: Source


def run(options: argparse.Namespace) -> None:
    """Train a new run, or go on with that of --resume; at the end test the best model."""
    training, validation = load_training_set(options), load_places(options, "val")
    require_queries(validation)
    test = open_test_split(options)
    device = choose_device(options)
    say(device_line(device))
    state, run_folder = _start_or_resume(options, training, validation, device)
    say(f"run: {run_folder}\n{describe_model(options, state.model)}, trained from {options.trainFrom} on")
    position, folder = state.position, run_folder / options.savePath
    if position.epoch > options.nEpochs:
        say(f"all {options.nEpochs} epochs are trained: give a larger --nEpochs to go on")
        sources = Sources(_reader(training.photos, options, device), _reader(validation, options, device))
    else:
        sources = Sources(
            _cached(training.photos, state.model, options, device), _cached(validation, state.model, options, device)
        )
    metrics = Metrics(run_folder, position.epoch)
    with Board(run_folder, position.epoch) as board:
        while position.epoch <= options.nEpochs and not _out_of_patience(state, options):
            started = time.monotonic()
            photos = train_epoch(state, training, sources.training, options, device, folder)
            row = _epoch_row(state, photos, time.monotonic() - started, options, device)
            report_epoch(board, row, options.nEpochs)
            better, recalls = False, {}
            if position.epoch % options.evalEvery == 0 or position.epoch == options.nEpochs:
                better, recalls = validate(board, state, validation, sources.validation, options, device)
            metrics.add(row, recalls)
            position.start_next_epoch()
            _save(folder, state, options, best=better)
    measure_best(options, run_folder, test, validation, sources.validation, device)


def train_epoch(
    state: TrainingState,
    training: TrainingSet,
    source: Source,
    options: argparse.Namespace,
    device: torch.device,
    folder: Path,
) -> int:
    """Train on all queries once, from the block on at which the state stands.

    Returns:
        photos that went through the model, each time they did.
    """
    position, photos = state.position, 0
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(options, position.epoch)
    blocks = query_blocks(training.usable, options, position.epoch)
    while position.blocks_done < len(blocks):
        name = f"epoch {position.epoch} block {position.blocks_done + 1}/{len(blocks)}"
        queries = blocks[position.blocks_done]
        tuples = mine_block(state, training, source, queries, options, device, name)
        batches = batches_of_queries(queries, tuples, options.batchSize)
        train_block(state, source, len(training.photos.database_files), batches, options, device, name)
        photos += len(training.photos.database_files) + len(queries)
        photos += sum(2 + len(each.negatives) for each in tuples)
        position.blocks_done += 1
        _save(folder, state, options)
    return photos


def learning_rate(options: argparse.Namespace, epoch: int) -> float:
    """The rate of an epoch (from 1): multiplied by lrGamma every lrStep epochs."""
    return options.lr * options.lrGamma ** ((epoch - 1) // options.lrStep)


def query_blocks(usable: np.ndarray, options: argparse.Namespace, epoch: int) -> list[np.ndarray]:
    """A fresh permutation of the queries, cut where descriptors are refreshed.

    The interval doubles with each drop of the learning rate: the slower the model changes, the longer
    its descriptors stay true (the original release does so).
    """
    order = np.random.default_rng([options.seed, epoch]).permutation(usable)
    if options.cacheRefreshRate == 0:
        return [order]
    interval = options.cacheRefreshRate * 2 ** ((epoch - 1) // options.lrStep)
    return [order[start : start + interval] for start in range(0, len(order), interval)]


def mine_block(
    state: TrainingState,
    training: TrainingSet,
    source: Source,
    queries: np.ndarray,
    options: argparse.Namespace,
    device: torch.device,
    name: str,
) -> list[TrainingTuple]:
    """Describe the database and the block's queries with the model as it is, and choose tuples."""
    database_size = len(training.photos.database_files)
    photos = [*range(database_size), *(database_size + queries).tolist()]
    descriptors, _ = describe(state.model, source, photos, options, device, f"{name}: descriptors")
    if not processes.is_main():
        return processes.from_main(None)
    descriptors = where_it_fits(descriptors, device)
    tuples = mine(
        queries,
        descriptors[:database_size],
        descriptors[database_size:],
        training.positives,
        training.not_negatives,
        state.remembered,
        MiningRules(options.nNeg, options.nNegSample, options.margin, options.seed),
        state.position.epoch,
    )
    return processes.from_main(tuples)


def load_training_set(options: argparse.Namespace) -> TrainingSet:
    """The training split. Queries without a potential positive are left out, aloud."""
    photos = load_places(options, "train")
    require_queries(photos)
    positives = photos.places.training_positives()
    usable = np.flatnonzero([len(indices) > 0 for indices in positives])
    say(
        f"{photos.places.name}: {len(photos.database_files)} database photos, {len(usable)} queries; "
        f"{len(positives) - len(usable)} queries without a potential positive are left out"
    )
    if len(photos.database_files) < 2 * options.nNeg or len(usable) < options.batchSize:
        raise UserError(
            f"{photos.places.name} has {len(photos.database_files)} database photos and {len(usable)} usable queries: "
            f"training needs {2 * options.nNeg} (2 x --nNeg) and {options.batchSize} (--batchSize) at least; "
            "add photos, or cluster and test without training"
        )
    return TrainingSet(photos, positives, photos.places.not_negatives(), usable)


def _start_or_resume(
    options: argparse.Namespace, training: TrainingSet, validation: PlacePhotos, device: torch.device
) -> tuple[TrainingState, Path]:
    splits = splits_of(training.photos, validation)
    if options.run:
        state = load_state(options, splits, device)
        _say_what_changed(options, device)
        return state, options.run
    torch.manual_seed(options.seed)
    model = build_model(options)
    start_pooling(model, options)
    state, run_folder = new_state(model, options, splits, device), None
    if processes.is_main():
        run_folder = create_run(
            Path(options.runsPath), options.arch, options.pooling, run_flags(options, state.model),
            options.savePath, state.checkpoint(options),
        )  # fmt: skip
    return state, processes.from_main(run_folder)


def _say_what_changed(options: argparse.Namespace, device: torch.device) -> None:
    """A line for the flags that were typed for a resumed run and change how it ends."""
    stored = read_flags(options.run)
    same = {
        "root": lambda one, other: Path(one).resolve() == Path(other).resolve(),
        "precision": lambda one, other: compute_dtype(one, device) == compute_dtype(other, device),
    }
    changed = [
        f"--{name}={options.given[name]} (was {stored[name]})"
        for name in CHANGES_THE_END
        if name in options.given
        and name in stored
        and not same.get(name, lambda one, other: one == other)(options.given[name], stored[name])
    ]
    if changed:
        say(f"{', '.join(changed)}: from here on this run differs from one that was never stopped")


def _reader(photos: PlacePhotos, options: argparse.Namespace, device: torch.device) -> PhotoReader:
    return photos.reader(options.imageSize, options.threads, device)


def _cached(photos: PlacePhotos, model: PlaceModel, options: argparse.Namespace, device: torch.device) -> Source:
    size = "x".join(map(str, options.imageSize)) if options.imageSize else "own"
    name = f"{photos.places.name}-{photos.places.fingerprint()[:6]}-{size}"
    return cached_source(_reader(photos, options, device), name, model, options, device)


def _save(folder: Path, state: TrainingState, options: argparse.Namespace, best: bool = False) -> None:
    if processes.is_main():
        save_checkpoint(folder, state.checkpoint(options), best)


def _out_of_patience(state: TrainingState, options: argparse.Namespace) -> bool:
    stop = 0 < options.patience <= state.position.epochs_without_gain
    if stop:
        say(f"no better validation for {state.position.epochs_without_gain} epochs: stopping")
    return stop


def _epoch_row(
    state: TrainingState, photos: int, seconds: float, options: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """The figures of the epoch under way, by the columns of metrics.csv."""
    position = state.position
    return {
        "epoch": position.epoch,
        "loss": position.loss_sum / max(position.batches, 1),
        "tuples": position.tuples,
        "violating_per_tuple": position.violating / max(position.tuples, 1),
        "learning_rate": learning_rate(options, position.epoch),
        "seconds": seconds,
        "images_per_second": photos / seconds,
        "memory_mb": peak_memory_mb(device),
    }
