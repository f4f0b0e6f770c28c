"""Weakly supervised training on tuples of query, positive and hard negatives (the paper's section 4 and appendix).

Epoch: a fresh permutation of the queries, in blocks. Block: describe all training images with the model as it is, mine
the block's tuples from these descriptors, make batches of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from vpr.common import processes
from vpr.common.memory import where_it_fits
from vpr.common.progress import say
from vpr.descriptors.describe import Source, describe
from vpr.training.losses import LOSSES
from vpr.training.mining import all_alike, batches_of_queries, mine
from vpr.training.objective import Block
from vpr.training.rules import TrainingRules
from vpr.training.state import TrainingState
from vpr.training.training_set import TrainingSet
from vpr.training.tuples import TrainingTuple, TupleBatch


@dataclass(frozen=True)
class Triplets:
    """The paper's objective: a query nearer to its positive than to its hard negatives, by a margin.

    For its fields see `vpr.training.objective.objective_of`.
    """

    rules: TrainingRules
    training: TrainingSet
    source: Source
    batch_size: int | None = None

    def batches(self, state: TrainingState, epoch: int) -> Iterator[Block]:
        """A block for each part of the queries that is mined with the same descriptors."""
        blocks = self.rules.query_blocks(self.training.usable, epoch)
        for number in range(state.position.blocks_done, len(blocks)):
            block = self._block(state, blocks[number], f"epoch {epoch} block {number + 1}/{len(blocks)}")
            yield replace(block, share=(number / len(blocks), (number + 1) / len(blocks)))

    def sample(self, state: TrainingState, count: int, label: str) -> Block:
        """A block of the first `count` tuples of twice as many queries, since some have no hard negative."""
        return self._block(state, self.rules.query_blocks(self.training.usable, 1)[0][: 2 * count], label, count)

    def _block(self, state: TrainingState, queries: np.ndarray, label: str, most: int | None = None) -> Block:
        """The block of at most `most` tuples of some queries (int64 [B])."""
        database_size = len(self.training.images.database_files)
        tuples = self.mined(state, queries, label)[:most]
        described = database_size + len(queries) + sum(2 + len(each.negatives) for each in tuples)
        return block_of(batches_of_queries(queries, tuples, self.rules.batch_size), database_size, label, described)

    def mined(self, state: TrainingState, queries: np.ndarray, label: str) -> list[TrainingTuple]:
        """Describe the database and a block's queries (int64 [B]) with the model as it is, and choose tuples.

        The same tuples in every process; the state's hard-negative cache is brought up to date in process 0.
        """
        training, database_size = self.training, len(self.training.images.database_files)
        images = [*range(database_size), *(database_size + queries).tolist()]
        described, _ = describe(state.model, self.source, images, self.batch_size, f"{label}: descriptors")
        tuples: list[TrainingTuple] = []
        if processes.is_main():
            descriptors = where_it_fits(torch.from_numpy(described), state.model.device)
            if not state.position.blocks_done and all_alike(descriptors):
                alike = f"all {len(descriptors)} descriptors are alike and teach nothing"
                say(f"{label}: {alike}: look at images and weights")
            database, own = descriptors[:database_size], descriptors[database_size:]
            tuples = mine(
                queries, database, own, training.positives, training.not_negatives, state.hard_negative_cache,
                self.rules, state.position.epoch,
            )  # fmt: skip
        return processes.broadcast(tuples)

    def loss(self, descriptors: torch.Tensor, batch: TupleBatch) -> tuple[torch.Tensor, int]:
        """The ranking loss: the sum over all pairs of a query and a negative, and how many of them violate."""
        return LOSSES[self.rules.loss](descriptors, batch, self.rules.margin)


def block_of(batches: list[list[TrainingTuple]], database_size: int, label: str, described: int = 0) -> Block:
    """Batches of one tuple at least, each shared among the processes."""
    # A process without a tuple takes the first: all have to take part in every step.
    shares = [batch[processes.rank() :: processes.world()] or batch[:1] for batch in batches]
    own = [TupleBatch.of(share, database_size) for share in shares]
    return Block(label, own, [len(batch) for batch in batches], described)
