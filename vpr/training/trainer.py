"""A training: epochs of gradient steps on what an objective (`vpr.training.objective`) makes of the images.

Epoch: the objective's blocks of batches, a step for each batch. After the epoch: validate, keep the best. A
checkpoint follows each block and each epoch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from vpr.common import processes
from vpr.common.device import precision_name
from vpr.common.memory import out_of_memory_says
from vpr.common.progress import Progress, say
from vpr.data.places import PlaceImages
from vpr.data.reader import SizeGroup
from vpr.descriptors.batches import cut, order_of
from vpr.descriptors.describe import Source
from vpr.evaluation.evaluate import Evaluation
from vpr.models.place_model import PlaceModel
from vpr.runs.pytorch_model import restore_model
from vpr.runs.run import load_checkpoint, save_checkpoint
from vpr.training.log import Board, Metrics, Recalls, peak_memory_mb, report_epoch, show_worst
from vpr.training.objective import Block, Loss, objective_of
from vpr.training.rules import TrainingRules
from vpr.training.state import TrainingState
from vpr.training.training_set import TrainingSet
from vpr.training.validation import ALL, OWN, ValidationReranking, ValidationSet, measure_best, measure_split, select


class Sources(NamedTuple):
    """Where the images of the two splits come from, each the database's, then the queries'."""

    training: Source
    validation: Source


@dataclass
class Trainer:
    """Trains the model of a state and keeps its checkpoints in a run."""

    state: TrainingState  # model, optimiser, hard-negative cache and position; steps change it
    training: TrainingSet
    validation: PlaceImages
    sources: Sources
    rules: TrainingRules  # how long, how fast, on which tuples
    folder: Path  # the run
    checkpoints: str = "checkpoints"  # the folder of its checkpoints, in the run
    batch_size: int | None = None  # images described at once outside of steps; 0: as many as memory holds
    reranking: ValidationReranking | None = None  # at each validation; None: without
    others: dict[str, ValidationSet] = field(default_factory=dict)  # measured at each validation too, by name

    def __post_init__(self) -> None:
        self.model = self.state.model
        self.objective = objective_of(self.rules, self.training, self.sources.training, self.batch_size)

    def run(self) -> None:
        """Train the epochs that are left; log, validate and save after each."""
        position, rules = self.state.position, self.rules
        if position.epoch > rules.epochs:
            say(f"all {rules.epochs} epochs are trained: give a larger --nEpochs to go on")
        metrics, board = Metrics(self.folder, position.epoch), Board(self.folder, position.epoch)
        while position.epoch <= rules.epochs and not self.out_of_patience():
            started = time.monotonic()
            images = self.epoch()
            rate, memory = self.state.optimizer.param_groups[-1]["lr"], peak_memory_mb(self.model.device)
            figures = position.figures(images, time.monotonic() - started, rate, memory)
            report_epoch(board, figures, rules.epochs)
            better = False
            recalls: Recalls = {}
            if position.epoch % rules.eval_every == 0 or position.epoch == rules.epochs:
                better, recalls = self.validate(board)
            metrics.add(figures, recalls.pop(OWN, {}), recalls)
            position.start_next_epoch()
            self.save(best=better)

    def epoch(self) -> int:
        """Train on the blocks of an epoch that the state's position leaves.

        Returns the number of images that went through the model, each time they did.
        """
        position, images = self.state.position, 0
        self.set_rates()
        for block in self.objective.batches(self.state, position.epoch):
            self.train_block(block)
            images += block.described
            position.blocks_done += 1
            self.save()
        return images

    def set_rates(self, done: float = 0.0) -> None:
        """Set the learning rates of a step before which this share of the epoch is done."""
        rate = self.rules.learning_rate(self.state.position.epoch + done, self.state.position.steps)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)

    def train_block(self, block: Block) -> None:
        """One optimiser step for each batch of a block."""
        own = BatchDescriber(self.model.train(), self.rules.gradient_cache)
        describer = processes.in_parallel(own, self.model.backbone.unused_parameters)
        loaded = self.sources.training.batches([batch.images for batch in block.batches])
        progress = Progress(f"{block.label}: training", sum(block.sizes), block.unit)
        before, after = block.share
        with progress, out_of_memory_says("lower --batchSize, or give --gradientCache"):
            for number, (batch, size, images) in enumerate(zip(block.batches, block.sizes, loaded, strict=True)):
                self.set_rates(before + (after - before) * number / len(block.batches))
                loss = Loss(*self.objective.loss(describer(images), batch))
                if processes.rank() >= size:  # its batch is another process's: all take part in every step
                    loss = Loss(0 * loss.sum, 0, dict.fromkeys(loss.figures, 0.0))
                self.step(loss)
                self.state.position.tuples += size
                progress.advance(size)

    def step(self, loss: Loss) -> None:
        """One step down the gradient of the loss: the sum of all processes over the number of pairs that have one."""
        state, position, rules = self.state, self.state.position, self.rules
        total, all_pairs, *sums = processes.all_reduce_sum(loss.sum.item(), loss.terms, *loss.figures.values())
        state.optimizer.zero_grad()
        if all_pairs:  # without one there is nothing to learn, and momentum alone shall not move
            state.scaler.scale(loss.sum / all_pairs).backward()  # gradients, like the loss, are sums over the processes
            if rules.clip:
                state.scaler.unscale_(state.optimizer)
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), rules.clip)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.follow(rules.ema)
        position.steps += 1
        position.loss_sum += total / max(all_pairs, 1)
        position.violating += int(all_pairs)
        position.batches += 1
        for name, value in zip(loss.figures, sums, strict=True):
            position.sums[name] = position.sums.get(name, 0.0) + value

    def validate(self, board: Board) -> tuple[bool, Recalls]:
        """Measure the validation sets after an epoch; whether it is the best so far, and the recalls of each."""
        position, best_by = self.state.position, self.rules.best_by
        found, ns, batch = dict[str, Evaluation](), self.rules.recall_values, self.batch_size
        own = self.validation, self.sources.validation, self.reranking
        with self.state.averaged():
            for name, (images, source, again) in {**self.others, OWN: own}.items():
                named = "" if name == OWN else name
                found[name], outcomes = measure_split(self.model, images, source, ns, batch, again, named)
        show_worst(board, self.validation, outcomes, position.epoch)  # of the last, which is the run's own
        recalls = {name: evaluation.recalls for name, evaluation in found.items()}
        better = select(position, recalls, position.epoch, best_by)
        for name, evaluation in found.items():
            title = "validation" if name == OWN else f"validation of {name}"
            for n, recall in evaluation.recalls.items():
                board.add(f"{title.replace(' ', '_')}/recall_at_{n}", recall, position.epoch)
            best = " (best so far)" if better and best_by in (name, ALL) else ""
            say(f"epoch {position.epoch} {title}: {evaluation.lines()}{best}")
        return better, recalls

    def save(self, best: bool = False) -> None:
        """Write the state into the run, and as the best model too if it is that."""
        if processes.is_main():
            save_checkpoint(self.folder / self.checkpoints, self.state.checkpoint(), best)

    def test(self, images: PlaceImages | None, source: Source | None) -> None:
        """Measure the run's best model on the test split; without one (None) on the validation split."""
        processes.barrier()  # process 0 may still be writing the best model
        checkpoint = load_checkpoint(self.folder, self.checkpoints, "best")
        best = restore_model(checkpoint, self.model.spec, self.folder)
        best.to_device(self.model.device, precision_name(self.model.dtype))
        splits = [(self.validation, self.sources.validation)]
        if images is not None and source is not None:
            splits.insert(0, (images, source))
        epochs = checkpoint["position"]["epoch"] - 1
        measure_best(best, epochs, splits, self.rules.recall_values, self.batch_size, self.folder)

    def out_of_patience(self) -> bool:
        """Whether validations have not become better for too long; says so."""
        waited = self.state.position.epochs_without_gain
        stop = 0 < self.rules.patience <= waited
        if stop:
            say(f"no better validation for {waited} epochs: stopping")
        return stop


class BatchDescriber(torch.nn.Module):
    """A model that describes batches by one forward for a step, as DistributedDataParallel wants it.

    With `at_once` above 0 so many images go through the layers together, once without a graph, and again when the
    gradients of all descriptors are known: a large batch takes the memory of a few images (Gao et al., 2021).
    """

    def __init__(self, model: PlaceModel, at_once: int = 0) -> None:
        super().__init__()
        self.model, self.at_once = model, at_once

    def forward(self, batch: list[SizeGroup]) -> torch.Tensor:
        """Images of a step by size -> their descriptors [B, dim]."""
        describe: Callable[..., torch.Tensor] = self.model
        if self.at_once:
            batch = [part for group in batch for part in cut(group, self.at_once)]
            describe = partial(checkpoint, self.model, use_reentrant=False)
        parts = [describe(self.model.tensor_of(group.values), group.frozen) for group in batch]
        return torch.cat(parts)[self.model.tensor_of(order_of(batch))]
