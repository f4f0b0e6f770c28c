"""Training a small model to find alike what a larger one, its teacher, finds alike; no positions are asked for.

The teacher describes all training images once. Epoch: batches of B images, of which B / 2 are random ones and each of
the others is among the teacher's nearest neighbours of one of these, so that every row of cosines has something near.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.reader import Reading
from vpr.descriptors.describe import Source, describe
from vpr.runs.stored import load_model
from vpr.search.exact import nearest
from vpr.training.choices import BY_TEACHER
from vpr.training.objective import Block
from vpr.training.rules import TrainingRules
from vpr.training.state import TrainingState
from vpr.training.training_set import TrainingSet

STEPS = 100  # of a block: a checkpoint follows each
NEIGHBOURS = 10  # of which one is drawn
TEMPERATURE = 0.05  # of cosines, in the softmax of a row


@dataclass(frozen=True)
class TaughtBatch:
    """Images shared among the processes, and what the teacher says of them."""

    images: list[int]  # of this process, indices into the split's files; one without a share takes another's
    counts: list[int]  # how many images each process has
    cosines: torch.Tensor  # float32 [B, B], the teacher's, of those of process 0, then of 1, ...


@dataclass(frozen=True)
class Distilling:
    """The student's cosines of a batch as the teacher's. For its fields see `vpr.training.objective.objective_of`."""

    rules: TrainingRules
    training: TrainingSet
    source: Source
    batch_size: int | None = None

    def batches(self, state: TrainingState, epoch: int) -> Iterator[Block]:
        """Blocks of so many steps."""
        chosen = self._chosen(epoch)
        starts = range(0, len(chosen), STEPS)
        for number in range(state.position.blocks_done, len(starts)):
            part = chosen[starts[number] : starts[number] + STEPS]
            share = starts[number] / len(chosen), (starts[number] + len(part)) / len(chosen)
            yield self._block(part, f"epoch {epoch} block {number + 1}/{len(starts)}", share)

    def sample(self, state: TrainingState, count: int, label: str) -> Block:
        """A block of whole batches with `count` images or a few more, as far as there are so many."""
        chosen = self._chosen(state.position.epoch)
        return self._block(chosen[: -(-count // chosen.shape[1])], label)

    def loss(self, descriptors: torch.Tensor, batch: TaughtBatch) -> tuple[torch.Tensor, int, dict[str, float]]:
        """The sum over this process's images, their number, and how far cosines are from the teacher's.

        The gradient is that of the whole batch's sum: an image is in the rows of all processes' images.
        """
        rank, counts = processes.rank(), batch.counts
        everyones = processes.with_everyones(descriptors, counts).float()  # [B, dim]
        own, wanted = slice(sum(counts[:rank]), sum(counts[: rank + 1])), batch.cosines.to(everyones.device)
        cosines = everyones @ everyones.T
        losses = disagreement(cosines, wanted)
        whole = losses.sum() + 0 * descriptors.sum()
        apart = (cosines.detach() - wanted)[own].abs().sum().item() / max(len(wanted) - 1, 1)
        return losses[own].sum().detach() + whole - whole.detach(), counts[rank], {"cosines_apart": apart}

    def _chosen(self, epoch: int) -> np.ndarray:
        """The images of an epoch's batches, int64 [batches, B], in every process; each is once among the random half
        of a batch, but for those that are left when no batch more is full."""
        half, generator = self.rules.batch_size // 2, np.random.default_rng([self.rules.seed, epoch])
        if not processes.is_main():
            return processes.broadcast(np.empty(0))
        order = generator.permutation(len(self.training.images.files))
        batches = order[: len(order) // half * half].reshape(-1, half).tolist()
        for batch in batches:
            for image in batch[:half]:
                free = [each for each in self._near[image].tolist() if each not in batch]
                batch.append(free[generator.integers(min(len(free), NEIGHBOURS))])
        return processes.broadcast(np.array(batches))

    @cached_property
    def _near(self) -> np.ndarray:
        """int64 [N, n], the teacher's nearest neighbours of each image, itself among them: more than a batch has."""
        taught = self._taught
        return nearest(taught, taught, self.rules.batch_size + NEIGHBOURS)

    @property
    def _taught(self) -> np.ndarray:
        """The teacher's descriptors [N, dim] in process 0."""
        assert self.training.taught is not None  # `with_teacher` made them for this objective
        return self.training.taught

    def _block(self, chosen: np.ndarray, label: str, share: tuple[float, float] = (0.0, 1.0)) -> Block:
        rank, world = processes.rank(), processes.world()
        counts = [len(part) for part in np.array_split(chosen[0], world)]
        cosines = processes.broadcast([cosines_of(self._taught[each]) for each in chosen] if not rank else [])
        owns = [np.array_split(each, world)[rank].tolist() or [int(each[0])] for each in chosen]
        batches = [TaughtBatch(own, counts, each) for own, each in zip(owns, cosines, strict=True)]
        return Block(label, batches, [len(each) for each in chosen], chosen.size, "images", share)


def cosines_of(descriptors: np.ndarray) -> torch.Tensor:
    """float32 [B, B] of descriptors [B, dim] of length 1, float16 or float32."""
    values = torch.from_numpy(descriptors).float()
    return values @ values.T


def disagreement(cosines: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The loss of each image [B] by cosines [B, B] with the others, and the teacher's: the Kullback-Leibler divergence
    of softmax(cosines / TEMPERATURE) without the diagonal (as SEED, Fang et al., ICLR 2021)."""
    itself = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    own, taught = ((each[~itself].reshape(len(each), -1) / TEMPERATURE).log_softmax(1) for each in (cosines, wanted))
    return (taught.exp() * (taught - own)).sum(dim=1)


def with_teacher(training: TrainingSet, rules: TrainingRules, read: Reading, batch_size: int | None) -> TrainingSet:
    """The training set with what the teacher of the rules makes of its images, if they have one; it is forgotten then.
    Raises a UserError: it is missing or unreadable, or images are too few for a batch."""
    if rules.loss != BY_TEACHER:
        return training
    count, least = len(training.images.files), max(4, rules.batch_size)
    if count < least or rules.batch_size < 4:
        raise UserError(
            f"found {count} training images and --batchSize={rules.batch_size}, wanted 4 in a step at least, and as "
            "many images: add images, or give another --batchSize"
        )
    if not rules.teacher:
        raise UserError("no teacher to learn from: name a run's folder or an exported file with --teacher PATH")
    teacher = load_model(Path(rules.teacher)).model.to_device(read.device, "auto")
    teacher.infer_by("auto", count)
    say(f"teacher: {teacher.name}")
    reader = training.images.reader(read)
    taught, _ = describe(teacher, reader, range(count), batch_size, "teacher: descriptors")
    return replace(training, taught=taught if processes.is_main() else None)
