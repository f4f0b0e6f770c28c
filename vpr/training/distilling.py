"""Training a small model to find alike what a larger one, its teacher, finds alike; no positions are asked for.

The teacher describes all training images once. Epoch: batches of B images, of which B / 2 are random ones, and each of
the others is among the teacher's nearest neighbours of one of these, so that every row of cosines has something near.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.reader import Reading
from vpr.descriptors.describe import describe
from vpr.runs.stored import load_model
from vpr.search.exact import nearest
from vpr.training.choices import BY_TEACHER
from vpr.training.place_batches import PlaceBatch, PlaceBatches
from vpr.training.rules import TrainingRules
from vpr.training.state import TrainingState
from vpr.training.training_set import TrainingSet

NEIGHBOURS = 10  # of which one is drawn
TEMPERATURE = 0.05  # of cosines, in the softmax of a row


@dataclass(frozen=True)
class Distilling(PlaceBatches):
    """The student's cosines of a batch as the teacher's; an image and a neighbour of it stand for a place."""

    def loss(self, descriptors: torch.Tensor, batch: PlaceBatch) -> tuple[torch.Tensor, int, dict[str, float]]:
        """The sum over this process's images, their number, how far cosines are from the teacher's; as of places."""
        taught = torch.from_numpy(self.training.taught[batch.images]).to(descriptors.device)
        everyones = (processes.with_everyones(each, batch.counts).float() for each in (descriptors, taught))
        cosines, wanted = (each @ each.T for each in everyones)  # [B, B]
        losses = disagreement(cosines, wanted)
        whole, own = losses.sum() + 0 * descriptors.sum(), batch.own
        apart = (cosines.detach() - wanted)[own].abs().sum().item() / (len(wanted) - 1)
        return losses[own].sum().detach() + whole - whole.detach(), own.stop - own.start, {"cosines_apart": apart}

    def _chosen(self, state: TrainingState, epoch: int, label: str) -> tuple[list[list[np.ndarray]], int]:
        """Of each batch of an epoch random images, each with one of its neighbours that the batch does not have yet.
        An image is a random one once, unless it is among those that are left when no batch more is full."""
        half, generator = self.rules.batch_size // 2, np.random.default_rng([self.rules.seed, epoch])
        order = generator.permutation(len(self.training.taught))
        drawn = order[: len(order) // half * half].reshape(-1, half).tolist()
        for batch in drawn if processes.is_main() else ():
            for image in batch[:half]:
                free = [each for each in self._near[image].tolist() if each not in batch]
                batch.append(free[generator.integers(min(len(free), NEIGHBOURS))])
        return [[*np.reshape(batch, (2, half)).T] for batch in processes.broadcast(drawn)], 0

    @cached_property
    def _near(self) -> np.ndarray:
        """int64 [N, n], the teacher's nearest neighbours of each image, itself among them: more than a batch has."""
        return nearest(self.training.taught, self.training.taught, self.rules.batch_size + NEIGHBOURS)


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
    if not rules.teacher:
        raise UserError("no teacher to learn from: name a run's folder or an exported file with --teacher PATH")
    count, size = len(training.images.files), rules.batch_size
    if count < size or size < 4:
        raise UserError(
            f"found {count} training images and --batchSize={size}, wanted 4 images in a step at least, and no fewer "
            "than that in all: add images, or give another --batchSize"
        )
    teacher = load_model(Path(rules.teacher)).model.to_device(read.device, "auto")
    teacher.infer_by("auto", count)
    say(f"teacher: {teacher.name}")
    taught, _ = describe(teacher, training.images.reader(read), range(count), batch_size, "teacher: descriptors")
    known = {name: teacher.recipe[name] for name in ("weights_hash", "dimension")}
    return replace(training, taught=processes.broadcast(taught), teacher=known)
