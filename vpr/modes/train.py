"""--mode=train: weakly supervised training on tuples of query, positive and hard negatives.

Epoch: a fresh permutation of the queries, in blocks. Block: describe all training photos with the
model as it is, mine the block's tuples from these descriptors, take gradient steps on them. After the
epoch: validate, keep the best. A checkpoint follows each block and each epoch. With pretrained weights
all passes start from what the frozen layers made of each photo, computed once (`vpr/trunk_cache.py`).
"""

import argparse
import time
from pathlib import Path

import torch

from vpr.artifacts.centroids import init_pooling
from vpr.artifacts.runs import create_run, read_flags
from vpr.cli.specs import model_spec, places_spec, reading
from vpr.common import processes
from vpr.common.device import choose_device, compute_dtype, device_line
from vpr.common.progress import say
from vpr.data.places import PlacePhotos, load_places, require_queries
from vpr.data.reader import PhotoReader
from vpr.descriptors.describe import Source
from vpr.descriptors.trunk_cache import cached_source
from vpr.models.place_model import PlaceModel, build_model
from vpr.training.log import Board, Metrics, report_epoch
from vpr.training.state import TrainingState, load_state, new_state, run_flags, splits_of
from vpr.training.trainer import (
    Sources,
    TrainingSet,
    _epoch_row,
    _out_of_patience,
    _save,
    load_training_set,
    train_epoch,
)
from vpr.training.validation import measure_best, open_test_split, validate

# A resumed run may get other values of these; it then no longer ends as one that was never stopped.
CHANGES_THE_END = ("root", "precision", "cacheBatchSize", "trunkCache", "evalEvery", "patience")


def run(options: argparse.Namespace) -> None:
    """Train a new run, or go on with that of --resume; at the end test the best model."""
    training, validation = load_training_set(options), load_places(places_spec(options), "val")
    require_queries(validation)
    test = open_test_split(options)
    device = choose_device(options.device)
    say(device_line(device))
    state, run_folder = _start_or_resume(options, training, validation, device)
    say(f"run: {run_folder}\n{state.model.name}, trained from {options.trainFrom} on")
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


def _start_or_resume(
    options: argparse.Namespace, training: TrainingSet, validation: PlacePhotos, device: torch.device
) -> tuple[TrainingState, Path]:
    splits = splits_of(training.photos, validation)
    if options.run:
        state = load_state(options, splits, device)
        _say_what_changed(options, device)
        return state, options.run
    torch.manual_seed(options.seed)
    model = build_model(model_spec(options))
    init_pooling(model, options)
    state, run_folder = new_state(model, options, splits, device), None
    if processes.is_main():
        run_folder = create_run(
            Path(options.runsPath), options.arch, options.pooling, run_flags(options, state.model),
            options.savePath, state.checkpoint(options),
        )  # fmt: skip
    return state, processes.broadcast(run_folder)


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
    return photos.reader(reading(options, device))


def _cached(photos: PlacePhotos, model: PlaceModel, options: argparse.Namespace, device: torch.device) -> Source:
    size = "x".join(map(str, options.imageSize)) if options.imageSize else "own"
    name = f"{photos.places.name}-{photos.places.fingerprint()[:6]}-{size}"
    return cached_source(
        _reader(photos, options, device),
        name,
        model,
        options.trunkCache,
        Path(options.cachePath),
        options.cacheBatchSize,
    )
