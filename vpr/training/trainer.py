"""Weakly supervised training on tuples of query, positive and hard negatives (the paper's section 4 and appendix).

Epoch: a fresh permutation of the queries, in blocks. Block: describe all training images with the
model as it is, mine the block's tuples from these descriptors, take gradient steps on them. After the
epoch: validate, keep the best. A checkpoint follows each block and each epoch. With pretrained weights
all passes start from what the frozen layers made of each image, computed once (`vpr.descriptors.trunk_cache`).
"""

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from vpr.common import processes
from vpr.common.device import precision_name
from vpr.common.memory import out_of_memory_says, where_it_fits
from vpr.common.progress import Progress, say
from vpr.data.places import PlaceImages
from vpr.data.reader import Reading, SizeGroup
from vpr.descriptors.describe import Source, describe, describe_batch
from vpr.descriptors.trunk_cache import cached_source
from vpr.models.place_model import PlaceModel
from vpr.runs.model import restore_model
from vpr.runs.run import load_checkpoint, save_checkpoint
from vpr.training.log import Board, Metrics, peak_memory_mb, report_epoch, show_worst
from vpr.training.losses import LOSSES
from vpr.training.mining import MiningRules, TrainingTuple, TupleBatch, all_alike, batches_of_queries, mine
from vpr.training.rules import TrainingRules
from vpr.training.state import TrainingState
from vpr.training.training_set import TrainingSet
from vpr.training.validation import ValidationLook, measure_best, measure_split, select


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the images of the two splits come from, each the database's, then the queries'."""

    training: Source
    validation: Source

    @classmethod
    def cached(
        cls,
        training: PlaceImages,
        validation: PlaceImages,
        model: PlaceModel,
        reading: Reading,
        where: str = "auto",
        folder: Path = Path("cache"),
        batch_size: int = 24,
    ) -> "Sources":
        """Sources that start from what the frozen layers gave, if any; the last three as of `cached_source`."""
        size = "x".join(map(str, reading.size)) if reading.size else "own"
        names = [f"{images.places.name}-{images.places.fingerprint()[:6]}-{size}" for images in (training, validation)]
        readers = [images.reader(reading) for images in (training, validation)]
        return cls(
            cached_source(readers[0], names[0], model, where, folder, batch_size),
            cached_source(readers[1], names[1], model, where, folder, batch_size),
        )


class Trainer:
    """Trains the model of a state and keeps its checkpoints in a run.

    Attributes:
        state: model, optimiser, hard-negative cache and position; steps change it.
        training, validation: the two splits.
        sources: of their images.
        rules: how long, how fast, on which tuples.
        folder: the run.
        checkpoints: the folder of its checkpoints, in the run.
        batch_size: images described at once outside of steps; 0: as many as memory holds.
        second: a second look at each validation; None: without.
    """

    def __init__(
        self,
        state: TrainingState,
        training: TrainingSet,
        validation: PlaceImages,
        sources: Sources,
        rules: TrainingRules,
        folder: Path,
        checkpoints: str = "checkpoints",
        batch_size: int = 24,
        second: ValidationLook | None = None,
    ):
        self.second = second
        self.state, self.model = state, state.model
        self.training, self.validation, self.sources = training, validation, sources
        self.rules, self.batch_size = rules, batch_size
        self.folder, self.checkpoints = folder, checkpoints
        self.loss = LOSSES[rules.loss]

    def run(self) -> None:
        """Train the epochs that are left; log, validate and save after each."""
        position, rules = self.state.position, self.rules
        if position.epoch > rules.epochs:
            say(f"all {rules.epochs} epochs are trained: give a larger --nEpochs to go on")
        metrics, board = Metrics(self.folder, position.epoch), Board(self.folder, position.epoch)
        while position.epoch <= rules.epochs and not self.out_of_patience():
            started = time.monotonic()
            images = self.epoch()
            figures = self.figures(images, time.monotonic() - started)
            report_epoch(board, figures, rules.epochs)
            better = False
            recalls: dict[int, float] = {}
            if position.epoch % rules.eval_every == 0 or position.epoch == rules.epochs:
                better, recalls = self.validate(board)
            metrics.add(figures, recalls)
            position.start_next_epoch()
            self.save(best=better)

    def epoch(self) -> int:
        """Train on all queries once, from the block on at which the state stands.

        Returns:
            images that went through the model, each time they did.
        """
        position, images = self.state.position, 0
        for group in self.state.optimizer.param_groups:
            group["lr"] = self.rules.learning_rate(position.epoch)
        blocks = self.rules.query_blocks(self.training.usable, position.epoch)
        while position.blocks_done < len(blocks):
            label = f"epoch {position.epoch} block {position.blocks_done + 1}/{len(blocks)}"
            queries = blocks[position.blocks_done]
            tuples = self.mine(queries, label)
            self.train_block(batches_of_queries(queries, tuples, self.rules.batch_size), label)
            images += len(self.training.images.database_files) + len(queries)
            images += sum(2 + len(each.negatives) for each in tuples)
            position.blocks_done += 1
            self.save()
        return images

    def mine(self, queries: np.ndarray, label: str) -> list[TrainingTuple]:
        """The tuples of a block of queries (int64 [B]) by the model as it is."""
        return mine_block(self.state, self.training, self.sources.training, queries, self.rules, self.batch_size, label)

    def train_block(self, batches: list[list[TrainingTuple]], label: str) -> None:
        """One optimiser step for each batch of tuples. Each process takes its share of every batch.

        Args:
            batches: the tuples of each batch of queries, at least one each.
        """
        describer = processes.in_parallel(BatchDescriber(self.model.train()), self.model.backbone.unused_parameters)
        # A process without a tuple takes the first: all have to take part in every step.
        shares = [batch[processes.rank() :: processes.world()] or batch[:1] for batch in batches]
        tuple_batches = [TupleBatch.of(share, len(self.training.images.database_files)) for share in shares]
        loaded = self.sources.training.batches([tuples.images for tuples in tuple_batches])
        count = sum(map(len, batches))
        with Progress(f"{label}: training", count, "tuples") as progress, out_of_memory_says("lower --batchSize"):
            for batch, tuples, images in zip(batches, tuple_batches, loaded, strict=True):
                loss_sum, pairs = self.loss(describer(images), tuples, self.rules.margin)
                if processes.rank() >= len(batch):
                    loss_sum, pairs = 0 * loss_sum, 0
                self.step(loss_sum, pairs)
                self.state.position.tuples += len(batch)
                progress.advance(len(batch))

    def step(self, loss_sum: torch.Tensor, pairs: int) -> None:
        """One step down the gradient of the loss: the sum of all processes over the number of pairs that have one."""
        state, position = self.state, self.state.position
        total, all_pairs = processes.all_reduce_sum(loss_sum.item(), pairs)
        state.optimizer.zero_grad()
        if all_pairs:  # without one there is nothing to learn, and momentum alone shall not move
            state.scaler.scale(loss_sum / all_pairs).backward()  # gradients, like the loss, are sums over the processes
            state.scaler.step(state.optimizer)
            state.scaler.update()
        position.steps += 1
        position.loss_sum += total / max(all_pairs, 1)
        position.violating += int(all_pairs)
        position.batches += 1

    def validate(self, board: Board) -> tuple[bool, dict[int, float]]:
        """Measure the validation split after an epoch; whether it is the best so far, and the recalls."""
        position = self.state.position
        evaluation, outcomes = measure_split(
            self.model, self.validation, self.sources.validation, self.rules.recall_values, self.batch_size,
            self.second,
        )  # fmt: skip
        show_worst(board, self.validation, outcomes, position.epoch)
        for n, recall in evaluation.recalls.items():
            board.add(f"validation/recall_at_{n}", recall, position.epoch)
        better = select(position, evaluation.recalls, position.epoch)
        say(f"epoch {position.epoch} validation: {evaluation.lines()}{' (best so far)' if better else ''}")
        return better, evaluation.recalls

    def save(self, best: bool = False) -> None:
        """Write the state into the run, and as the best model too if it is that."""
        if processes.is_main():
            checkpoint = self.state.checkpoint(self.model.spec.flags())
            save_checkpoint(self.folder / self.checkpoints, checkpoint, best)

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

    def figures(self, images: int, seconds: float) -> dict[str, float]:
        """The figures of the epoch under way, by the columns of metrics.csv.

        Args:
            images: that went through the model in it.
            seconds: that it took.
        """
        position = self.state.position
        return {
            "epoch": position.epoch,
            "loss": position.loss_sum / max(position.batches, 1),
            "tuples": position.tuples,
            "violating_per_tuple": position.violating / max(position.tuples, 1),
            "learning_rate": self.rules.learning_rate(position.epoch),
            "seconds": seconds,
            "images_per_second": images / seconds,
            "memory_mb": peak_memory_mb(self.model.device),
        }


class BatchDescriber(torch.nn.Module):
    """`describe_batch` as a module with one forward for a step, as DistributedDataParallel wants it."""

    def __init__(self, model: PlaceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: list[SizeGroup]) -> torch.Tensor:
        """Images of a step by size -> their descriptors [B, dim]."""
        return describe_batch(self.model, batch)


def mine_block(
    state: TrainingState,
    training: TrainingSet,
    source: Source,
    queries: np.ndarray,
    rules: TrainingRules,
    batch_size: int,
    label: str,
) -> list[TrainingTuple]:
    """Describe the database and a block's queries (int64 [B]) with the model as it is, and choose tuples.

    The same tuples in every process; the state's hard-negative cache is brought up to date in process 0.
    """
    database_size = len(training.images.database_files)
    images = [*range(database_size), *(database_size + queries).tolist()]
    descriptors, _ = describe(state.model, source, images, batch_size, f"{label}: descriptors")
    tuples: list[TrainingTuple] = []
    if processes.is_main():
        descriptors = where_it_fits(descriptors, state.model.device)
        if not state.position.blocks_done and all_alike(descriptors):
            say(f"{label}: all {len(descriptors)} descriptors are alike and teach nothing: look at images and weights")
        tuples = mine(
            queries,
            descriptors[:database_size],
            descriptors[database_size:],
            training.positives,
            training.not_negatives,
            state.hard_negative_cache,
            MiningRules(rules.negatives, rules.negative_sample, rules.margin, rules.seed),
            state.position.epoch,
        )
    return processes.broadcast(tuples)
