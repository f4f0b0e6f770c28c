"""Training on batches of places with the multi-similarity loss, as on GSV-Cities (Ali-bey et al., 2022).

Epoch: all places once, in batches of P with K random images of each. Which places are a batch is random, or with
--hardEvery of those that look alike: every E epochs a random image of each place is described with the model as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from vpr.common import processes
from vpr.common.memory import where_it_fits
from vpr.descriptors.describe import Source, describe
from vpr.training.mining import NO_IMAGE
from vpr.training.objective import Block
from vpr.training.places.cliques import hard_batches, most_alike
from vpr.training.places.multi_similarity import multi_similarity
from vpr.training.places.place_set import PlaceSet
from vpr.training.rules import TrainingRules
from vpr.training.state import TrainingState
from vpr.training.training_set import TrainingSet

STEPS = 100  # of a block: a checkpoint follows each
IMAGES, DESCRIBED, BATCHES, VIEWS = 0, 1, 2, 3  # what is drawn from generators of their own


@dataclass(frozen=True)
class PlaceBatch:
    """Images by place, shared among the processes."""

    images: list[int]  # of this process, indices into the split's files
    places: np.ndarray  # int64 [B], of each image of the whole batch: those of process 0, then of 1, ...
    counts: list[int]  # how many images each process has

    @property
    def own(self) -> slice:
        """The rows of this process's images among those of the whole batch."""
        return slice(sum(self.counts[: processes.rank()]), sum(self.counts[: processes.rank() + 1]))

    @classmethod
    def of(cls, images: list[np.ndarray]) -> "PlaceBatch":
        """The batch of some images of each place. A process without a share takes the first image, to take part."""
        joined, places = np.concatenate(images), np.repeat(np.arange(len(images)), [len(each) for each in images])
        shares = [np.arange(len(joined))[rank :: processes.world()] for rank in range(processes.world())]
        own = shares[processes.rank()] if len(shares[processes.rank()]) else [0]
        return cls(joined[own].tolist(), places[np.concatenate(shares)], [len(share) for share in shares])


@dataclass(frozen=True)
class PlaceBatches:
    """Images of a place alike, and unlike those of all other places of the batch.

    For its fields see `vpr.training.objective.objective_of`.
    """

    rules: TrainingRules
    training: TrainingSet
    source: Source
    batch_size: int | None = None

    @property
    def places(self) -> PlaceSet:
        """What it is trained on."""
        assert self.training.places is not None  # `load_training_set` made them for this objective
        return self.training.places

    def batches(self, state: TrainingState, epoch: int) -> Iterator[Block]:
        """Blocks of so many steps."""
        label, done = f"epoch {epoch}", state.position.blocks_done
        chosen, described = self._chosen(state, epoch, label)
        starts = range(0, len(chosen), STEPS)
        for number in range(done, len(starts)):
            part = chosen[starts[number] : starts[number] + STEPS]
            share = starts[number] / len(chosen), (starts[number] + len(part)) / len(chosen)
            yield _block(part, f"{label} block {number + 1}/{len(starts)}", described if number == done else 0, share)

    def sample(self, state: TrainingState, count: int, label: str) -> Block:
        """A block of whole batches with `count` images or a few more, as far as there are so many."""
        chosen, described = self._chosen(state, state.position.epoch, label)
        ends = np.cumsum([sum(map(len, batch)) for batch in chosen])
        return _block(chosen[: int(np.searchsorted(ends, count)) + 1], label, described)

    def loss(self, descriptors: torch.Tensor, batch: PlaceBatch) -> tuple[torch.Tensor, int, dict[str, float]]:
        """The sum over this process's images as anchors, their number, and what of their pairs is mined.

        The gradient is that of the whole batch's sum: an image is in the pairs of all processes' anchors.
        """
        everyones = processes.with_everyones(descriptors, batch.counts)  # [B, dim]
        places = torch.as_tensor(batch.places, device=descriptors.device)
        losses, mined = multi_similarity(everyones, places)
        whole, own = losses.sum() + 0 * descriptors.sum(), batch.own
        pairs = mined[own].sum(dim=1)
        negatives = (mined & (places[:, None] != places))[own].sum()
        easy, all_pairs, hard = torch.stack([(pairs == 0).sum(), pairs.sum(), negatives]).tolist()
        share = all_pairs / max(len(everyones) - 1, 1)
        figures = {"batch_accuracy": easy, "mined_share": share, "violating_per_tuple": hard}
        return losses[own].sum().detach() + whole - whole.detach(), len(pairs), figures

    def _chosen(self, state: TrainingState, epoch: int, label: str) -> tuple[list[list[np.ndarray]], int]:
        """Of each batch of an epoch the images of its places, and how many images were described to choose them.

        Those of the epochs until the next description are chosen together, and kept in the state.
        """
        described = 0
        if not self.rules.hard_every:
            batches = self._drawn(epoch)
        else:
            if not (state.hard_negative_cache[:, 0] == epoch).any():
                state.hard_negative_cache, described = self._hard(state, epoch, label)
            kept = state.hard_negative_cache
            rows = kept[kept[:, 0] == epoch, 1:].reshape(-1, self.rules.batch_size, self.rules.images_per_place)
            drawn = [[images[images != NO_IMAGE] for images in batch] for batch in rows]
            batches = [[images for images in batch if len(images)] for batch in drawn]
        views, generator = self._views, self._generator(epoch, VIEWS)
        return [
            [each * views + generator.integers(views, size=len(each)) for each in batch] for batch in batches
        ], described

    def _hard(self, state: TrainingState, epoch: int, label: str) -> tuple[np.ndarray, int]:
        """Batches of places that look alike now, for this epoch and those after it that have no descriptions of their
        own: int64 [batches, 1 + P * K], the epoch and the images, NO_IMAGE where there are fewer; and how many images
        were described."""
        generator, shape = self._generator(epoch, DESCRIBED), (self.rules.batch_size, self.rules.images_per_place)
        images = [each if self.rules.alike else generator.choice(each, 1) for each in self.places.images]
        seen = (np.concatenate(images) * self._views).tolist()
        described, _ = describe(state.model, self.source, seen, self.batch_size, f"{label}: descriptors")
        rows: list[np.ndarray] = []
        if processes.is_main():
            descriptors = where_it_fits(torch.from_numpy(described), state.model.device)
            for later in range(epoch, epoch + self.rules.hard_every):
                for batch in self._drawn(later, descriptors):
                    row = np.full(shape, NO_IMAGE)
                    for place, own in zip(row, batch, strict=False):
                        place[: len(own)] = own
                    rows.append(np.append(later, row))
        return processes.broadcast(np.array(rows, np.int64).reshape(-1, 1 + shape[0] * shape[1])), len(seen)

    def _drawn(self, epoch: int, descriptors: torch.Tensor | None = None) -> list[list[np.ndarray]]:
        """Of each batch of an epoch the images of its places, by descriptors of one image of each place, or with
        --alike of all images of all places."""
        generator, images = self._generator(epoch, IMAGES), self.places.images
        if descriptors is not None and self.rules.alike:
            anchors = [int(generator.integers(len(each))) for each in images]
            places = zip(descriptors.split([*map(len, images)]), images, anchors, strict=True)
            descriptors = descriptors[np.cumsum([0, *map(len, images[:-1])]) + anchors]
            images = [own[most_alike(of, self._spots[own], anchor)] for of, own, anchor in places]
        else:
            images = [generator.permutation(each) for each in images]
        # Places that look alike by random numbers are random ones.
        random = self._generator(epoch, DESCRIBED).random((len(images), 1))
        looks, order = random if descriptors is None else descriptors, self._generator(epoch, BATCHES)
        batches = hard_batches(self.places, looks, self.rules.batch_size, order, self._apart)
        return [[images[place][: self.rules.images_per_place] for place in batch] for batch in batches]

    @cached_property
    def _spots(self) -> np.ndarray:
        """int64 [N], a number for each position; images of a panorama share theirs."""
        places = self.training.images.places
        where = np.concatenate([places.database_positions, places.query_positions])
        return np.unique(where, axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def _views(self) -> int:
        """How many views of each image the source has, one after the other."""
        return len(self.source.files) // len(self.training.images.files) if self.rules.views else 1

    @property
    def _apart(self) -> float:
        """Metres between the centres of two places of a batch, at least."""
        return self.rules.places_apart(self.training.images.places.positive_radius)

    def _generator(self, epoch: int, use: int) -> np.random.Generator:
        return np.random.default_rng([self.rules.seed, epoch, use])


def _block(
    batches: list[list[np.ndarray]], label: str, described: int, share: tuple[float, float] = (0.0, 1.0)
) -> Block:
    sizes = [sum(map(len, batch)) for batch in batches]
    return Block(label, [PlaceBatch.of(batch) for batch in batches], sizes, described + sum(sizes), "images", share)
