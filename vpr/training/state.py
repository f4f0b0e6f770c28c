"""What a training is made of between two steps, and how it goes into a checkpoint and comes back."""

import argparse
from dataclasses import dataclass, field

import numpy as np
import torch

from vpr.artifacts.model import _fill_model, model_flags
from vpr.artifacts.runs import load_checkpoint, read_flags
from vpr.cli.flags import AUTO_PRECISION
from vpr.cli.options import flags_of
from vpr.common.device import compute_dtype, precision_name
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlacePhotos
from vpr.models.place_model import PlaceModel
from vpr.training.mining import NO_PHOTO

# The paper selects by R@5; ties go to R@1, then R@10.
SELECTED_BY = (5, 1, 10)


@dataclass
class Position:
    """How far a training has come.

    Attributes:
        epoch: the epoch under way, from 1.
        blocks_done: blocks of queries of that epoch that are trained; descriptors are refreshed between.
        steps: optimiser steps so far.
        loss_sum, tuples, violating, batches: of the epoch under way, for its line on the console.
        best: recalls by SELECTED_BY of the best validation so far; empty before the first.
        best_epoch: its epoch.
        epochs_without_gain: since then.
    """

    epoch: int = 1
    blocks_done: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    tuples: int = 0
    violating: int = 0
    batches: int = 0
    best: list[float] = field(default_factory=list)
    best_epoch: int = 0
    epochs_without_gain: int = 0

    def start_next_epoch(self) -> None:
        """Move to the first block of the next epoch."""
        self.epoch, self.blocks_done = self.epoch + 1, 0
        self.loss_sum, self.tuples, self.violating, self.batches = 0.0, 0, 0, 0


@dataclass
class TrainingState:
    """Model, optimiser, remembered hard negatives [M, nNeg] and position: all that a resumed run needs.

    `scaler` keeps small gradients of a float16 trunk from vanishing, and does nothing in other formats.
    Random choices are drawn from (seed, epoch, query) and need no state; torch's own generators are
    kept for layers that may draw. `splits` says which photos it is trained and validated on (`splits_of`).
    """

    model: PlaceModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    remembered: np.ndarray
    position: Position
    splits: dict[str, dict]

    def checkpoint(self, options: argparse.Namespace) -> dict:
        """The state as tensors, numbers and text, which a safe load accepts."""
        return {
            "flags": model_flags(options),
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "remembered": torch.from_numpy(self.remembered),
            "position": vars(self.position),
            "splits": self.splits,
            "random_state": torch.get_rng_state(),
            "cuda_random_states": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }


def run_flags(options: argparse.Namespace, model: PlaceModel) -> dict:
    """What a run stores of its flags: all, and the number format that --precision=auto meant when it began.

    A resumed training computes in that format on any machine; other modes take what auto means where they run.
    """
    return {**flags_of(options), AUTO_PRECISION: precision_name(model.dtype)}


def build_optimizer(model: PlaceModel, options: argparse.Namespace) -> torch.optim.Optimizer:
    """The optimiser of the layers that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.optim == "ADAM":
        return torch.optim.Adam(trained, lr=options.lr, weight_decay=options.weightDecay)
    return torch.optim.SGD(trained, lr=options.lr, momentum=options.momentum, weight_decay=options.weightDecay)


def build_scaler(model: PlaceModel) -> torch.amp.GradScaler:
    """The gradient scaler that the model's number format needs."""
    return torch.amp.GradScaler(model.mean.device.type, enabled=model.dtype == torch.float16)


def splits_of(*splits: PlacePhotos) -> dict[str, dict]:
    """By a split's name: the fingerprint of its places, and how many photos its database and its queries are."""
    return {
        photos.split: {
            "places": photos.places.fingerprint(),
            "database": len(photos.database_files),
            "queries": len(photos.query_files),
        }
        for photos in splits
    }


def new_state(
    model: PlaceModel, options: argparse.Namespace, splits: dict[str, dict], device: torch.device
) -> TrainingState:
    """The state before the first step."""
    model = model.to_device(device, options.precision)
    remembered = np.full((splits["train"]["queries"], options.nNeg), NO_PHOTO, np.int64)
    position = Position(epoch=options.start_epoch + 1)
    return TrainingState(model, build_optimizer(model, options), build_scaler(model), remembered, position, splits)


def load_state(options: argparse.Namespace, splits: dict[str, dict], device: torch.device) -> TrainingState:
    """The state of the resumed run's checkpoint.

    Args:
        splits: of the photos that are there now.

    Raises:
        UserError: as `load_model`, or the checkpoint belongs to other photos.
    """
    checkpoint = load_checkpoint(options.run, options.savePath, options.ckpt)
    remembered = checkpoint["remembered"].numpy()
    if "splits" in checkpoint:
        _require_same_splits(checkpoint["splits"], splits, options)
    else:
        _require_fitting_memory(remembered, splits["train"], options)
    model = _fill_model(checkpoint, options, options.run).to_device(device, options.precision)
    _say_of_precision(options, model, device)
    optimizer, scaler = build_optimizer(model, options), build_scaler(model)
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
    except ValueError as error:
        raise UserError(
            f"the checkpoint in {options.run} trains other layers than its flags say (trainFrom={options.trainFrom}): "
            "one of the two files was replaced; restore it"
        ) from error
    scaler.load_state_dict(checkpoint.get("scaler", {}))
    torch.set_rng_state(checkpoint["random_state"])
    if len(checkpoint["cuda_random_states"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(checkpoint["cuda_random_states"])
    return TrainingState(model, optimizer, scaler, remembered, Position(**checkpoint["position"]), splits)


def _require_same_splits(stored: dict[str, dict], found: dict[str, dict], options: argparse.Namespace) -> None:
    """Raises UserError where photos are others than the run's: remembered negatives and best recalls are of those."""
    for split, wanted in stored.items():
        have = found.get(split, wanted)
        if have == wanted:
            continue
        counts = [f"{each['database']} database photos and {each['queries']} queries" for each in (wanted, have)]
        difference = "as many with other names or positions" if counts[0] == counts[1] else counts[1]
        hint = "; --skipBroken leaves out photos that cannot be decoded: get them again" if options.skipBroken else ""
        raise UserError(
            f"{options.run} has {counts[0]} in its {split} split, found {difference}: "
            f"name its photos with --root, or train anew{hint}"
        )


def _require_fitting_memory(remembered: np.ndarray, split: dict, options: argparse.Namespace) -> None:
    """What can be checked of a checkpoint that does not say which photos it is of. Raises UserError."""
    if len(remembered) != split["queries"]:
        raise UserError(
            f"{options.run} was trained on {len(remembered)} queries, found {split['queries']}: "
            "name its photos with --root"
        )
    if remembered.max(initial=NO_PHOTO) >= split["database"]:
        raise UserError(
            f"{options.run} was trained on {remembered.max() + 1} database photos or more, found {split['database']}: "
            "name its photos with --root"
        )
    say(
        f"{options.run} is of an earlier version: it does not say which photos it was trained on, and these are taken "
        f"to be the same; a step was of {options.batchSize} violating queries, from now on it is of "
        f"{options.batchSize} queries, those that do not violate skipped"
    )


def _say_of_precision(options: argparse.Namespace, model: PlaceModel, device: torch.device) -> None:
    """Say so where a run that began with --precision=auto would begin in another number format on this machine."""
    stored, here = read_flags(options.run), compute_dtype("auto", device)
    if stored.get("precision") != "auto" or "precision" in options.given:
        return
    if AUTO_PRECISION not in stored:
        say(f"the run is older than its note of what --precision=auto meant: {precision_name(here)} from here on")
    elif here != model.dtype:
        say(
            f"--precision=auto meant {precision_name(model.dtype)} when the run began and would be "
            f"{precision_name(here)} here: it goes on in {precision_name(model.dtype)}"
        )
