"""What a training is made of between two steps, and how it goes into a checkpoint and comes back."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlaceImages
from vpr.models.place_model import PlaceModel
from vpr.training.choices import OPTIMIZERS
from vpr.training.mining import NO_IMAGE
from vpr.training.rules import TrainingRules

Weights = dict[str, torch.Tensor]  # by their names
# The paper selects by R@5; ties go to R@1, then R@10.
SELECTED_BY = (5, 1, 10)
TEACHER = "teacher"  # among the splits, what tells a run's teacher from others


@dataclass
class Position:
    """How far a training has come."""

    epoch: int = 1  # the epoch under way, from 1
    blocks_done: int = 0  # blocks of queries of that epoch that are trained; descriptors are refreshed between
    steps: int = 0  # optimiser steps so far
    # The next five are of the epoch under way, for its line on the console.
    loss_sum: float = 0.0
    tuples: int = 0
    violating: int = 0
    batches: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the losses' further figures
    # Recalls by SELECTED_BY of the best validation so far; empty before the first.
    best: list[float] = field(default_factory=list)
    best_epoch: int = 0  # its epoch
    epochs_without_gain: int = 0  # since then

    def start_next_epoch(self) -> None:
        """Move to the first block of the next epoch."""
        self.epoch, self.blocks_done = self.epoch + 1, 0
        self.loss_sum, self.tuples, self.violating, self.batches, self.sums = 0.0, 0, 0, 0, {}

    def figures(self, images: int, seconds: float, learning_rate: float, memory_mb: float) -> dict[str, float]:
        """The figures of the epoch under way, by the columns of metrics.csv.

        Args:
            images: that went through the model in it.
            seconds: that it took.
            memory_mb: of the device, at its peak.
        """
        return {
            "epoch": self.epoch,
            "loss": self.loss_sum / max(self.batches, 1),
            "tuples": self.tuples,
            "violating_per_tuple": self.violating / max(self.tuples, 1),
            "learning_rate": learning_rate,
            "seconds": seconds,
            "images_per_second": images / seconds,
            "memory_mb": memory_mb,
            **{name: total / max(self.violating, 1) for name, total in self.sums.items()},
        }


@dataclass
class TrainingState:
    """All that a resumed run needs.

    Random choices are drawn from (seed, epoch, query) and need no state; torch's own generators are
    kept for layers that may draw.
    """

    model: PlaceModel
    optimizer: torch.optim.Optimizer
    # Keeps small gradients of a float16 backbone from vanishing, and does nothing in other formats.
    scaler: torch.amp.GradScaler
    # int64, what an objective remembers from block to block; of triplets [M, rules.negatives], each query's hardest
    # negatives so far. NO_IMAGE: none.
    hard_negative_cache: np.ndarray
    position: Position
    splits: dict[str, dict]  # which images it is trained and validated on (`splits_of`)
    average: Weights = field(default_factory=dict)  # the mean of the weights that are trained (--ema); empty: none
    walk: list[list[int]] | None = None  # images of each place as --walk=again has joined them; None: not yet

    def follow(self, decay: float) -> None:
        """Let the mean follow the weights after a step."""
        trained = trained_weights(self.model)
        for name, value in self.average.items():
            value.lerp_(trained[name], 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the mean of its weights until the context ends, where there is one."""
        own = {name: value.clone() for name, value in trained_weights(self.model).items() if name in self.average}
        self.model.load_state_dict(self.average, strict=False)
        try:
            yield
        finally:
            self.model.load_state_dict(own, strict=False)

    def checkpoint(self) -> dict[str, Any]:
        """The state as tensors, numbers and text, which a safe load accepts. Its model is the mean where there is one,
        beside which stand the weights that go on."""
        state = self.model.state_dict()
        state.update(self.average)
        return {
            "flags": self.model.spec.flags(),
            "state_dict": state,
            **({"trained": trained_weights(self.model)} if self.average else {}),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "remembered": torch.from_numpy(self.hard_negative_cache),
            "walk": self.walk,
            "position": vars(self.position),
            "splits": self.splits,
            "random_state": torch.get_rng_state(),
            "cuda_random_states": torch.cuda.get_rng_state_all() if self.model.device.type == "cuda" else [],
        }


def trained_weights(model: PlaceModel) -> Weights:
    """The weights of a model that are trained, by their names, and the statistics that --trainBatchNorm trains."""
    found = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    moving = model.encoder.named_buffers(prefix="encoder") if model.encoder.train_batch_norm else ()
    return {**found, **{name: value for name, value in moving if value.is_floating_point()}}


def build_optimizer(model: PlaceModel, rules: TrainingRules) -> torch.optim.Optimizer:
    """The optimiser of the layers that are trained; its groups have the `factor` of their learning rates."""
    parts: dict[float, list[torch.nn.Parameter]] = {}
    backbone = set(model.backbone.parameters())
    for value in model.parameters():
        if value.requires_grad:
            parts.setdefault(rules.backbone_lr if value in backbone else 1.0, []).append(value)
    groups = [{"params": part, "factor": factor} for factor, part in parts.items()]
    return OPTIMIZERS[rules.optimizer](groups, rules.lr, rules.weight_decay, rules.momentum)


def build_scaler(model: PlaceModel) -> torch.amp.GradScaler:
    """The gradient scaler that the model's number format needs."""
    return torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)


def splits_of(*splits: PlaceImages) -> dict[str, dict]:
    """By a split's name: the fingerprint of its places, and how many images its database and its queries are."""
    return {
        images.split: {
            "places": images.places.fingerprint(),
            "database": len(images.database_files),
            "queries": len(images.query_files),
        }
        for images in splits
    }


def new_state(model: PlaceModel, rules: TrainingRules, splits: dict[str, dict], start_epoch: int = 0) -> TrainingState:
    """The state before the first step.

    Args:
        model: on its device.
        start_epoch: epochs that count as trained already.

    Raises:
        UserError: all layers are frozen, and the pooling has none of its own.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        spec = model.spec
        raise UserError(
            f"there is nothing to train: --trainFrom={spec.first_trained} freezes all layers of {spec.arch}, and "
            f"--pooling={spec.pooling} has no parameters: name an earlier layer, or another pooling"
        )
    hard_negative_cache = np.full((splits["train"]["queries"], rules.negatives), NO_IMAGE, np.int64)
    optimizer, position = build_optimizer(model, rules), Position(epoch=start_epoch + 1)
    average = {name: value.clone() for name, value in trained_weights(model).items()} if rules.ema else {}
    return TrainingState(model, optimizer, build_scaler(model), hard_negative_cache, position, splits, average)


def load_state(
    checkpoint: dict[str, Any],
    model: PlaceModel,
    rules: TrainingRules,
    splits: dict[str, dict],
    run: Path,
    skip_broken: bool = False,
) -> TrainingState:
    """The state in a run's checkpoint. Also sets torch's random state.

    Args:
        model: with the checkpoint's weights, on its device.
        splits: of the images that are there now.
        run: for messages.
        skip_broken: whether images may be missing from `splits` because they cannot be decoded; for messages.

    Raises:
        UserError: the checkpoint belongs to other images, or to other layers than those that are trained.
    """
    hard_negative_cache = checkpoint["remembered"].numpy()
    if "splits" in checkpoint:
        _require_same_splits(checkpoint["splits"], splits, run, skip_broken)
    else:
        _require_fitting_cache(hard_negative_cache, splits["train"], run, rules.batch_size)
    optimizer, scaler = build_optimizer(model, rules), build_scaler(model)
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
    except ValueError as error:
        raise UserError(
            f"the checkpoint in {run} trains other layers than its flags say (trainFrom={model.spec.train_from}): "
            "one of the two files was replaced; restore it"
        ) from error
    if checkpoint.get("scaler"):  # empty of a run that was not in float16 so far
        scaler.load_state_dict(checkpoint["scaler"])
    torch.set_rng_state(checkpoint["random_state"])
    if len(checkpoint["cuda_random_states"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(checkpoint["cuda_random_states"])
    position, average, walk = Position(**checkpoint["position"]), {}, checkpoint.get("walk")
    if "trained" in checkpoint:
        average = {name: value.clone() for name, value in trained_weights(model).items()}
        model.load_state_dict(checkpoint["trained"], strict=False)
    return TrainingState(model, optimizer, scaler, hard_negative_cache, position, splits, average, walk)


def _require_same_splits(stored: dict[str, dict], found: dict[str, dict], run: Path, skip_broken: bool) -> None:
    """Raises UserError where images are others than the run's: cached negatives and best recalls are of those."""
    for split, wanted in stored.items():
        have = found.get(split, wanted)
        if have == wanted:
            continue
        if split == TEACHER:
            changed = [
                f"{name} {have.get(name)}, not {value}" for name, value in wanted.items() if have.get(name) != value
            ]
            raise UserError(f"the teacher of {run} has {', '.join(changed)}: restore it, or train anew")
        counts = [f"{each['database']} database images and {each['queries']} queries" for each in (wanted, have)]
        difference = "as many with other names or positions" if counts[0] == counts[1] else counts[1]
        hint = "; --skipBroken leaves out images that cannot be decoded: get them again" if skip_broken else ""
        raise UserError(
            f"{run} has {counts[0]} in its {split} split, found {difference}: "
            f"name its images with --{'valSets' if '/' in split else 'root or --placeFolders'}, or train anew{hint}"
        )


def _require_fitting_cache(cache: np.ndarray, split: dict, run: Path, batch_size: int) -> None:
    """What can be checked of a checkpoint that does not say which images it is of. Raises UserError."""
    if len(cache) != split["queries"]:
        raise UserError(
            f"{run} was trained on {len(cache)} queries, found {split['queries']}: name its images with --root"
        )
    if cache.max(initial=NO_IMAGE) >= split["database"]:
        raise UserError(
            f"{run} was trained on {cache.max() + 1} database images or more, found {split['database']}: "
            "name its images with --root"
        )
    say(
        f"{run} is of an earlier version: it does not say which images it was trained on, and these are taken "
        f"to be the same; a step was of {batch_size} violating queries, from now on it is of "
        f"{batch_size} queries, those that do not violate skipped"
    )
