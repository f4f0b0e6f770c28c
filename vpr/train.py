"""--mode=train: weakly supervised training on tuples of query, positive and hard negatives.

Epoch: a fresh permutation of the queries, in blocks. Block: describe all training photos with the
model as it is, mine the block's tuples from these descriptors, take gradient steps on them. After the
epoch: validate, keep the best. A checkpoint follows each block and each epoch.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from vpr.board import Board
from vpr.centroids import start_pooling
from vpr.descriptors import describe_batch, describe_files
from vpr.images import photo_batches
from vpr.loss import triplet_loss
from vpr.mining import MiningRules, TrainingTuple, mine
from vpr.model import build_model, choose_device, describe_model, device_line
from vpr.options import flags_of
from vpr.places import SPECS, PlacePhotos, load_places, require_queries, spec_path
from vpr.progress import Progress, say
from vpr.runs import create_run, save_checkpoint
from vpr.test import RESULTS_FILE, evaluate, record
from vpr.training_state import SELECTED_BY, TrainingState, load_model, load_state, new_state


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """The training split with, for each query, its potential positives and what may not be a negative."""

    photos: PlacePhotos
    positives: list[np.ndarray]
    not_negatives: list[np.ndarray]
    usable: np.ndarray  # queries that have a positive

    @property
    def files(self) -> list[Path]:
        """Database photos, then queries: indices of queries are offset by the database's size."""
        return self.photos.database_files + self.photos.query_files


def run(options: argparse.Namespace) -> None:
    """Train a new run, or go on with that of --resume; at the end test the best model."""
    training, validation = load_training_set(options), load_places(options, "val")
    require_queries(validation)
    device = choose_device(options)
    say(device_line(device))
    state, run_folder = _start_or_resume(options, training, device)
    say(f"run: {run_folder}\n{describe_model(options, state.model)}")
    folder = run_folder / options.savePath
    position = state.position
    if position.epoch > options.nEpochs:
        say(f"all {options.nEpochs} epochs are trained: give a larger --nEpochs to go on")
    with Board(run_folder, position.epoch) as board:
        while position.epoch <= options.nEpochs and not _out_of_patience(state, options):
            started = time.monotonic()
            train_epoch(state, training, options, device, folder)
            _write_epoch(board, state, options, time.monotonic() - started)
            better = False
            if position.epoch % options.evalEvery == 0 or position.epoch == options.nEpochs:
                better = _validate(board, state, validation, options, device)
            position.start_next_epoch()
            save_checkpoint(folder, state.checkpoint(options), best=better)
    _test_best(options, run_folder, device)


def train_epoch(
    state: TrainingState, training: TrainingSet, options: argparse.Namespace, device: torch.device, folder: Path
) -> None:
    """Train on all queries once, from the block on at which the state stands."""
    position = state.position
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(options, position.epoch)
    blocks = query_blocks(training.usable, options, position.epoch)
    while position.blocks_done < len(blocks):
        name = f"epoch {position.epoch} block {position.blocks_done + 1}/{len(blocks)}"
        tuples = mine_block(state, training, blocks[position.blocks_done], options, device, name)
        train_block(state, training, tuples, options, device, name)
        position.blocks_done += 1
        save_checkpoint(folder, state.checkpoint(options))


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
    queries: np.ndarray,
    options: argparse.Namespace,
    device: torch.device,
    name: str,
) -> list[TrainingTuple]:
    """Describe the database and the block's queries with the model as it is, and choose tuples."""
    database_files, query_files = training.photos.database_files, training.photos.query_files
    files = database_files + [query_files[query] for query in queries]
    descriptors, _ = describe_files(state.model, files, options, device, f"{name}: descriptors")
    rules = MiningRules(options.nNeg, options.nNegSample, options.margin, options.seed)
    return mine(
        queries,
        descriptors[: len(database_files)],
        descriptors[len(database_files) :],
        training.positives,
        training.not_negatives,
        state.remembered,
        rules,
        state.position.epoch,
    )


def train_block(
    state: TrainingState,
    training: TrainingSet,
    tuples: list[TrainingTuple],
    options: argparse.Namespace,
    device: torch.device,
    name: str,
) -> None:
    """One optimiser step for each batch of tuples."""
    state.model.train()
    position = state.position
    batches = [tuples[start : start + options.batchSize] for start in range(0, len(tuples), options.batchSize)]
    wanted = [photos_of_tuples(batch, len(training.photos.database_files)) for batch in batches]
    loaded = photo_batches(training.files, options.imageSize, [photos for photos, *_ in wanted], options.threads)
    with Progress(f"{name}: training", len(tuples), "tuples") as progress:
        for batch, (_, query, positive, negative, owner), photos in zip(batches, wanted, loaded, strict=True):
            descriptors = describe_batch(state.model, photos, device)
            loss, violating = triplet_loss(
                descriptors[query], descriptors[positive], descriptors[negative],
                torch.as_tensor(owner, device=device), options.margin,
            )  # fmt: skip
            state.optimizer.zero_grad()
            if violating:  # without one there is nothing to learn, and momentum alone shall not move
                loss.backward()
                state.optimizer.step()
            position.steps += 1
            position.loss_sum += loss.item()
            position.violating += violating
            position.batches += 1
            position.tuples += len(batch)
            progress.advance(len(batch))


def photos_of_tuples(tuples: list[TrainingTuple], database_size: int) -> tuple[np.ndarray, ...]:
    """The distinct photos of a batch of tuples, and where each tuple's photos are among them.

    Returns:
        photos: indices into `TrainingSet.files`; a photo that several tuples share is there once.
        query, positive: [T], negative: [N]: places in `photos`.
        owner: [N], the tuple of each negative.
    """
    query = [item.query + database_size for item in tuples]
    positive = [item.positive for item in tuples]
    negative = np.concatenate([item.negatives for item in tuples])
    owner = np.repeat(np.arange(len(tuples)), [len(item.negatives) for item in tuples])
    photos, places = np.unique(np.concatenate([query, positive, negative]), return_inverse=True)
    count = len(tuples)
    return photos, places[:count], places[count : 2 * count], places[2 * count :], owner


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
    return TrainingSet(photos, positives, photos.places.not_negatives(), usable)


def _start_or_resume(
    options: argparse.Namespace, training: TrainingSet, device: torch.device
) -> tuple[TrainingState, Path]:
    query_count = len(training.photos.query_files)
    if options.run:
        return load_state(options, query_count, device), options.run
    torch.manual_seed(options.seed)
    model = build_model(options)
    start_pooling(model, options)
    state = new_state(model, options, query_count, device)
    checkpoint = state.checkpoint(options)
    run_folder = create_run(
        Path(options.runsPath), options.arch, options.pooling, flags_of(options), options.savePath, checkpoint
    )
    return state, run_folder


def _out_of_patience(state: TrainingState, options: argparse.Namespace) -> bool:
    stop = 0 < options.patience <= state.position.epochs_without_gain
    if stop:
        say(f"no better validation for {state.position.epochs_without_gain} epochs: stopping")
    return stop


def _validate(
    board: Board, state: TrainingState, validation: PlacePhotos, options: argparse.Namespace, device: torch.device
) -> bool:
    """Measure the validation split and say whether it is the best so far."""
    position = state.position
    recall_values = sorted({*options.recallValues, *SELECTED_BY})
    evaluation, _ = evaluate(state.model, validation, recall_values, options, device)
    for n, recall in evaluation.recalls.items():
        board.add(f"validation/recall_at_{n}", recall, position.epoch)
    score = [evaluation.recalls[n] for n in SELECTED_BY]
    better = score > position.best
    if better:
        position.best, position.best_epoch, position.epochs_without_gain = score, position.epoch, 0
    else:
        position.epochs_without_gain = position.epoch - position.best_epoch
    say(f"epoch {position.epoch} validation: {evaluation.lines()}{' (best so far)' if better else ''}")
    return better


def _write_epoch(board: Board, state: TrainingState, options: argparse.Namespace, seconds: float) -> None:
    position = state.position
    loss = position.loss_sum / max(position.batches, 1)
    rate = learning_rate(options, position.epoch)
    per_tuple = position.violating / max(position.tuples, 1)
    for name, value in (("loss", loss), ("violating_per_tuple", per_tuple), ("learning_rate", rate)):
        board.add(f"train/{name}", value, position.epoch)
    say(
        f"epoch {position.epoch}/{options.nEpochs}: loss {loss:.4f}, {position.tuples} tuples, "
        f"{per_tuple:.1f} violating negatives each, learning rate {rate:g}, {seconds:.0f} s"
    )


def _test_best(options: argparse.Namespace, run_folder: Path, device: torch.device) -> None:
    """Test the best model on the dataset's test split, or on val where no test spec is there."""
    has_test = "test" in SPECS[options.dataset] and spec_path(options, "test").is_file()
    split = "test" if has_test else "val"
    if not has_test:
        say("no test spec: the best model is measured on val")
    model, epochs = load_model(options, run_folder, "best")
    evaluation, _ = evaluate(model.to(device), load_places(options, split), options.recallValues, options, device)
    record(run_folder / RESULTS_FILE, evaluation, {"run": run_folder.name, "checkpoint": "best", "epochs": epochs})
    say(f"best model (after epoch {epochs}): {evaluation.lines()}")
